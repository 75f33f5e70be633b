"""Dropping the samples of a dataset: a version that holds none. What older versions hold stays as it is."""

import time
from dataclasses import replace

from dray.pipelines.building.announce import announce
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.manifest import put_table
from dray.pipelines.building.report import BuildReport, report_of
from dray.pipelines.building.survey import stored_sizes
from dray.pipelines.building.tables import empty_like
from dray.pipelines.planning.changes import Changes
from dray.pipelines.planning.plan import Plan
from dray.pipelines.versions.attempts import check_is_build, finish, until_committed
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import Retention
from dray.shards.layout import Location
from dray.shards.log import Commit
from dray.shards.manifest import Accounting
from dray.shards.parts import parts_of
from dray.shards.snapshot import Snapshot
from dray.shards.versions import no_dataset


def drop_samples(location: Location, *, retention: Retention | None, progress: bool = True) -> BuildReport:
    """Make the last version of a dataset one without samples.

    Atomic, and undone by a rollback for as long as the versions before are kept. Where the last version is empty
    already, nothing is written.

    Args:
        location: Where the dataset is.
        retention: Which versions stay; None: all.
        progress: Whether to show progress on standard error.

    Raises:
        NotFoundError: There is no such dataset.
        ConflictError: Other writers were faster again and again.
    """
    started = time.monotonic()
    job = PackJob(inputs=location.store, location=location, transform=None)  # no input is read

    def attempt(head: Commit | None, *, is_first: bool) -> BuildReport | None:  # noqa: ARG001  all are alike
        if head is None:
            raise no_dataset(location)
        base = Snapshot.load(location, head)
        check_is_build(base)
        if not base.shards:
            return report_of(base, None, {}, seconds=time.monotonic() - started)
        intent = announce(job, Plan(()), base, stored_sizes(job), progress=progress)
        manifest = replace(
            base.manifest,
            intent=intent.number,
            num_samples=0,
            parts=parts_of(base.manifest.recipe, (), (), ()),
            accounting=Accounting(inputs=0, packed=0),
            shards=(),
            sources=(put_table(job, intent, empty_like(base.sources()), 0, {}),),
            left_out=None,
        )
        made = commit_version(location, manifest, base, retention=retention)
        if made is None:
            return None
        finish(made, base, retention, progress=progress)
        changes = Changes(num_last=base.num_samples, num_removed=base.num_samples)
        return report_of(made, changes, {}, seconds=time.monotonic() - started)

    return until_committed(location, attempt, progress=progress)
