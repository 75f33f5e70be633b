"""What a worker of a cluster has: asked by a small job before the first one that does work."""

import inspect
import json
import shlex
import sysconfig
import uuid
from dataclasses import dataclass, fields

from dray.cluster.jobs import probe_code
from dray.cluster.jobs.asking import PYTHON, ask
from dray.cluster.jobs.client import JobClient
from dray.pipelines.running.node import is_fit
from dray.shards.errors import ClusterError, UnreachableError

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
    words = [json.dumps(NEEDED), str(WORKER_TIMEOUT_S)]
    code = shlex.quote(inspect.getsource(probe_code))
    try:
        report = ask(
            client,
            f"{PYTHON} -c {code} {shlex.join(words)}",
            mark=probe_code.MARK,
            timeout_s=JOB_TIMEOUT_S,
            submission_id=f"dray-probe-{uuid.uuid4().hex[:12]}",
        )
    except UnreachableError:
        raise
    except ClusterError as exc:
        raise ClusterError(f"the workers could not be asked what they have: {exc}") from exc
    return Probe(**{field.name: report[field.name] for field in fields(Probe)})
