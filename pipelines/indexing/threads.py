"""Work on tars, by threads of this process or on Ray."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import BinaryIO, Protocol, TypeVar

from dray.pipelines.indexing.listing import Tar
from dray.pipelines.progress import sample_progress
from dray.pipelines.running.dispatch import Task
from dray.pipelines.running.parcel import Witness
from dray.pipelines.running.tasks import run_tasks, runs_in_process

REPORTED_BYTES = 4 << 20
Job = TypeVar("Job")
AnyTask = TypeVar("AnyTask", bound=Task)
OnRead = Callable[[int], None]
"""Is called with the number of bytes that were read, by several threads."""


class OfTar(Protocol):
    """The result of work on a tar."""

    @property
    def tar(self) -> Tar:
        """The tar."""
        ...


Result = TypeVar("Result", bound=OfTar)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who does the work.

    Attributes:
        address: See `run_tasks`.
        num_threads: Number of tars that this process works on at the same time.
        progress: Whether to show progress on standard error.
    """

    address: str | None
    num_threads: int
    progress: bool

    @property
    def are_here(self) -> bool:
        """Whether they are threads of this process."""
        return runs_in_process(self.address)


def run_each(
    function: Callable[[Job, AnyTask, OnRead | None], Result],
    on_ray: Callable[[Job, Sequence[AnyTask]], Iterable[Result]],
    job: Job,
    tasks: Sequence[AnyTask],
    workers: Workers,
    *,
    title: str,
    witness: Witness | None,
) -> Iterator[Result]:
    """Run a function for each task, and show progress; yields the results as the tasks end. An error stops the others.

    Args:
        function: `function(job, task, on_read)` returns the result of a task.
        on_ray: The same for several tasks in a Ray worker, see `run_tasks`.
        job: What they share.
        tasks: The tasks.
        workers: Who does the work.
        title: What is done, for the progress.
        witness: See `run_tasks`.
    """
    lock = Lock()
    with sample_progress(title, total=len(tasks), unit="tars", show=workers.progress) as advance:

        def count(tars: int, num_bytes: int) -> None:
            with lock:  # threads that read call it as well
                advance(tars, num_bytes)

        if workers.are_here:
            for result in _run_here(function, job, tasks, workers.num_threads, partial(count, 0)):
                count(1, 0)
                yield result
        else:
            for result in run_tasks(on_ray, job, tasks, workers.address, witness=witness, progress=workers.progress):
                count(1, result.tar.num_bytes)
                yield result


def _run_here(
    function: Callable[[Job, AnyTask, OnRead | None], Result],
    job: Job,
    tasks: Sequence[AnyTask],
    num_threads: int,
    on_read: OnRead,
) -> Iterator[Result]:
    stops = False

    def count(num_bytes: int) -> None:
        if stops:
            raise InterruptedError("another tar failed")
        on_read(num_bytes)

    threads = ThreadPoolExecutor(num_threads)
    try:
        for future in as_completed([threads.submit(function, job, task, count) for task in tasks]):
            yield future.result()
    finally:
        stops = True
        threads.shutdown(cancel_futures=True)


class CountedStream:
    """A stream that reports what is read, some megabytes at a time and at its end."""

    def __init__(self, stream: BinaryIO, on_read: OnRead | None) -> None:
        self._stream, self._on_read, self._num_bytes = stream, on_read, 0

    def close(self) -> None:
        """Leaves the stream open: who opened it closes it."""

    @property
    def closed(self) -> bool:
        """Returns whether the stream is closed."""
        return self._stream.closed

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes."""
        data = self._stream.read(size)
        self._num_bytes += len(data)
        if self._on_read is not None and (self._num_bytes >= REPORTED_BYTES or not data):
            self._on_read(self._num_bytes)
            self._num_bytes = 0
        return data
