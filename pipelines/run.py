"""Running the tasks of a build: in process, or on a Ray cluster with one task a shard.

The same `pack_shard` runs in both, so both give the same bytes. No sample's bytes pass through the driver: it sends
names and fingerprints and gets back small records.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, TypeVar

from dray.pipelines.fill import fill_shard
from dray.pipelines.job import PackedShard, PackJob, PackTask
from dray.pipelines.pack import adopt_shard, pack_shard, store_shard
from dray.pipelines.progress import say
from dray.pipelines.session import IN_PROCESS, ray_session
from dray.shards.errors import ClusterError, StoreError

MAX_RETRIES = 4  # of a task whose worker or node died, or whose store failed
SILENT_S = 30.0  # after so long without a finished task the driver says what it waits for
CALL_OFF_S = 10.0  # at most, for tasks that are cancelled to end
TASKS_PER_CPU = 2  # in flight: one runs, one waits at hand


class Task(Protocol):
    """What a task must tell to be sent out."""

    @property
    def memory_bytes(self) -> int:
        """What it takes at most."""
        ...


Shared = TypeVar("Shared")
AnyTask = TypeVar("AnyTask", bound=Task)
Result = TypeVar("Result")


def pack_tasks(
    job: PackJob, tasks: Sequence[PackTask], address: str | None, *, progress: bool
) -> Iterator[PackedShard]:
    """Pack every task's shard; yields records as shards are stored. For `address` see `run_tasks`."""
    if runs_in_process(address):
        return _pack_in_process(job, tasks)
    return run_tasks(pack_shard, job, tasks, address, progress=progress)


def run_tasks(
    function: Callable[[Shared, AnyTask], Result],
    shared: Shared,
    tasks: Sequence[AnyTask],
    address: str | None,
    *,
    progress: bool,
) -> Iterator[Result]:
    """Call a function for every task; yields what it returns, on Ray in the order in which they end.

    Args:
        function: Of what the tasks share and one task. It runs more than once where a worker dies.
        shared: Sent to every worker once.
        tasks: What to do.
        address: Of a Ray cluster; `local` starts one for this call; `none` works in process; None uses Ray where
            this process is a driver that is connected to it already, and works in process elsewhere: inside a Ray
            task or actor too, whose group may hold every CPU.
        progress: Whether to say what is waited for.
    """
    if not tasks:
        return iter(())
    if runs_in_process(address):
        return (function(shared, task) for task in tasks)
    return _run_on_ray(function, shared, tasks, address, progress=progress)


def runs_in_process(address: str | None) -> bool:
    """Whether tasks run in this process."""
    return address == IN_PROCESS or (address is None and not _is_ray_driver())


def _pack_in_process(job: PackJob, tasks: Sequence[PackTask]) -> Iterator[PackedShard]:
    """One shard is stored while the next is filled: at most two are in memory."""
    with ThreadPoolExecutor(1) as uploader:
        storing: Future[PackedShard] | None = None
        for task in tasks:
            if task.is_stored:
                yield adopt_shard(job, task)
                continue
            filled = fill_shard(job, task)
            if storing is not None:
                yield storing.result()
            storing = uploader.submit(store_shard, job, filled)
            del filled
        if storing is not None:
            yield storing.result()


def _run_on_ray(
    function: Callable[[Shared, AnyTask], Result],
    shared: Shared,
    tasks: Sequence[AnyTask],
    address: str | None,
    *,
    progress: bool,
) -> Iterator[Result]:
    """A bounded window of tasks, spread over the nodes.

    Raises:
        ClusterError: Workers or nodes died more often than a task is retried.
    """
    import ray  # slow to import, and a build in process needs none of it

    with ray_session(address):
        send = _sender(ray, function, shared)
        waiting = iter(tasks)
        flying: dict[Any, AnyTask] = {}
        silent = True
        try:
            while True:
                room = _window(ray) - len(flying)  # worked out anew: clusters grow
                flying |= {send(task): task for task in islice(waiting, max(0, room))}
                if not flying:
                    return
                done, _ = ray.wait(list(flying), num_returns=1, timeout=SILENT_S if silent else None)
                if not done:
                    _say_what_is_missing(ray, len(flying), show=progress)
                    continue
                silent = False
                task = flying.pop(done[0])
                yield _result(ray, done[0], task)
        finally:
            _call_off(ray, list(flying))  # after an error or an interrupt


def _window(ray: Any) -> int:
    return max(4, int(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))


def _sender(ray: Any, function: Callable[..., Any], shared: Any) -> Any:
    reference = ray.put(shared)
    largest = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    remote = ray.remote(function)
    options = {
        "num_cpus": 1,
        "scheduling_strategy": "SPREAD",
        "max_retries": MAX_RETRIES,
        "retry_exceptions": [StoreError],
        "name": f"dray.{function.__name__}",
    }

    def send(task: Task) -> Any:
        return remote.options(memory=min(task.memory_bytes, int(largest)), **options).remote(reference, task)

    return send


def _result(ray: Any, reference: Any, task: Task) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as exc:
        raise exc.cause from exc
    except ray.exceptions.RayError as exc:
        raise ClusterError(
            f"{task} was not done after {MAX_RETRIES} retries: "
            f"{type(exc).__name__}: {str(exc).splitlines()[0]}; run it again: shards already stored are kept"
        ) from exc


def _call_off(ray: Any, references: list[Any]) -> None:
    """Cancel tasks and wait a little for them to end; their errors are not wanted any more."""
    for reference in references:
        ray.cancel(reference)
    ended = ray.wait(references, num_returns=len(references), timeout=CALL_OFF_S)[0] if references else []
    for reference in ended:
        with suppress(ray.exceptions.RayError):
            ray.get(reference)


def _say_what_is_missing(ray: Any, num_tasks: int, *, show: bool) -> None:
    total, free = ray.cluster_resources(), ray.available_resources()
    say(
        f"nothing done yet; {num_tasks} tasks are sent out, each for 1 CPU. Of the cluster's "
        f"{total.get('CPU', 0):.0f} CPUs {free.get('CPU', 0):.0f} are free, of its memory for tasks "
        f"{free.get('memory', 0) / 1e9:.1f} GB of {total.get('memory', 0) / 1e9:.1f} GB. None free: the first tasks "
        "are at work, or other jobs hold the cluster. To work without Ray: address='none'",
        show=show,
    )


def _is_ray_driver() -> bool:
    """Whether this process is connected to Ray, and not a worker of it."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode != ray.WORKER_MODE
