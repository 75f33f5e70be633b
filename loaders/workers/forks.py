"""Checks where a loader is iterated over: not across a fork, and not in several workers of torch's DataLoader.

A forked child has none of its parent's threads, and the parent's worker processes serve the parent alone.
"""

import multiprocessing
import os

from torch.utils.data import get_worker_info

from dray.shards.errors import CallError


def check_process(process: int) -> None:
    """Refuse to continue an iterator that was begun in another process, from which this one was forked.

    Raises:
        CallError: `process` is not the current process.
    """
    if process != os.getpid():
        raise CallError(
            f"this iterator was begun in process {process}, from which this one ({os.getpid()}) was forked without its "
            "threads and workers; call iter() on the loader again to begin one here"
        )


def check_worker(num_workers: int, name: str) -> None:
    """Refuse to begin an epoch in a worker of torch's DataLoader that is not alone, or that would need workers itself.

    Args:
        num_workers: The loader's own number of workers.
        name: How `num_workers` is passed to the loader, for the message.

    Raises:
        CallError: Every sample would be yielded several times, or the workers could not be started.
    """
    worker = get_worker_info()
    if worker is not None and worker.num_workers > 1:
        raise CallError(
            f"this loader runs in each of {worker.num_workers} workers of a torch DataLoader, so that every sample "
            f"would come {worker.num_workers} times: give the number of workers to the loader itself, {name}, and "
            "iterate over it without a DataLoader, or with one of num_workers=0"
        )
    if num_workers and multiprocessing.current_process().daemon:
        raise CallError(
            f"num_workers={num_workers}: this process is daemonic, as workers of a torch DataLoader are, and may not "
            "start processes: use num_workers=0 here"
        )
