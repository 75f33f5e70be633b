"""Dropping the samples of a dataset: the next version is empty, older ones stay as they are."""

import time
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from dray.pipelines.building.announce import announce
from dray.pipelines.building.manifest import put_table
from dray.pipelines.building.report import BuildReport, report_of
from dray.pipelines.building.tables import parquet_of
from dray.pipelines.planning.changes import Changes
from dray.pipelines.versions.attempts import check_has_own_tars, finish, stored_sizes, until_committed
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import Retention
from dray.shards.layout import Location
from dray.shards.log import Commit, Intent
from dray.shards.manifest import Accounting, TableChunk
from dray.shards.parts import parts_of
from dray.shards.snapshot import Snapshot
from dray.shards.versions import require_dataset


def drop_samples(location: Location, *, retention: Retention | None, progress: bool) -> BuildReport:
    """Make the last version of a dataset one without samples.

    Atomic; a rollback undoes it while the previous versions are kept. If the last version is already empty, nothing is
    written.

    Args:
        location: Where the dataset is.
        retention: Which versions to keep; None: all.
        progress: Whether to show progress on standard error.

    Raises:
        CallError: The dataset indexes tars that dray did not write.
        NotFoundError: There is no such dataset.
        ConflictError: Other writers were faster too often.
    """
    started = time.monotonic()

    def attempt(head: Commit | None, *, is_first: bool) -> BuildReport | None:  # noqa: ARG001  each starts from head
        base = Snapshot.load(location, require_dataset(location, head))
        check_has_own_tars(base)
        if not base.shards:
            return report_of(base, None, seconds=time.monotonic() - started)
        intent = announce(location, (), base, stored_sizes(location), progress=progress)
        manifest = replace(
            base.manifest,
            intent=intent.number,
            num_samples=0,
            parts=parts_of(base.manifest.recipe, (), (), ()),
            accounting=Accounting(inputs=0, packed=0),
            shards=(),
            sources=_emptied(base, intent, base.sources) if base.manifest.sources else None,
            samples=_emptied(base, intent, base.samples) if base.manifest.samples else None,
            left_out=None,
        )
        made = commit_version(location, manifest, base, retention=retention)
        if made is None:
            return None
        finish(made, base, retention, progress=progress)
        changes = Changes(num_last=base.num_samples, num_removed=base.num_samples)
        return report_of(made, changes, seconds=time.monotonic() - started)

    return until_committed(location, attempt, progress=progress)


def _emptied(base: Snapshot, intent: Intent, read: Callable[[], pa.Table]) -> tuple[TableChunk, ...]:
    """Returns a table without its rows, stored."""
    return (put_table(base.location, intent, parquet_of(read().slice(0, 0)), 0, {}),)
