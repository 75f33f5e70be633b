"""Measuring in a process of its own: how long something takes, and how much memory it has at most meanwhile."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEAK = "VmHWM:"  # the line of /proc/self/status with the peak of the resident set


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One step.

    Attributes:
        what: Name of the step.
        seconds: Its duration.
        peak_bytes: Peak resident memory of the process during the step.
        result: What the step returned; None if nothing is kept.
    """

    what: str
    seconds: float
    peak_bytes: int
    result: Any = None


class Stopwatch:
    """Measures consecutive steps of one process, each with its own peak of memory where the system tells it (Linux)."""

    def __init__(self) -> None:
        self.steps: list[Measured] = []
        self._begin()

    def step(self, what: str) -> None:
        """End the step that began when the last one ended."""
        seconds = time.perf_counter() - self._started
        self.steps.append(Measured(what=what, seconds=seconds, peak_bytes=_peak_bytes()))
        self._begin()

    def _begin(self) -> None:
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
        self._started = time.perf_counter()


def measure(function: Callable[..., Any], *arguments: object) -> Measured:
    """Returns how long a function of a script takes in a fresh process, without its start, and what it returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dray.pipelines", "__main__"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, *arguments))
    process.start()
    sender.close()
    found: Measured = receiver.recv()
    process.join()
    return found


def _run(sender: Any, function: Callable[..., Any], *arguments: object) -> None:
    started = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - started
    sender.send(Measured(what=function.__name__, seconds=seconds, peak_bytes=_peak_bytes(), result=result))


def _peak_bytes() -> int:
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(PEAK))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
