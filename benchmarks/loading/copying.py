"""The yardstick: the same bytes, in the same order, copied into fresh tensors, and nothing else.

One process, whatever the number of workers. The bytes of all samples lie in one file without anything between them,
mapped into memory; for each batch `torch.empty((32, n))` is filled row by row, each row by one numpy assignment from a
view that was made beforehand. With shuffling the order is one that dray's loader gave.
"""

from collections.abc import Iterator

import torch

from loading.shard_loader import transcoded
from loading.task import BATCH, Epoch, Task


def copied(task: Task) -> Epoch:
    """Epochs all in one order."""
    order = [int(number) for batch in transcoded(task)() for number in batch[:, 0]] if task.shuffle else None
    rows = list(task.samples())
    ordered = [rows[number] for number in order or range(task.num_samples)]
    batches = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]

    def epoch() -> Iterator[torch.Tensor]:
        for rows in batches:
            batch = torch.empty((len(rows), task.num_floats))
            into = batch.numpy()
            for number, row in enumerate(rows):
                into[number] = row
            yield batch

    return epoch
