"""Says why a Ray Data pipeline stands still: Ray Data itself waits for resources without a word."""

import time

import ray

from dray.pipelines.progress import say
from dray.pipelines.ray_data.compat import ExecutionCallback, StreamingExecutor, operator_progress

SILENT_S = 30.0


class StallWatch(ExecutionCallback):
    """Prints, each `SILENT_S` in which no task gave a block, what runs and what the cluster has left."""

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._since = time.monotonic()

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Compares the progress of all operators with the last step's; Ray Data calls it about 10 times a second."""
        operators = operator_progress(executor)
        seen, now = [progress for _, progress, _ in operators], time.monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif now - self._since >= SILENT_S:
            self._since = now
            say(_report([(name, count) for name, _, count in operators]))


def _report(operators: list[tuple[str, int]]) -> str:
    waiting = ", ".join(f"{name}: {count}" for name, count in operators if count)
    have, left = ray.cluster_resources(), ray.available_resources()
    free = ", ".join(f"{left.get(name, 0):g} of {have[name]:g} {name}" for name in ("CPU", "GPU") if name in have)
    return (
        f"no task has ended for {SILENT_S:.0f} s. Submitted tasks: {waiting or 'none'}; free: {free}. Tasks that read "
        "and write need 1 CPU each: if actors hold all of them, give the pool fewer (concurrency=, num_cpus=), the "
        "tasks less (ray_remote_args={'num_cpus': 0.5}), or the cluster more CPUs"
    )
