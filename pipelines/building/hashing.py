"""Reading input files for their checksums, many in each task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.building.job import TASK_BYTES
from dray.pipelines.inputs.reading import check_unread, unhashed
from dray.pipelines.inputs.sources import Sources, hash_files
from dray.pipelines.progress import say
from dray.pipelines.running.node import node_name
from dray.pipelines.running.tasks import run_tasks, runs_in_process
from dray.shards.messages import counted
from dray.shards.storage.store import Store

HASH_FILES = 5000  # maximum number of files of a task
HASH_BYTES = 256 << 20  # target number of bytes of a task


@dataclass(frozen=True, slots=True, eq=False)
class _HashTask:
    first: int  # row of its first sample
    sources: Sources

    @property
    def num_bytes(self) -> int:
        return int(self.sources.sizes.clip(min=0).sum())

    @property
    def memory_bytes(self) -> int:
        return int(self.sources.sizes.max()) + TASK_BYTES

    def again(self) -> "_HashTask":
        return self

    def __str__(self) -> str:
        return f"reading samples {self.sources.names[0]!r} to {self.sources.names[-1]!r}"


def _hash_tasks(inputs: Store, tasks: Sequence[_HashTask]) -> Iterator[tuple[int, NDArray[np.uint64], str]]:
    for task in tasks:
        yield task.first, hash_files(inputs, task.sources), node_name()


def hash_contents(
    inputs: Store, sources: Sources, why: str, *, address: str | None, progress: bool
) -> NDArray[np.uint64]:
    """Returns (n, s) xxh3_64 of each file; 0 if it cannot be read, or is absent.

    Args:
        inputs: The store of the samples.
        sources: The n samples, each with s files.
        why: Why they are read, for the progress message.
        address: See `run_tasks`.
        progress: Whether to show progress on standard error.
    """
    hashes = np.zeros(sources.sizes.shape, np.uint64)
    if not len(sources):
        return hashes
    num_bytes = sources.sizes.clip(min=0).sum(axis=1)
    say(f"{counted(len(sources), 'sample')} {why}: reading {int(num_bytes.sum()) / 1e6:,.0f} MB", show=progress)
    ends = np.cumsum(num_bytes)
    group = np.maximum(ends // HASH_BYTES, np.arange(len(sources)) // HASH_FILES)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    groups = np.split(np.arange(len(sources)), starts[1:])
    tasks = [_HashTask(int(rows[0]), sources.take(rows)) for rows in groups]
    for first, found, node in run_tasks(_hash_tasks, inputs, tasks, address, progress=progress):
        hashes[first : first + len(found)] = found
        if not runs_in_process(address):
            read = sources.take(np.arange(first, first + len(found)))
            check_unread(inputs, read, unhashed(read, found), node)
    return hashes
