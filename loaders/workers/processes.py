"""torch's DataLoader workers with a watchdog: a stuck worker is named, and shutdown is immediate.

torch checks every few seconds whether the worker that it waits for is dead; the watchdog counts these checks.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dray.loaders.compat import LoaderIterator, WorkersIterator, forget_executor_threads, remove_worker_pids
from dray.loaders.workers.portable import Portable
from dray.loaders.workers.spawning import check_main
from dray.shards.errors import CallError

MESSAGES_AHEAD = 2  # number of messages that each worker prepares ahead
CHECK_S = 5.0  # seconds between two checks while waiting for a worker
WARN_S = 60.0


@dataclass(slots=True)
class Watchdog:
    """Limits the wait for a worker's message.

    Attributes:
        timeout_s: Timeout in seconds; 0: none.
        warn_s: Seconds before one warning.
        what: Who waits for what, for messages.
        waited_s: Seconds since the last message.
    """

    timeout_s: float
    warn_s: float = WARN_S
    what: str = ""
    waited_s: float = 0.0
    _has_warned: bool = False

    @property
    def check_s(self) -> float:
        """Seconds until the next check."""
        return min(CHECK_S, self.warn_s, self.timeout_s or CHECK_S)

    def wait(self, process_ids: Mapping[int, int | None]) -> None:
        """Count a check that found no message.

        Args:
            process_ids: Process id of each worker that may be stuck.

        Raises:
            RuntimeError: `timeout_s` has passed.
        """
        self.waited_s += self.check_s
        is_late = 0 < self.timeout_s <= self.waited_s
        if not is_late and (self._has_warned or self.waited_s < self.warn_s):
            return
        named = " or ".join(f"worker {worker} (process {process})" for worker, process in process_ids.items())
        message = (
            f"{self.what}: nothing came from {named} for {self.waited_s:.0f} s: it is stuck or slow, in storage, in "
            f"your code or at a lock; `py-spy dump --pid {next(iter(process_ids.values()))}` shows where"
        )
        if is_late:
            raise RuntimeError(f"{message}. If it is only slow, give it a longer timeout")
        self._has_warned = True
        warnings.warn(message, stacklevel=2)


class TorchLoader(DataLoader[Any]):
    """torch's DataLoader with a one-sentence error where workers cannot be spawned."""

    def _get_iterator(self) -> LoaderIterator:
        if self.num_workers:
            check_main(self.multiprocessing_context)
        return super()._get_iterator()


class WorkerProcesses(TorchLoader):
    """Iterates over the messages of worker processes, which are persistent by default.

    Args:
        source: Dataset that each of them iterates over.
        num_workers: Number of processes, at least 1.
        options: Keyword arguments of torch's DataLoader; `worker_init_fn` may be a lambda.

    Attributes:
        watchdog: Limits the waits; the caller sets its `what`.

    Raises:
        CallError: `timeout` is less than 0.
    """

    def __init__(self, source: IterableDataset[Any], num_workers: int, options: Mapping[str, Any]) -> None:
        given = {"persistent_workers": True, "prefetch_factor": MESSAGES_AHEAD, **options}
        self.watchdog = Watchdog(given.pop("timeout", None) or 0.0)
        if self.watchdog.timeout_s < 0:
            raise CallError(f"timeout {self.watchdog.timeout_s}: expected seconds to wait for a worker, 0 for no limit")
        given["worker_init_fn"] = Portable(partial(forget_threads, also=given.get("worker_init_fn")))
        super().__init__(source, batch_size=None, collate_fn=_as_it_is, num_workers=num_workers, **given)

    def _get_iterator(self) -> "_Messages":
        check_main(self.multiprocessing_context)
        return _Messages(self, self.watchdog)

    @property
    def are_alive(self) -> bool:
        """Whether no worker has died since the first pass began."""
        return self._iterator is None or all(worker.is_alive() for worker in self._iterator._workers)  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the processes now, not when they are garbage-collected."""
        if self._iterator is not None:
            with suppress(RuntimeError):  # torch reports a worker's death again when another one ends
                self._iterator._shutdown_workers()  # type: ignore[attr-defined]


class _Messages(WorkersIterator):
    """torch's iterator; it calls `_try_get_data` again and again while it waits."""

    def __init__(self, loader: WorkerProcesses, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._process = os.getpid()
        super().__init__(loader)

    def _try_get_data(self, timeout: float = CHECK_S) -> Any:  # noqa: ARG002
        try:
            found = super()._try_get_data(self._watchdog.check_s)  # type: ignore[no-untyped-call]
        except (ConnectionError, EOFError) as exc:  # a worker died while it sent: torch may still take it for alive
            wait([worker.sentinel for worker in self._workers], timeout=CHECK_S)
            dead = [worker.pid for worker in self._workers if not worker.is_alive()]
            raise RuntimeError(f"DataLoader worker (pid(s) {', '.join(map(str, dead))}) exited unexpectedly") from exc
        if found[0]:
            self._watchdog.waited_s = 0.0
        else:
            turn = self._task_info.get(self._rcvd_idx)  # none while all workers start a pass
            workers = range(len(self._workers)) if turn is None else [turn[0]]
            self._watchdog.wait({worker: self._workers[worker].pid for worker in workers})
        return found

    def _shutdown_workers(self) -> None:
        if self._process == os.getpid():
            super()._shutdown_workers()
        elif self._worker_pids_set:  # a forked child's copy must not end its parent's workers, only forget them
            self._worker_pids_set = False
            remove_worker_pids(id(self))


def tell_rank(rank: int, num_ranks: int) -> None:
    """Set RANK and WORLD_SIZE for the user's and webdataset's code in a worker, which is in no process group."""
    if get_worker_info() is not None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks))


def forget_threads(worker: int, also: Callable[[int], Any] | None = None) -> None:
    """Keep a forked worker from joining the trainer's threads when it ends, as it does not have them.

    If the trainer's loader runs in such a thread, as with `to_device`, the worker would join its own main thread.
    """
    forget_executor_threads()
    if also is not None:
        also(worker)


def _as_it_is(message: Any) -> Any:
    return message
