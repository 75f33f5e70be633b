"""Everything that writes a dataset, or reads one with Ray Data. Ray is imported only when it is used."""

import importlib
import typing

from dray.pipelines.build_dataset import build_dataset
from dray.pipelines.building.report import BuildReport
from dray.pipelines.hash_split import split_by_hash
from dray.pipelines.index_tars import index_tars
from dray.pipelines.indexing.report import IndexReport
from dray.pipelines.inputs.arrow import arrow_samples
from dray.pipelines.metrics import export_metrics
from dray.pipelines.pack_pickles import pickles_to_tars
from dray.pipelines.reshard_dataset import reshard
from dray.pipelines.running.resources import TaskResources, task_resources
from dray.pipelines.write_samples import write_samples

if typing.TYPE_CHECKING:
    from dray.pipelines.ray_data.plan_changes import plan_changes
    from dray.pipelines.ray_data.read_pickles import read_pickles
    from dray.pipelines.ray_data.read_shards import read_shards
    from dray.pipelines.ray_data.write_shards import write_shards

__all__ = [
    "BuildReport",
    "IndexReport",
    "TaskResources",
    "arrow_samples",
    "build_dataset",
    "export_metrics",
    "index_tars",
    "pickles_to_tars",
    "plan_changes",
    "read_pickles",
    "read_shards",
    "reshard",
    "split_by_hash",
    "task_resources",
    "write_samples",
    "write_shards",
]

_RAY_DATA = ("plan_changes", "read_pickles", "read_shards", "write_shards")  # each in a module of its name: imports Ray


def __getattr__(name: str) -> typing.Any:
    if name not in _RAY_DATA:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.ray_data.{name}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
