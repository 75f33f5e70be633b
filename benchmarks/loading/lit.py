"""litdata: chunks written by `optimize` from the same tensors.

One-dimensional tensors are stored without a header, and chunks in a local folder are mapped where they lie: both by
default. Of `batch_decode`, items that are decoded together, the faster setting is taken: the default for small samples
in order, else 0 (with shuffling the default was several times slower). `TokensLoader`, which cuts a chunk into equal
blocks, was no faster. Workers stay from epoch to epoch.
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
    batch_decode = "auto" if task.num_floats < 4_000 and not task.shuffle else 0
    dataset = StreamingDataset(str(task.path("litdata")), shuffle=task.shuffle, batch_decode=batch_decode)
    loader = StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=task.num_workers, persistent_workers=task.num_workers > 0
    )
    return lambda: loader
