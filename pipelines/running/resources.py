"""What each Ray task of a build asks for, set once for everything that runs inside a `with` block."""

import faulthandler
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from dray.shards.errors import CallError


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResources:
    """What a Ray task asks for. The defaults follow the plan: one CPU, and memory by the size of its shards.

    Attributes:
        num_cpus: Number of CPUs of a task; may be a fraction.
        memory_bytes: Bytes of memory to reserve for a task; None: by the plan, at most what the largest node has.
        max_in_flight: Maximum number of tasks sent at a time; None: twice as many as the cluster can run, which grows
            and shrinks with it.
        resources: Custom resource -> amount of it that a task takes.
        labels: Label of a node -> value that it must have: Ray's `label_selector`.
        timeout_s: Maximum run time of one shard in seconds; its worker is then killed and the shard retried. None: no
            limit.

    Raises:
        CallError: A number is not positive.
    """

    num_cpus: float = 1
    memory_bytes: int | None = None
    max_in_flight: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_cpus", "memory_bytes", "max_in_flight", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise CallError(f"{name}={value!r}: expected a number above 0")
        for name, amount in self.resources.items():
            if not amount > 0:
                raise CallError(f"resources: {name}={amount!r}: expected an amount above 0")

    @property
    def options(self) -> dict[str, Any]:
        """The options of Ray's tasks, memory excepted."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus}
        if self.resources:
            options["resources"] = dict(self.resources)
        if self.labels:
            options["label_selector"] = dict(self.labels)
        return options

    def tasks_on(self, node: Mapping[str, float]) -> float:
        """Returns the number of tasks that a node of these resources can run at a time, memory and labels aside."""
        needs = {"CPU": self.num_cpus, **self.resources}
        return min(node.get(name, 0) / amount for name, amount in needs.items())

    def __str__(self) -> str:
        needs = [f"{self.num_cpus:g} CPU", *(f"{amount:g} {name}" for name, amount in self.resources.items())]
        return ", ".join([*needs, *(f"a node with {name}={value}" for name, value in self.labels.items())])


_RESOURCES: ContextVar[TaskResources] = ContextVar("_RESOURCES", default=TaskResources())  # noqa: B039  frozen


@contextmanager
def task_resources(resources: TaskResources) -> Iterator[None]:
    """Ray tasks that are sent inside this context ask for these resources.

        with task_resources(TaskResources(memory_bytes=4 << 30, timeout_s=600)):
            build_dataset(...)

    Tasks of Ray Data and builds by a transform choose their own.
    """
    token = _RESOURCES.set(resources)
    try:
        yield
    finally:
        _RESOURCES.reset(token)


def current_resources() -> TaskResources:
    """Returns what Ray tasks ask for here."""
    return _RESOURCES.get()


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """A function of tasks that ends its process if one task takes too long, wherever it hangs.

    The watchdog is a thread of C: it also ends a process that holds the interpreter's lock, and writes to the worker's
    log where it hung.
    """

    function: Callable[..., Iterable[Any]]
    timeout_s: float

    def __call__(self, shared: Any, tasks: Sequence[Any]) -> Iterator[Any]:
        """Yields the results of the function."""
        self._start()
        try:
            for result in self.function(shared, tasks):
                yield result
                self._start()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _start(self) -> None:
        faulthandler.dump_traceback_later(self.timeout_s, exit=True, file=2)
