"""What running work reports to observers in its own process: the driver of a build, an index, a copy or a check.

Progress on a terminal, the record of a job, metrics and logs all follow from these events. Workers report nothing:
their results reach the driver, which does.
"""

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Began:
    """A stage has begun. Stages may overlap.

    Attributes:
        stage: What is done, such as "packing wdshards".
        total: Number of units to do; None if unknown.
        unit: Their name, in plural, such as "shards".
    """

    stage: str
    total: int | None
    unit: str


@dataclass(frozen=True, slots=True)
class Advanced:
    """Units of a stage were done.

    Attributes:
        stage: Title of the stage.
        count: Number of units that were done since the last event.
        num_bytes: Bytes that were stored, or read where nothing is stored, since the last event.
    """

    stage: str
    count: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A stage has ended, by an error too."""

    stage: str


@dataclass(frozen=True, slots=True)
class Retried:
    """A task failed and is sent again.

    Attributes:
        task: Its description, such as "shard 7 (tensor.0..tensor.9)".
        problem: Why it failed.
    """

    task: str
    problem: str


@dataclass(frozen=True, slots=True)
class LostNode:
    """A node of the Ray cluster has died or was removed.

    Attributes:
        node: Its address and the start of its id.
    """

    node: str


@dataclass(frozen=True, slots=True)
class FoundBad:
    """Inputs cannot be packed.

    Attributes:
        count: Number of inputs.
    """

    count: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing has been done for a while; the next event other than this one ends the wait.

    Attributes:
        reason: What is waited for, and why.
    """

    reason: str


Event = Began | Advanced | Ended | Retried | LostNode | FoundBad | Waiting
Observer = Callable[[Event], None]
"""Is called at once with each event, by any thread of the driver: it must be quick, be safe in threads, and not raise.
"""

_observers: tuple[Observer, ...] = ()


def report(event: Event) -> None:
    """Pass an event to all observers."""
    for observer in _observers:
        observer(event)


def report_bad(inputs: Sized) -> None:
    """Report inputs that cannot be packed, if there are any."""
    if inputs:
        report(FoundBad(len(inputs)))


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Work of this process, in any thread, reports to an observer in this context."""
    global _observers
    _observers = (*_observers, observer)
    try:
        yield
    finally:
        _observers = tuple(other for other in _observers if other is not observer)


@contextmanager
def stage(title: str, *, total: int | None, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Reports the begin and the end of a stage; yields a function to call with units done and bytes stored."""
    report(Began(title, total, unit))
    try:
        yield lambda count, num_bytes: report(Advanced(title, count, num_bytes))
    finally:
        report(Ended(title))
