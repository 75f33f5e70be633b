"""A version whose samples a function makes of input files, in workers on Ray."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from dray.pipelines.building.report import BuildReport
from dray.pipelines.events import report_bad
from dray.pipelines.inputs.sources import BadInput
from dray.pipelines.ray_data.datasource import KEY, SOURCE, check_shared
from dray.pipelines.ray_data.plan_changes import read_changes, store_rows_of
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.batches import BatchTransform, Input, Made, Workers
from dray.pipelines.writing.shard import ShardSize
from dray.pipelines.writing.sourced import SourcedPlan
from dray.pipelines.writing.transformed import attempt
from dray.shards.errors import DrayError


def write_on_ray(
    plan: SourcedPlan, transform: BatchTransform, size: ShardSize, workers: Workers, *, retention: Retention | None
) -> BuildReport:
    """Make the version of a plan on Ray; arguments and errors are those of `write_transformed`."""
    spec = plan.spec
    check_shared(spec.job.inputs)
    check_shared(spec.job.location.store)
    found: Any = ray.remote(num_cpus=0)(_Found).remote()
    names = {key: plan.sources.names[row] for key, (row, _) in plan.numbers().items()}
    step = _Step(transform, found, ray.put(names), leaves_out=spec.tolerance.leaves_out)
    dataset = _mapped(read_changes(plan, None), step, transform, workers)
    writing = plan.announce(retention)
    try:
        stored = store_rows_of(plan, dataset, writing, size)
    except DrayError as exc:
        error: DrayError | None = ray.get(found.error.remote())
        raise (error or exc) from None
    bad, renamed = ray.get(found.all.remote())
    report_bad(bad)
    with writing.storing():
        spec.tolerance.check(bad, len(plan.sources), plan.sources.url)
    return plan.commit(writing, stored.shards, size, bad=bad, renamed=renamed)


def _mapped(dataset: Dataset, step: "_Step", transform: BatchTransform, workers: Workers) -> Dataset:
    options: dict[str, Any] = {"batch_size": workers.batch_size, "batch_format": "pyarrow", "zero_copy_batch": True}
    options |= {
        name: value
        for name, value in (("num_cpus", workers.num_cpus), ("num_gpus", workers.num_gpus))
        if value is not None
    }
    if transform.is_class:
        pool = ActorPoolStrategy(size=workers.concurrency or 1)
        return dataset.map_batches(_Worker, fn_constructor_args=(step,), compute=pool, **options)
    return dataset.map_batches(step, concurrency=workers.concurrency, **options)


class _Found:
    """What workers tell the driver beside their rows. Ray itself would return their errors as text."""

    def __init__(self) -> None:
        self._by_name: dict[str, BadInput] = {}
        self._renamed: dict[str, str] = {}
        self._error: DrayError | None = None

    def add(self, bad: Sequence[BadInput], renamed: Mapping[str, str]) -> None:
        """Note inputs of which no sample could be made, each once whatever is tried again, and renamed fields."""
        self._by_name |= {entry.name: entry for entry in bad}
        self._renamed |= renamed

    def all(self) -> tuple[list[BadInput], dict[str, str]]:
        """Returns these inputs, and the suffix of each renamed field."""
        return list(self._by_name.values()), self._renamed

    def fail(self, error: DrayError) -> None:
        """Note the error of a worker; the first one counts."""
        self._error = self._error or error

    def error(self) -> DrayError | None:
        """Returns that error."""
        return self._error


class _Step:
    """Makes the samples of a batch of inputs, as a step of a pipeline."""

    def __init__(self, transform: BatchTransform, found: Any, names: Any, *, leaves_out: bool) -> None:
        self._transform, self._found, self._names = transform, found, names
        self._leaves_out = leaves_out
        self._reported: set[str] = set()  # fields of which the driver knows under which suffix they are stored
        self.__name__ = transform.name

    def __call__(self, table: pa.Table) -> pa.Table:
        inputs = [
            Input(row.pop(KEY), {name: data for name, data in row.items() if name != SOURCE and data is not None})
            for row in table.to_pylist()
        ]
        bad: list[BadInput] = []
        names: Any = ray.get(self._names) if self._leaves_out else {}
        try:
            made = list(attempt(self._transform, inputs, bad, names, leaves_out=self._leaves_out)) if inputs else []
        except DrayError as exc:
            ray.get(self._found.fail.remote(exc))
            raise
        if bad or self._transform.renamed.keys() - self._reported:
            ray.get(self._found.add.remote(bad, self._transform.renamed))
            self._reported = {*self._transform.renamed}
        return _table_of(made)


class _Worker:
    """A step whose class is constructed once."""

    def __init__(self, step: _Step) -> None:
        self._step = step

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._step(table)


def _table_of(made: Sequence[tuple[Input, Made]]) -> pa.Table:
    """Returns samples as rows: a column for each part, null where a sample lacks it."""
    suffixes = dict.fromkeys(suffix for _, sample in made for suffix in sample.parts)
    columns = {
        KEY: pa.array([sample.key for _, sample in made], pa.string()),
        SOURCE: pa.array([one.key for one, _ in made], pa.string()),
    }
    for suffix in suffixes:
        columns[suffix] = pa.array([sample.parts.get(suffix) for _, sample in made], pa.large_binary())
    return pa.table(columns)
