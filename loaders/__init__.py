"""Everything that reads a dataset for training: the native loader, and Lightning DataModules over the same order.

Names are imported when they are first asked for: a task that packs needs the safe unpickler, not Lightning.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from dray.loaders.callback import LoaderStats
    from dray.loaders.datamodule import PickledDataWDS, WebDataModule
    from dray.loaders.dataset import Dataset
    from dray.loaders.device import to_device
    from dray.loaders.loader import ShardLoader
    from dray.loaders.shard_datamodule import ShardDataModule
    from dray.loaders.split import Split

__all__ = [
    "Dataset",
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
    "LoaderStats": "callback",
    "PickledDataWDS": "datamodule",
    "ShardDataModule": "shard_datamodule",
    "ShardLoader": "loader",
    "Split": "split",
    "WebDataModule": "datamodule",
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
