"""What a worker of a cluster has: asked by a small job before the first one that does work."""

import inspect
import json
import shlex
import sysconfig
import time
import uuid
from dataclasses import dataclass, fields

from dray.cluster.jobs import probe_code
from dray.cluster.jobs.client import JobClient
from dray.pipelines.running.node import is_fit
from dray.shards.errors import ClusterError

NEEDED = (
    "boto3",
    "braceexpand",
    "cloudpickle",
    "numpy",
    "obstore",
    "pyarrow",
    "rich",
    "safetensors",
    "typer",
    "xxhash",
)
"""Packages that every command of dray imports; their names on PyPI are the same."""
WORKER_TIMEOUT_S = 60  # for a worker to be free, or to be started by an autoscaler
JOB_TIMEOUT_S = 300  # for the whole job, with the start of a worker process


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one worker reported."""

    python: str  # version, such as 3.11.7
    executable: str  # path of its Python
    platform: str  # such as linux-x86_64
    extension: str  # suffix of the compiled modules that it loads
    ray: str  # version
    dray: str | None  # identity of its dray; None without one that can run jobs
    missing: list[str]  # packages that dray needs and that are not installed
    is_worker: bool  # False: no CPU was free in time, and the head reported

    @property
    def has_this_dray(self) -> bool:
        """Whether it has the same dray as this machine."""
        return self.dray is not None and is_fit(self.dray)

    @property
    def takes_compiled(self) -> bool:
        """Whether the compiled modules of this machine run there."""
        return (self.extension, self.platform) == (sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_platform())


def probe(client: JobClient) -> Probe:
    """Returns what a worker of the cluster has; the job that asked it is deleted again.

    Raises:
        ClusterError: No worker could be asked; the end of the job's log is in the message.
    """
    name = f"dray-probe-{uuid.uuid4().hex[:12]}"
    words = [json.dumps(NEEDED), str(WORKER_TIMEOUT_S)]
    python = "$(command -v python || command -v python3)"  # of the head's PATH: that of the workers is asked for
    client.submit_job(
        entrypoint=f"{python} -c {shlex.quote(inspect.getsource(probe_code))} {shlex.join(words)}", submission_id=name
    )
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while not client.get_job_status(name).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(name)
            raise ClusterError(
                f"no worker of the cluster answered within {JOB_TIMEOUT_S} s; `ray status` there says why"
            )
        time.sleep(0.2)
    log, message = client.get_job_logs(name), client.get_job_info(name).message
    client.delete_job(name)
    return _parse(log, message or "")


def _parse(log: str, message: str) -> Probe:
    """Returns the report in a log.

    Raises:
        ClusterError: There is none.
    """
    lines = [line for line in log.splitlines() if line.startswith(probe_code.MARK)]
    if lines:
        report = json.loads(lines[-1].removeprefix(probe_code.MARK))
        return Probe(**{field.name: report[field.name] for field in fields(Probe)})
    if "No module named 'ray'" in log:
        raise ClusterError(
            "the `python` in the PATH of the cluster's head has no Ray: start the head with the folder of its Python "
            "first in PATH"
        )
    last = (log.strip() or message).splitlines()[-1:] or ["its log is empty"]
    raise ClusterError(f"the job that asks what the workers have failed: {last[0][-300:]}")
