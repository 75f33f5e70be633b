"""Running the tasks of a build: in process, or on a Ray cluster, where a Ray task runs several small ones.

Both run the same functions, so both give the same bytes. No sample's bytes pass through the driver: it sends names and
fingerprints and receives small records.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dray.pipelines.running.dispatch import Dispatch, Function, Task, check_nodes
from dray.pipelines.running.parcel import Parcel, Witness
from dray.pipelines.running.ray_session import IN_PROCESS, ray_session
from dray.pipelines.running.resources import TimeLimit, current_resources

Shared = TypeVar("Shared")
AnyTask = TypeVar("AnyTask", bound=Task)
Result = TypeVar("Result")


def run_tasks(
    function: Function[Shared, AnyTask, Result],
    shared: Shared,
    tasks: Sequence[AnyTask],
    address: str | None,
    *,
    witness: Witness | None = None,
    progress: bool,
) -> Iterator[Result]:
    """Run every task; yields their results, on Ray in the order in which they end.

    Args:
        function: `function(shared, tasks)` yields a result for each task, in their order. It runs again if a worker
            dies.
        shared: Sent to every worker once; its stores separately, with each task.
        tasks: The tasks to run.
        address: The address of a Ray cluster; `local` starts one for this call; `none` runs in process; None uses Ray
            if this process is a driver that is already connected to it, and else runs in process: also inside a Ray
            task or actor, whose placement group may hold every CPU.
        witness: An object that a worker must see before it runs a task.
        progress: Whether to say which tasks are waited for.

    Raises:
        ClusterError: A node has another dray or does not see the witness, or workers or nodes died too often.
    """
    if not tasks:
        return iter(())
    if runs_in_process(address):
        return iter(function(shared, tasks))
    limit = current_resources().timeout_s
    parcel = Parcel.of(function if limit is None else TimeLimit(function, limit), shared, witness)
    return _run_on_ray(parcel, function.__name__, tasks, address, progress=progress)


def _run_on_ray(
    parcel: Parcel, name: str, tasks: Sequence[AnyTask], address: str | None, *, progress: bool
) -> Iterator[Any]:
    import ray  # slow to import, and not needed in process

    with ray_session(address):
        yield from Dispatch[AnyTask, Any](ray, parcel, f"dray.{name}", tasks, progress=progress).results()


@contextmanager
def fit_workers(address: str | None) -> Iterator[None]:
    """Tasks in this context run on one connection, to nodes that have the dray of this process.

    Raises:
        ClusterError: A node has another dray, or none.
    """
    if runs_in_process(address):
        yield
        return
    import ray  # slow to import

    with ray_session(address):
        check_nodes(ray)
        yield


def runs_in_process(address: str | None) -> bool:
    """Whether tasks run in this process."""
    return address == IN_PROCESS or (address is None and not _is_ray_driver())


def _is_ray_driver() -> bool:
    """Whether this process is connected to Ray, and is not one of its workers."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode != ray.WORKER_MODE
