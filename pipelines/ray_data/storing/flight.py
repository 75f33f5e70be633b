"""Tasks on blocks in a bounded window, with a few retries each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from dray.pipelines.ray_data.storing.tasks import RowTask
from dray.pipelines.ray_data.storing.watch import Watch
from dray.pipelines.running.capacity import LOOK_EVERY_S
from dray.pipelines.running.dispatch import Sender, Try, after_death, after_error, call_off, check_fit
from dray.pipelines.running.parcel import Parcel, Witness
from dray.shards.errors import ClusterError

Result = TypeVar("Result")


class Flight(Generic[Result]):
    """The tasks of one function that are in flight.

    Args:
        ray: The module.
        function: `function(job, [task], sources, *blocks)` yields the task's result.
        job: What all tasks share.
        witness: See `run_tasks`.
        sources: Reference of the table of sources.
        watch: Says what is waited for.
        concurrency: Maximum number of tasks in flight; None: twice the CPUs.
        options: Further options of Ray's tasks.

    Attributes:
        results: Number of a task -> its result.
        on_result: Called with each result.
    """

    def __init__(
        self,
        ray: Any,
        function: Callable[..., Iterable[Result]],
        job: Any,
        witness: Witness,
        *,
        sources: Any,
        watch: Watch,
        concurrency: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.results: dict[int, Result] = {}
        self.on_result: Callable[[Result], object] = lambda _: None
        self._ray = ray
        self._sender = Sender(ray, Parcel.of(function, job, witness), f"dray.{function.__name__}", options)
        self._concurrency = concurrency
        self._capacity = watch.capacity
        self._sources, self._watch = sources, watch
        self._flying: dict[Any, tuple[Try[RowTask], Sequence[Any]]] = {}

    def send(self, task: RowTask, blocks: Sequence[Any]) -> None:
        """Send a task, once the window has room.

        Raises:
            ClusterError: A node is unfit, or a task was lost too often; names it.
            DrayError: Another task failed.
        """
        while len(self._flying) >= (self._concurrency or self._capacity.window):
            self._settle()
        self._send(Try(task, 0), blocks)

    def finish(self) -> dict[int, Result]:
        """Wait for all tasks; returns the results."""
        while self._flying:
            self._settle()
        return self.results

    def pop(self, number: int) -> Result:
        """Wait for the result of a task, and forget it."""
        while number not in self.results:
            self._settle()
        return self.results.pop(number)

    def call_off(self) -> None:
        """Cancel what is in flight."""
        call_off(self._ray, list(self._flying))

    def _send(self, one: Try[RowTask], blocks: Sequence[Any]) -> None:
        self._flying[self._sender.send([one.task], one.memory_bytes, self._sources, *blocks)] = one, blocks

    def _settle(self) -> None:
        """Wait for a task that ends, at least; failed ones are sent again."""
        named = [str(one.task) for one, _ in self._flying.values()]
        with self._watch.waiting_for(named):
            flying = list(self._flying)
            done: list[Any] = []
            while not done:
                done, _ = self._ray.wait(flying, num_returns=1, timeout=LOOK_EVERY_S)
        for reference in self._ray.wait(flying, num_returns=len(flying), timeout=0)[0]:
            self._take(reference, *self._flying.pop(reference))

    def _take(self, reference: Any, one: Try[RowTask], blocks: Sequence[Any]) -> None:
        errors = self._ray.exceptions
        try:
            node, problem, outcome = self._ray.get(reference)
        except errors.RuntimeEnvSetupError as exc:
            raise ClusterError(f"{one.task} could not be started: {exc}") from exc
        except errors.RayTaskError:  # a block could not be made again
            raise
        except errors.RayError as exc:
            self._send(after_death(one, exc), blocks)
            return
        check_fit(node, problem)
        if outcome.error is not None:
            self._send(after_error(one, outcome.error, outcome.node), blocks)
            return
        self.results[one.task.number] = outcome.results[0]
        self.on_result(outcome.results[0])
        self._watch.beat()
