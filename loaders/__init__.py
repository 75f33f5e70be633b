"""Everything that reads a dataset for training: `ShardLoader`, and Lightning DataModules over the same order.

Names are imported at first use, so that a process that needs one of them does not load the rest, such as Lightning.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from dray.loaders.dataset import Dataset
    from dray.loaders.device import to_device
    from dray.loaders.lightning.datamodule import PickledDataWDS, WebDataModule
    from dray.loaders.lightning.loader_stats import LoaderStats
    from dray.loaders.lightning.shard_datamodule import ShardDataModule
    from dray.loaders.loader_metrics import LoaderMetrics
    from dray.loaders.shard_loader import ShardLoader
    from dray.loaders.split import Split

__all__ = [
    "Dataset",
    "LoaderMetrics",
    "LoaderStats",
    "PickledDataWDS",
    "ShardDataModule",
    "ShardLoader",
    "Split",
    "WebDataModule",
    "to_device",
]

_MODULES = {
    "Dataset": "dataset",
    "LoaderMetrics": "loader_metrics",
    "LoaderStats": "lightning.loader_stats",
    "PickledDataWDS": "lightning.datamodule",
    "ShardDataModule": "lightning.shard_datamodule",
    "ShardLoader": "shard_loader",
    "Split": "split",
    "WebDataModule": "lightning.datamodule",
    "to_device": "device",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
