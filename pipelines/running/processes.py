"""Running tasks in worker processes of this machine, without Ray.

A worker is a fresh Python: a child that is forked from a process with threads may hang, and one that multiprocessing
spawns runs the user's script again.
"""

import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any, TypeVar

from dray.pipelines.events import Retried, report
from dray.pipelines.running.dispatch import Function, Task
from dray.pipelines.running.parcel import Parcel
from dray.shards.errors import ClusterError, StoreError

MAX_RETRIES = 2  # retries of a task whose worker died or whose store failed
STOP_S = 5.0  # seconds for a worker to end
Shared = TypeVar("Shared")
AnyTask = TypeVar("AnyTask", bound=Task)
Result = TypeVar("Result")
_START = "import sys; sys.path[:] = {}; from dray.pipelines.running.processes import serve; serve({})"


def run_in_processes(
    function: Function[Shared, AnyTask, Result], shared: Shared, tasks: Sequence[AnyTask], num_workers: int
) -> Iterator[Result]:
    """Run every task in one of `num_workers` processes; yields their results in the order in which they end.

    Raises:
        ClusterError: A worker died too often.
    """
    parcel = Parcel.of(function, shared, None)
    waiting = iter(tasks)
    workers: SimpleQueue[_Worker] = SimpleQueue()
    started: list[_Worker] = []

    def run(task: AnyTask) -> Any:
        worker = workers.get()
        try:
            return worker.run(task)
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(num_workers) as threads:
        try:
            for _ in range(min(num_workers, len(tasks))):
                started.append(_Worker(parcel))
                workers.put(started[-1])
            flying: set[Future[Any]] = {threads.submit(run, task) for task in islice(waiting, len(started))}
            while flying:
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                flying |= {threads.submit(run, task) for task in islice(waiting, len(done))}
                for future in done:
                    yield future.result()
        finally:
            for worker in started:
                worker.stop()


class _Worker:
    """A process that runs tasks one after another, and a new one if it died."""

    def __init__(self, parcel: Parcel) -> None:
        self._parcel = parcel
        self._is_stopped = False
        self._start()

    def _start(self) -> None:
        self._connection, other = Pipe()
        command = [sys.executable, "-c", _START.format(sys.path, other.fileno())]
        self._process = subprocess.Popen(  # noqa: S603  this Python, with a program of our own
            command, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL
        )
        other.close()
        self._connection.send((self._parcel.body, self._parcel.stores))

    def run(self, task: Task) -> Any:
        """Returns the result of a task; it is retried if its worker dies or its store fails.

        Raises:
            ClusterError: The worker died too often.
        """
        for attempt in range(MAX_RETRIES + 1):
            is_last = attempt == MAX_RETRIES or self._is_stopped
            try:
                self._connection.send_bytes(pickle.dumps([task]))
                outcome = pickle.loads(self._connection.recv_bytes())  # noqa: S301  our own worker's
            except (EOFError, OSError) as exc:
                if is_last:
                    raise ClusterError(
                        f"{task} was not done after {attempt} retries: its worker died with exit code "
                        f"{self._process.wait()}; does it crash, or take too much memory? Run it again: shards already "
                        "stored are kept"
                    ) from exc
                problem = "its worker died"
                self.stop()
                self._is_stopped = False
                self._start()
            else:
                if outcome.error is None:
                    return outcome.results[0]
                if is_last or not (isinstance(outcome.error, StoreError) and outcome.error.is_transient):
                    raise outcome.error
                problem = str(outcome.error)
            report(Retried(str(task), problem))
            task = task.again()
        raise AssertionError

    def stop(self) -> None:
        """End the process, also while it runs a task."""
        self._is_stopped = True
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(descriptor: int) -> None:
    """Run the tasks that come through a connection, until it ends: the main function of a worker."""
    import signal

    from dray.pipelines.running.worker import run_group

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes of a terminal; the driver stops this one
    connection = Connection(descriptor)
    body, stores = connection.recv()
    while True:
        try:
            tasks = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(pickle.dumps(run_group(body, stores, tasks)))
