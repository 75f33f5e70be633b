"""bionemo-webdatamodule: what its DataModule makes of webdataset, in the release that the example is of.

That release is on no package index (1.0.0 there takes other arguments), so its few calls of webdataset are made here,
on the installed webdataset. `.decode()` runs any pickle.
"""

import glob
from enum import Enum, auto
from typing import Any

import webdataset as wds

from loading.seed import example
from loading.task import Epoch, Task


class Split(Enum):
    """The splits."""

    train = auto()
    val = auto()


class WebDataModule:
    """The calls of webdataset that bionemo's DataModule comes to."""

    def __init__(
        self, n_samples: Any, suffix: str, directories: Any, global_batch_size: int, prefix_tars_wds: str,
        pipeline_wds: Any, pipeline_prebatch_wld: Any, kwargs_wds: Any, kwargs_wld: Any,
    ) -> None:  # fmt: skip
        self._n_samples, self._global_batch_size, self._suffix = n_samples, global_batch_size, suffix
        self._tars = {split: f"{directory}/{prefix_tars_wds}-*.tar" for split, directory in directories.items()}
        self._pipeline_wds, self._pipeline_prebatch_wld = pipeline_wds, pipeline_prebatch_wld
        self._kwargs_wds, self._kwargs_wld = kwargs_wds, kwargs_wld

    def setup(self, _: str) -> None:
        """Open both splits."""
        self._datasets = {
            split: wds.WebDataset(sorted(glob.glob(tars)), **self._kwargs_wds[split])
            .decode()
            .extract_keys(f"*.{self._suffix}")
            .compose(*_pipes(self._pipeline_wds[split]))
            for split, tars in self._tars.items()
        }

    def train_dataloader(self) -> Any:
        """Batches of the split."""
        return self._loader(Split.train)

    def val_dataloader(self) -> Any:
        """Batches of the split."""
        return self._loader(Split.val)

    def _loader(self, split: Split) -> Any:
        num_batches = -(-self._n_samples[split] // self._global_batch_size)
        loader = wds.WebLoader(self._datasets[split], batch_size=None, **self._kwargs_wld[split])
        return loader.compose(*_pipes(self._pipeline_prebatch_wld[split])).with_epoch(num_batches)


def _pipes(pipeline: Any) -> list[Any]:
    return pipeline if isinstance(pipeline, list) else [pipeline]


def loaded(task: Task) -> Epoch:
    """Epochs of the documented example."""
    return example(task, WebDataModule, Split)
