"""MosaicML streaming: MDS shards with `ndarray` columns.

Dtype and shape stand in the column's type, which is its fast form; shards are neither compressed nor hashed. Workers
stay from epoch to epoch.
"""

import torch
from torch.utils.data import DataLoader

from loading.task import BATCH, Epoch, Task

try:
    import torchvision  # noqa: F401  streaming imports it for its classes of images
except RuntimeError:  # PyPI's is built for CUDA, and finds its operators missing where torch is not
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory


def write(task: Task) -> None:
    """Shards of 64 MiB, its default."""
    columns = {"x": f"ndarray:float32:{task.num_floats}"}
    with MDSWriter(out=str(task.path("mosaic")), columns=columns) as writer:
        for sample in task.samples():
            writer.write({"x": sample})


def loaded(task: Task) -> Epoch:
    """Epochs of its dataset."""
    clean_stale_shared_memory()  # of the last task: it refuses to read a folder twice
    dataset = StreamingDataset(local=str(task.path("mosaic")), batch_size=BATCH, shuffle=task.shuffle)
    loader = DataLoader(
        dataset, batch_size=BATCH, num_workers=task.num_workers, persistent_workers=task.num_workers > 0
    )
    return lambda: (batch["x"] for batch in loader)
