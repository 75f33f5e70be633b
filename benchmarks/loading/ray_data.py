"""Ray Data: `iter_torch_batches` over .npy files that hold many samples each.

`read_webdataset` refuses pickles and decodes each member in Python; of the forms that keep tensors as they are, .npy
files were faster here than uncompressed Parquet with a column of tensors. Ray Data always reads in tasks of its own:
"0 workers" give it one CPU, "2 workers" two.
"""

import numpy as np
import ray

from loading.task import BATCH, Epoch, Task

FILE_BYTES = 16_000_000


def write(task: Task) -> None:
    """Files of some megabytes, a row a sample."""
    task.path("ray").mkdir()
    rows = max(BATCH, FILE_BYTES // (4 * task.num_floats))
    for first in range(0, task.num_samples, rows):
        np.save(task.path("ray") / f"{first:07d}.npy", task.samples()[first : first + rows])


def loaded(task: Task) -> Epoch:
    """Epochs of its iterator; shuffled by files, then in a buffer of 32 batches."""
    ray.shutdown()  # of the last task
    ray.init("local", num_cpus=max(1, task.num_workers), include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_numpy(str(task.path("ray")), shuffle="files" if task.shuffle else None)
    buffer = 32 * BATCH if task.shuffle else None
    return lambda: (
        batch["data"]
        for batch in dataset.iter_torch_batches(batch_size=BATCH, prefetch_batches=4, local_shuffle_buffer_size=buffer)
    )
