"""Says what a write waits for, when nothing has happened for a while: Ray Data waits for CPUs in silence."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from dray.pipelines.events import Waiting, report
from dray.pipelines.progress import say
from dray.pipelines.running.capacity import Capacity
from dray.pipelines.running.dispatch import MOST_NAMED, SILENT_S
from dray.pipelines.running.resources import TaskResources


class Watch:
    """A thread that watches the progress of a write while its context is open.

    Args:
        ray: The module.
        steps: The steps of the pipeline.
        show: Whether to say anything.
        silent_s: Seconds without progress after which it says what is waited for, repeatedly.

    Attributes:
        capacity: Capacity of the cluster.
    """

    def __init__(self, ray: Any, steps: str, *, show: bool, silent_s: float = SILENT_S) -> None:
        self.capacity = Capacity(ray, TaskResources())
        self._steps = steps
        self._silent_s = silent_s
        self._waits = f"rows of {steps}"
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dray-watch", daemon=True)
        self._show = show

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def beat(self) -> None:
        """Note that something has happened."""
        self._last = time.monotonic()

    @contextmanager
    def waiting_for(self, tasks: Sequence[str]) -> Iterator[None]:
        """Names the tasks that are waited for in this context."""
        before = self._waits
        more = f" and {len(tasks) - MOST_NAMED} more" if len(tasks) > MOST_NAMED else ""
        self._waits = ", ".join(tasks[:MOST_NAMED]) + more
        try:
            yield
        finally:
            self._waits = before

    def _run(self) -> None:
        while not self._ended.wait(min(1.0, self._silent_s)):
            if time.monotonic() - self._last >= self._silent_s:
                self._say()
                self.beat()

    def _say(self) -> None:
        reason = f"waiting for {self._waits}: {self.capacity.why_waiting(0)}"
        report(Waiting(reason))
        say(
            f"nothing has come for {self._silent_s:.0f} s: {reason}. Steps that read, and the tasks that store shards, "
            "need a CPU of their own: if an actor pool holds all CPUs, give it fewer actors (concurrency=) or less of "
            "a CPU each (num_cpus=), or add nodes",
            show=self._show,
        )
