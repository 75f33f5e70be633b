"""Asks a cluster something by a small job, which prints one line of JSON after a mark."""

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dray.shards.errors import ClusterError

if TYPE_CHECKING:  # it loads Ray
    from dray.cluster.jobs.client import JobClient

PYTHON = '"$(command -v python || command -v python3)"'  # of the head's PATH: which one workers have is asked for
POLL_S = 0.2


def ask(client: "JobClient", entrypoint: str, *, mark: str, timeout_s: float, **settings: Any) -> dict[str, Any]:
    """Returns what a job printed after the mark; the job is removed from the cluster's list.

    Args:
        client: The cluster.
        entrypoint: Shell command of the job.
        mark: Precedes the answer in the job's log.
        timeout_s: Time limit of the job, in seconds; it is then stopped.
        settings: Further arguments of `submit_job`.

    Raises:
        ClusterError: There is no answer; the end of the job's log is in the message.
    """
    job = client.submit_job(entrypoint=entrypoint, **settings)
    try:
        _wait(client, job, timeout_s)
        log = client.get_job_logs(job)
        if (found := answer_in(log, mark)) is None:
            raise ClusterError(_reason(log, client.get_job_info(job).message or ""))
        return found
    finally:
        with suppress(RuntimeError):  # it still runs, or the cluster is gone
            client.delete_job(job)


def answer_in(text: str, mark: str) -> dict[str, Any] | None:
    """Returns the last answer in a text; None without one."""
    lines = [line for line in text.splitlines() if line.startswith(mark)]
    return json.loads(lines[-1].removeprefix(mark)) if lines else None


def _wait(client: "JobClient", job: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise ClusterError(f"its job {job} did not end in {timeout_s:.0f} s; `ray status` there says why")
        time.sleep(POLL_S)


def _reason(log: str, message: str) -> str:
    if "No module named 'ray'" in log:
        return (
            "the `python` in the PATH of the cluster's head has no Ray: start the head with the folder of its Python "
            "first in PATH"
        )
    return ((log.strip() or message).splitlines() or ["its job failed, and the log is empty"])[-1][-300:]
