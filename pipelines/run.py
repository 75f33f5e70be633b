"""Running the tasks of a build: in process, or on a Ray cluster with one task a shard.

The same `pack_shard` runs in both, so both give the same bytes. No sample's bytes pass through the driver: it sends
names and fingerprints and gets back small records.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any

from dray.pipelines.pack import PackedShard, PackJob, PackTask, adopt_shard, fill_shard, pack_shard, store_shard
from dray.pipelines.progress import say
from dray.pipelines.session import IN_PROCESS, ray_session
from dray.shards.errors import ClusterError, StoreError

MAX_RETRIES = 4  # of a task whose worker or node died, or whose store failed
SILENT_S = 30.0  # after so long without a finished shard the driver says what it waits for
CALL_OFF_S = 10.0  # at most, for tasks that are cancelled to end
TASKS_PER_CPU = 2  # in flight: one runs, one waits at hand


def run_tasks(job: PackJob, tasks: Sequence[PackTask], address: str | None, *, progress: bool) -> Iterator[PackedShard]:
    """Pack every task's shard; yields records as shards are stored.

    Args:
        job: What the tasks share.
        tasks: One a shard.
        address: Of a Ray cluster; `local` starts one for this build; `none` packs in process; None uses Ray where
            this process is a driver that is connected to it already, and packs in process elsewhere: inside a Ray
            task or actor too, whose group may hold every CPU.
        progress: Whether to say what is waited for.
    """
    if not tasks:
        return iter(())
    if address == IN_PROCESS or (address is None and not _is_ray_driver()):
        return run_in_process(job, tasks)
    return run_on_ray(job, tasks, address, progress=progress)


def run_in_process(job: PackJob, tasks: Sequence[PackTask]) -> Iterator[PackedShard]:
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


def run_on_ray(
    job: PackJob, tasks: Sequence[PackTask], address: str | None, *, progress: bool
) -> Iterator[PackedShard]:
    """A bounded window of tasks, spread over the nodes.

    Raises:
        ClusterError: Workers or nodes died more often than a task is retried.
    """
    import ray  # slow to import, and a build in process needs none of it

    with ray_session(address):
        send = _sender(ray, job)
        waiting = iter(tasks)
        flying: dict[Any, PackTask] = {}
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


def _sender(ray: Any, job: PackJob) -> Any:
    shared = ray.put(job)
    largest = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    remote = ray.remote(pack_shard)
    options = {
        "num_cpus": 1,
        "scheduling_strategy": "SPREAD",
        "max_retries": MAX_RETRIES,
        "retry_exceptions": [StoreError],
        "name": "dray.pack_shard",
    }

    def send(task: PackTask) -> Any:
        return remote.options(memory=min(task.memory_bytes, int(largest)), **options).remote(shared, task)

    return send


def _result(ray: Any, reference: Any, task: PackTask) -> PackedShard:
    try:
        packed: PackedShard = ray.get(reference)
    except ray.exceptions.RayTaskError as exc:
        raise exc.cause from exc
    except ray.exceptions.RayError as exc:
        first, last = task.sources.names[0], task.sources.names[-1]
        raise ClusterError(
            f"shard {task.number} (samples {first!r} to {last!r}) was not packed after {MAX_RETRIES} retries: "
            f"{type(exc).__name__}: {str(exc).splitlines()[0]}; run the build again: shards already stored are kept"
        ) from exc
    return packed


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
        f"no shard stored yet; {num_tasks} tasks are sent out, each for 1 CPU. Of the cluster's "
        f"{total.get('CPU', 0):.0f} CPUs {free.get('CPU', 0):.0f} are free, of its memory for tasks "
        f"{free.get('memory', 0) / 1e9:.1f} GB of {total.get('memory', 0) / 1e9:.1f} GB. None free: the first shards "
        "are being packed, or other jobs hold the cluster. To pack without Ray: address='none'",
        show=show,
    )


def _is_ray_driver() -> bool:
    """Whether this process is connected to Ray, and not a worker of it."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode != ray.WORKER_MODE
