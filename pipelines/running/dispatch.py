"""Sending the tasks of a build to a Ray cluster: in groups, in a bounded window, with a few retries each.

Ray's own retries are off: they are unlimited after an out-of-memory kill, reserve no more memory, and cannot know that
a shard that an earlier attempt stored need not be packed again.
"""

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Generic, Protocol, Self, TypeVar

from dray.pipelines.events import Retried, Waiting, report
from dray.pipelines.inputs.reading import credentials_hint
from dray.pipelines.progress import say
from dray.pipelines.running.capacity import LOOK_EVERY_S, Capacity, nodes_with_cpus, rounded
from dray.pipelines.running.entry import make_entry
from dray.pipelines.running.node import identity
from dray.pipelines.running.pace import Pace
from dray.pipelines.running.parcel import Parcel
from dray.pipelines.running.resources import current_resources
from dray.shards.errors import ClusterError, DeniedError, StoreError

MAX_RETRIES = 4  # retries of a task whose worker or node died, or whose store failed
SILENT_S = 30.0  # seconds without a finished task after which the driver says what it waits for, repeatedly
CALL_OFF_S = 1.0  # timeout for tasks in flight to end: `ray job stop` waits 3 s for the whole process
CHECK_S = 60.0  # timeout for the nodes to report their dray; tasks report it as well
MOST_NAMED = 3  # maximum number of tasks that a message names


class Task(Protocol):
    """A piece of work that is safe to run twice."""

    @property
    def num_bytes(self) -> int:
        """Number of bytes that it reads."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Maximum number of bytes of memory that it needs."""
        ...

    def again(self) -> Self:
        """Returns the task for another attempt, which first looks for what an earlier one has stored."""
        ...


Shared = TypeVar("Shared")
AnyTask = TypeVar("AnyTask", bound=Task)
Result = TypeVar("Result")
Function = Callable[[Shared, Sequence[AnyTask]], Iterable[Result]]


@dataclass(frozen=True, slots=True)
class Try(Generic[AnyTask]):
    """A task, and the number of its failed attempts."""

    task: AnyTask
    memory_bytes: int
    num_failed: int = 0

    @property
    def num_bytes(self) -> int:
        """Number of bytes that the task reads."""
        return self.task.num_bytes

    def again(self) -> "Try[AnyTask]":
        """Returns the next attempt."""
        return replace(self, task=self.task.again(), num_failed=self.num_failed + 1)


class Dispatch(Generic[AnyTask, Result]):
    """The tasks of one call, from sending to results.

    Attributes:
        task_seconds: Total run time of the groups that have ended.
    """

    def __init__(self, ray: Any, parcel: Parcel, name: str, tasks: Sequence[AnyTask], *, progress: bool) -> None:
        self.task_seconds = 0.0
        self._ray = ray
        self._resources = current_resources()
        self._sender = Sender(ray, parcel, name, self._resources.options)
        self._capacity, self._pace = Capacity(ray, self._resources), Pace()
        self._fresh = deque(Try(task, self._resources.memory_bytes or task.memory_bytes) for task in tasks)
        self._failed: deque[Try[AnyTask]] = deque()
        self._flying: dict[Any, list[Try[AnyTask]]] = {}
        self._progress = progress

    def results(self) -> Iterator[Result]:
        """Run all tasks; yields their results as they end.

        Raises:
            ClusterError: A node is unfit, or a task was lost too often; names it.
        """
        try:
            while self._send():
                for reference in self._wait():
                    yield from self._settle(self._flying.pop(reference), reference)
        finally:
            call_off(self._ray, list(self._flying))  # after an error or an interrupt

    def _send(self) -> bool:
        """Fill the window; returns whether any task is in flight."""
        window = self._capacity.window
        while len(self._flying) < window and (self._failed or self._fresh):
            group = [self._failed.popleft()] if self._failed else self._pace.take(self._fresh, window)
            self._flying[self._sender.send([one.task for one in group], self._memory_of(group))] = group
        return bool(self._flying)

    def _memory_of(self, group: Sequence[Try[AnyTask]]) -> int:
        """Returns bytes for two tasks, as one shard is stored while the next is filled; at most the largest node's.

        Bytes that were asked for are those of the group, and stay as they are: a larger node may join.
        """
        if self._resources.memory_bytes:
            return max(one.memory_bytes for one in group)
        wanted = rounded(sum(sorted(one.memory_bytes for one in group)[-2:]))
        return min(wanted, self._capacity.largest_bytes or wanted)

    def _wait(self) -> list[Any]:
        """Returns the groups that have ended; none after `SILENT_S`, once a message says what is waited for."""
        started = time.monotonic()
        while time.monotonic() - started < SILENT_S:
            flying = list(self._flying)
            done, _ = self._ray.wait(flying, num_returns=1, timeout=min(LOOK_EVERY_S, SILENT_S))
            if done:
                return list(self._ray.wait(flying, num_returns=len(flying), timeout=0)[0])
            if self._capacity.window > len(flying) and (self._failed or self._fresh):
                self._send()
        self._say_what_is_waited_for()
        return []

    def _say_what_is_waited_for(self) -> None:
        tries = list(chain.from_iterable(self._flying.values()))
        named = ", ".join(str(one.task) for one in tries[:MOST_NAMED])
        more = f" and {len(tries) - MOST_NAMED} more" if len(tries) > MOST_NAMED else ""
        memory = max(self._memory_of(group) for group in self._flying.values())
        reason = f"waiting for {named}{more}: {self._capacity.why_waiting(memory)}"
        report(Waiting(reason))
        say(
            f"nothing has finished for {SILENT_S:.0f} s: {reason}. To work without Ray: address='none'",
            show=self._progress,
        )

    def _settle(self, group: list[Try[AnyTask]], reference: Any) -> Iterator[Result]:
        """Yield the results of a group; tasks without one are retried, or raise."""
        errors = self._ray.exceptions
        try:
            node, problem, outcome = self._ray.get(reference)
        except errors.OutOfMemoryError:
            self._failed.extend(self._with_more_memory(one) for one in group)
            return
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as exc:
            raise ClusterError(f"{group[0].task} could not be started: {exc}") from exc
        except errors.RayError as exc:
            self._failed.extend(after_death(one, exc, self._resources.timeout_s) for one in group)
            return
        check_fit(node, problem)
        self._pace.record(group[: len(outcome.results)], outcome.seconds)
        self.task_seconds += outcome.seconds
        yield from outcome.results
        if outcome.error is not None:
            left = group[len(outcome.results) :]
            self._failed.extend(after_error(one, outcome.error, outcome.node) for one in left)

    def _with_more_memory(self, one: Try[AnyTask]) -> Try[AnyTask]:
        """Returns another attempt with twice the memory reserved, so that fewer tasks share a node.

        Raises:
            ClusterError: It had all the memory of the largest node.
        """
        largest = self._capacity.largest_bytes
        if one.memory_bytes >= largest:
            raise ClusterError(
                f"{one.task} was killed for lack of memory although {largest / 1e9:.1f} GB, all that the largest node "
                "offers, were reserved for it: make more and smaller shards, or use nodes with more memory; then run "
                "it again: shards already stored are kept"
            )
        memory = min(2 * one.memory_bytes, largest)
        report(Retried(str(one.task), "it was killed for lack of memory"))
        say(
            f"{one.task} was killed for lack of memory: once more with {memory / 1e9:.1f} GB reserved",
            show=self._progress,
        )
        return replace(one.again(), memory_bytes=memory, num_failed=one.num_failed)


class Sender:
    """Sends groups of tasks; Ray's options are built once for each size of memory.

    Args:
        ray: The module.
        parcel: What all tasks share.
        name: Name of the tasks.
        options: Further options of Ray's tasks, such as `num_cpus`.
    """

    def __init__(self, ray: Any, parcel: Parcel, name: str, options: Mapping[str, Any] | None = None) -> None:
        self._remote = ray.remote(make_entry())
        self._name, self._options = name, options or {}
        self._body = parcel.body if len(parcel.body) <= _INLINE_BYTES else ray.put(parcel.body)
        self._stores = parcel.stores
        self._by_memory: dict[int, Any] = {}

    def send(self, tasks: Sequence[Task], memory_bytes: int, *blocks: Any) -> Any:
        """Send one group; returns the reference of its outcome.

        Args:
            tasks: The group.
            memory_bytes: Bytes of memory to reserve.
            blocks: References of blocks that the function gets; the task runs where most of their bytes are.
        """
        if memory_bytes not in self._by_memory:
            defaults = {
                "num_cpus": 1,
                "memory": memory_bytes or None,
                "scheduling_strategy": "DEFAULT" if blocks else "SPREAD",
            }
            options = {**defaults, **self._options, "max_retries": 0, "name": self._name}
            self._by_memory[memory_bytes] = self._remote.options(**options)
        return self._by_memory[memory_bytes].remote(identity(), self._body, self._stores, pickle.dumps(tasks), *blocks)


_INLINE_BYTES = 64 << 10  # Ray puts larger arguments into its object store


def check_nodes(ray: Any) -> None:
    """Check that the nodes that can run tasks have the dray of this process, before anything is written.

    Raises:
        ClusterError: A node has another dray, or none; names the node and says what to do.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(make_entry())
    asked = [
        remote.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(identity(), b"", b"", b"")
        for node in nodes_with_cpus(ray)
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=CHECK_S) if asked else ([], [])
    for reference in answered:
        with suppress(ray.exceptions.RayError):  # it died or has no room: its tasks report it
            node, problem, _ = ray.get(reference)
            check_fit(node, problem)


def check_fit(node: str, problem: str) -> None:
    """Check that a node has the dray of this process.

    Raises:
        ClusterError: It does not; names the node and says what to do.
    """
    if problem:
        raise ClusterError(
            f"node {node} {problem}; this process has {identity()}. All nodes need the same: install it there, or let "
            "Ray ship it, as dray submit does (runtime_env={'py_modules': [folder of dray]})"
        )


def after_death(one: Try[AnyTask], exc: Exception, timeout_s: float | None = None) -> Try[AnyTask]:
    """Returns another attempt of a task whose worker or node died.

    Raises:
        ClusterError: It was the last one.
    """
    limit = "" if timeout_s is None else f", or hang? It is stopped after its time limit of {timeout_s:g} s"
    if one.num_failed >= MAX_RETRIES:
        raise ClusterError(
            f"{one.task} was not done after {MAX_RETRIES} retries: {type(exc).__name__}: {str(exc).splitlines()[0]}; "
            f"does it crash its worker, or take more memory than the node has{limit}? Run it again: shards "
            "already stored are kept"
        ) from exc
    report(Retried(str(one.task), f"its worker or node died ({type(exc).__name__})"))
    return one.again()


def after_error(one: Try[AnyTask], error: Exception, node: str) -> Try[AnyTask]:
    """Returns another attempt of a task whose store failed; raises any other error, and the last one."""
    if isinstance(error, DeniedError):
        raise DeniedError(f"{error}; {credentials_hint(node)}") from None
    is_transient = isinstance(error, StoreError) and error.is_transient
    if not is_transient or one.num_failed >= MAX_RETRIES:
        raise error
    report(Retried(str(one.task), str(error)))
    return one.again()


def call_off(ray: Any, references: list[Any]) -> None:
    """Let short tasks end, and cancel long ones, the last sent first.

    Ray 2.60 may abort this process when it cancels a task that is just being started or ending.
    """
    if references:
        _, running = ray.wait(references, num_returns=len(references), timeout=CALL_OFF_S)
        for reference in reversed(running):
            ray.cancel(reference)
