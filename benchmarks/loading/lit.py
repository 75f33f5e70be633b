"""litdata: chunks written by `optimize` from the same tensors.

Its defaults are its fast path here: one-dimensional tensors are stored without a header, and chunks in a local folder
are mapped where they lie. Workers stay from epoch to epoch.
"""

from functools import partial

from litdata import StreamingDataLoader, StreamingDataset, optimize

from loading.task import BATCH, Epoch, Task


def write(task: Task) -> None:
    """Chunks of 64 MB, as its documentation has them."""
    optimize(
        partial(Task.tensor, task),
        inputs=list(range(task.num_samples)),
        output_dir=str(task.path("litdata")),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def loaded(task: Task) -> Epoch:
    """Epochs of its loader."""
    dataset = StreamingDataset(str(task.path("litdata")), shuffle=task.shuffle)
    loader = StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=task.num_workers, persistent_workers=task.num_workers > 0
    )
    return lambda: loader
