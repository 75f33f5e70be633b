"""Dropping the samples of a dataset: the next version is empty, older ones stay as they are."""

import time
from dataclasses import replace

from dray.pipelines.building.announce import announce
from dray.pipelines.building.manifest import put_table
from dray.pipelines.building.report import BuildReport, report_of
from dray.pipelines.building.tables import parquet_of
from dray.pipelines.planning.changes import Changes
from dray.pipelines.versions.attempts import check_is_build, finish, stored_sizes, until_committed
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import Retention
from dray.shards.layout import Location
from dray.shards.log import Commit
from dray.shards.manifest import Accounting
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
        NotFoundError: There is no such dataset.
        ConflictError: Other writers were faster too often.
    """
    started = time.monotonic()

    def attempt(head: Commit | None, *, is_first: bool) -> BuildReport | None:  # noqa: ARG001  each starts from head
        base = Snapshot.load(location, require_dataset(location, head))
        check_is_build(base)
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
            sources=(put_table(location, intent, parquet_of(base.sources().slice(0, 0)), 0, {}),),
            left_out=None,
        )
        made = commit_version(location, manifest, base, retention=retention)
        if made is None:
            return None
        finish(made, base, retention, progress=progress)
        changes = Changes(num_last=base.num_samples, num_removed=base.num_samples)
        return report_of(made, changes, seconds=time.monotonic() - started)

    return until_committed(location, attempt, progress=progress)
