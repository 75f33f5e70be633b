"""`plan_changes`: only new and changed inputs go through a Ray Data pipeline."""

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from dray.pipelines.building.report import BuildReport
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.changes import Guard
from dray.pipelines.planning.rewrites import UNKNOWN
from dray.pipelines.ray_data.columns import PartDecoder
from dray.pipelines.ray_data.compat import keeps_order
from dray.pipelines.ray_data.datasource import KEY, SOURCE, check_shared, read_datasource
from dray.pipelines.ray_data.pickles_datasource import PicklesDatasource
from dray.pipelines.ray_data.shards_datasource import stored_rows
from dray.pipelines.ray_data.sink import store_dataset
from dray.pipelines.ray_data.storing.tasks import Stored
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.pipelines.writing.request import checked_version, spec_of
from dray.pipelines.writing.shard import ShardSize
from dray.pipelines.writing.sourced import Copy, SourcedPlan
from dray.pipelines.writing.survey import plan_sourced
from dray.pipelines.writing.version import Writing
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.client import StorageOptions

_COPY = "\0"  # begins the `__source__` of a copied sample; no key holds it


def plan_changes(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    suffixes: str | Iterable[str],
    transform_version: str,
    prefix: str = DEFAULT_PREFIX,
    names: Iterable[str] | None = None,
    optional_suffixes: Iterable[str] = (),
    decode: bool = True,
    allow: Collection[str] = (),
    allow_pickle: bool = False,
    checksum: bool = False,
    on_missing: str = "fail",
    max_bad: int | str = "1%",
    allow_removal: str | None = None,
    allow_changed_source: bool = False,
    storage_options: StorageOptions | None = None,
    input_storage_options: StorageOptions | None = None,
    progress: bool = True,
) -> "ChangePlan":
    """Returns what the next version of a dataset has to make of a folder of input files. Writes nothing.

    The plan gives the new and changed inputs as a Ray Data dataset, and writes what a pipeline makes of them:

        plan = plan_changes("s3://lab/raw", "s3://lab/embedded", suffixes="image.jpg", transform_version="3")
        if plan.has_work:
            dataset = plan.read().map_batches(Embed, concurrency=4, num_gpus=1)
            print(plan.write(dataset, samples_per_shard=2000))

    A pipeline may make none, one or many samples of an input. Each row keeps the column `__source__`, the key of its
    input, and has a `__key__` of its own. Rows of one input follow each other.

    Args:
        src: Folder of the input files: a path or an object-storage URL. Input `a/b` has the files `a/b.{suffix}`.
        out: The dataset's folder.
        suffixes: Suffixes of the files that each input has.
        transform_version: The version of the pipeline: change it when the pipeline changes; then all inputs are made
            again. The dataset records it as text.
        prefix: The dataset's prefix.
        names: Names of the inputs, in order; a set is sorted. None: all in the folder and its sub-folders, sorted.
        optional_suffixes: Suffixes of further files, which inputs may lack; their columns are null then.
        decode: Whether files become values; if not, columns hold their bytes.
        allow: Full names (`pkg.module.Class`) that pickles may use in addition to the safe list.
        allow_pickle: Whether pickles may run any code that they name.
        checksum: Detect changed files by their content, not by size and time (ETag): every file is read.
        on_missing: How to treat inputs that lack a file: "fail", "skip" or "quarantine", as `on_error` of builds.
        max_bad: Maximum number of inputs to leave out, or a percentage of them (at least one).
        allow_removal: Maximum number, or percentage such as "25%", of the last version's inputs that may be gone;
            not checked with `names`. None: 10 %, or 50 % of fewer than 20.
        allow_changed_source: Accept another `src` or other suffixes than the last version's.
        storage_options: Options of `out`: see `dray.shards.Store`.
        input_storage_options: Options of `src`; None: the same as `storage_options`.
        progress: Show progress on standard error.

    Raises:
        CallError: An argument is invalid, the dataset is of another kind, or too much would be removed.
        MissingInputError: Input files are missing.
    """
    spec = spec_of(
        src,
        out,
        suffixes=suffixes,
        optional_suffixes=optional_suffixes,
        prefix=prefix,
        names=names,
        checksum=checksum,
        tolerance=Tolerance(on_error=on_missing, max_bad=max_bad),
        guard=Guard(allow_removal=allow_removal, allow_changed_source=allow_changed_source),
        storage_options=storage_options,
        input_storage_options=input_storage_options,
        address=None,
        progress=progress,
    )
    check_shared(spec.job.inputs)
    check_shared(spec.job.location.store)
    recipe = {"suffixes": list(spec.recipe.suffixes), "transform": checked_version(transform_version)}
    decoder = PartDecoder.of(allow=allow, allow_pickle=allow_pickle) if decode else None
    return ChangePlan(plan_sourced(spec, recipe), decoder)


class ChangePlan:
    """What the next version of a dataset has to make; see `plan_changes`.

    `str(plan)` is a summary.
    """

    def __init__(self, plan: SourcedPlan, decoder: PartDecoder | None) -> None:
        self._plan, self._decoder = plan, decoder

    def __str__(self) -> str:
        return str(self._plan)

    @property
    def has_work(self) -> bool:
        """Whether the next version would differ from the last."""
        return self._plan.has_work

    @property
    def num_to_make(self) -> int:
        """Number of inputs that `read` gives."""
        return len(self._plan.to_make)

    @property
    def num_added(self) -> int:
        """Number of inputs that the last version does not have."""
        return self._plan.changes.num_added

    @property
    def num_changed(self) -> int:
        """Number of inputs whose files changed."""
        return self._plan.changes.num_changed

    @property
    def num_removed(self) -> int:
        """Number of inputs of the last version that are gone."""
        return self._plan.changes.num_removed

    @property
    def num_done(self) -> int:
        """Number of inputs that a run which did not end has stored; they are not made again."""
        return self._plan.num_done

    def read(
        self,
        *,
        override_num_blocks: int | None = None,
        concurrency: int | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Returns the new and changed inputs: `__key__`, `__source__`, and a column for each suffix.

        The arguments, types of columns and errors are those of `read_pickles`.
        """
        return read_changes(
            self._plan,
            self._decoder,
            override_num_blocks=override_num_blocks,
            concurrency=concurrency,
            ray_remote_args=ray_remote_args,
        )

    def write(
        self,
        dataset: Dataset,
        *,
        samples_per_shard: int | None = None,
        shard_bytes: int | None = None,
        keep: int | None = 2,
        grace_s: float = DAY_S,
        concurrency: int | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
    ) -> BuildReport:
        """Make the next version of the rows that a pipeline made of `read()`. Atomic.

        Shards of the last version whose inputs did not change stay. From the others the samples of unchanged inputs
        are copied as they are stored, by tasks of their own. Samples of inputs that are gone are left out.

        After the death of this process, the next plan counts the inputs as done of which it sees that all samples are
        stored. Inputs at the edge of the stored shards, and those without a sample, are made again. So are all inputs
        of a pipeline that sorts or shuffles.

        Args:
            dataset: Rows with `__key__`, `__source__` and a column for each part; see `write_shards`.
            samples_per_shard: Exact number of samples in each new shard but the last.
            shard_bytes: Maximum size of a shard in bytes. Without both, 256 MiB and 100,000 samples.
            keep: Number of versions that stay readable; older ones are deleted unless held. None: all.
            grace_s: Seconds for which a superseded version is kept.
            concurrency: Maximum number of tasks that store shards at a time; None: twice the CPUs.
            ray_remote_args: Resources and other options of these tasks.

        Raises:
            CallError: An argument is invalid, or the dataset's DataContext sets `max_errored_blocks`.
            InputError: A step dropped or changed `__source__`, a row cannot be stored, samples share a key, an input
                was changed meanwhile, or a step failed or is not deterministic.
            ConflictError: Another writer committed meanwhile; what was stored is kept for the next plan.
            ClusterError: Workers died too often.
            StoreError: The store failed.
        """
        size, plan = ShardSize.of(samples_per_shard, shard_bytes), self._plan
        if not plan.has_work:
            return plan.unchanged()
        writing = plan.announce(None if keep is None else Retention(keep=keep, grace_s=grace_s))
        stored = store_rows_of(plan, dataset, writing, size, concurrency=concurrency, ray_remote_args=ray_remote_args)
        return plan.commit(writing, stored.shards, size, renamed=stored.renamed)


def read_changes(
    plan: SourcedPlan,
    decoder: PartDecoder | None,
    *,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
) -> Dataset:
    """Returns the inputs to make; see `ChangePlan.read`."""
    sources = plan.sources.take(plan.to_make)
    if not len(sources):
        names = (KEY, SOURCE, *sources.suffixes)
        return ray.data.from_arrow(pa.table({name: pa.array([], pa.string()) for name in names}))
    return read_datasource(
        PicklesDatasource(plan.spec.job.inputs, sources, decoder, with_source=True),
        override_num_blocks=override_num_blocks,
        concurrency=concurrency,
        ray_remote_args=ray_remote_args,
    )


def store_rows_of(
    plan: SourcedPlan,
    dataset: Dataset,
    writing: Writing,
    size: ShardSize,
    *,
    concurrency: int | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
) -> Stored:
    """Store what a pipeline made of the inputs, and after it the samples to copy; see `ChangePlan.write`."""
    made = plan.numbers()
    if not keeps_order(dataset):
        made = {key: (number, UNKNOWN) for key, (number, _) in made.items()}
    copies = {_name_of(copy): copy.source for copy in plan.copies}
    return store_dataset(
        dataset.union(_copied(plan)) if copies else dataset,
        writing,
        size,
        sources=made | copies,
        concurrency=concurrency,
        ray_remote_args=ray_remote_args,
    )


def _copied(plan: SourcedPlan) -> Dataset:
    """Returns the samples to copy, as they are stored."""
    rows: dict[int, list[int]] = {}
    for copy in plan.copies:
        rows.setdefault(copy.place[0], []).append(copy.place[1])
    sources = pa.array([_name_of(copy) for copy in plan.copies], pa.string())
    return read_datasource(
        stored_rows(plan.view, rows, sources), override_num_blocks=None, concurrency=None, ray_remote_args=None
    )


def _name_of(copy: Copy) -> str:
    """Returns the `__source__` of a sample that is copied."""
    return f"{_COPY}{copy.source[0]}"
