"""Everything that reads a dataset for training: Lightning DataModules over streamed shards."""

from dray.loaders.callback import LoaderStats
from dray.loaders.datamodule import PickledDataWDS, WebDataModule
from dray.loaders.dataset import Dataset
from dray.loaders.device import to_device
from dray.loaders.loader import ShardLoader
from dray.loaders.split import Split

__all__ = ["Dataset", "LoaderStats", "PickledDataWDS", "ShardLoader", "Split", "WebDataModule", "to_device"]
