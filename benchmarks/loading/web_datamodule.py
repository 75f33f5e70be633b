"""The documented example of bionemo-webdatamodule with another import: dray's `WebDataModule`, which decodes safely."""

from dray.loaders import Split, WebDataModule
from loading.seed import example
from loading.task import Epoch, Task


def loaded(task: Task) -> Epoch:
    """Epochs of the documented example."""
    return example(task, WebDataModule, Split)
