"""One command line as one job: found again if it runs, resumed if it failed, and started otherwise."""

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus

from dray.cluster.jobs.client import JobClient
from dray.cluster.jobs.identity import JobName
from dray.cluster.jobs.probe import Probe, probe
from dray.cluster.jobs.ship import Ship, compiled_modules, needs_package, put_together
from dray.cluster.jobs.user_code import UserCode
from dray.pipelines.progress import say
from dray.shards.errors import ClusterError, UnknownJobError
from dray.shards.messages import counted

MAX_SHOWN = 200  # files of a list
_RUNS = (JobStatus.PENDING, JobStatus.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is submitted."""

    name: JobName
    words: Sequence[str]  # the command line of dray, or `run`, a script and its arguments
    record: str | None = None  # folder of the record; None: beside the dataset
    ship: Ship = Ship.auto
    code: Sequence[UserCode] = ()
    script: Path | None = None  # travels with the code

    def entrypoint(self, python: str, attempt: int) -> str:
        """Returns the shell command of an attempt."""
        entry = [python, "-u", "-m", "dray.cluster.jobs.entry", self.name.attempt(attempt), "--attempt", str(attempt)]
        if self.record is not None:
            entry += ["--record", self.record]
        return shlex.join([*entry, "--", *self.words])


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts of a job that a cluster knows, by number."""

    found: Mapping[int, JobDetails] = field(default_factory=dict)

    @classmethod
    def of(cls, client: JobClient, name: JobName) -> "Attempts":
        """Asks the cluster."""
        numbers = [(name.number_of(job.submission_id), job) for job in client.list_jobs()]
        return cls({number: job for number, job in numbers if number is not None})

    @property
    def last(self) -> JobDetails | None:
        """The record of the last one; None without any."""
        return self.found[max(self.found)] if self.found else None

    @property
    def next_number(self) -> int:
        """Number of an attempt that is not there yet."""
        return max(self.found, default=0) + 1

    @property
    def runs(self) -> bool:
        """Whether the last one has not ended."""
        return self.last is not None and self.last.status in _RUNS

    @property
    def is_done(self) -> bool:
        """Whether the last one succeeded."""
        return self.last is not None and self.last.status == JobStatus.SUCCEEDED


def start(client: JobClient, job: Job, attempt: int) -> str:
    """Returns the submission id of a new attempt, or of the same one that somebody else started at the same time.

    Raises:
        ClusterError: The cluster lacks what dray needs, or does not take the job.
    """
    found = probe(client)
    say(_described(found))
    submission_id = job.name.attempt(attempt)
    with tempfile.TemporaryDirectory(prefix="dray-ship-") as folder:
        environment = _runtime_env(job, found, Path(folder))
        try:
            client.submit_job(
                entrypoint=job.entrypoint(found.executable, attempt),
                submission_id=submission_id,
                runtime_env=environment,
                metadata={"dray": job.words[0]},
            )
        except ClusterError:  # it exists: another client was faster, or the answer to this one was lost
            if not _exists(client, submission_id):
                raise
    return submission_id


def _exists(client: JobClient, submission_id: str) -> bool:
    try:
        client.get_job_info(submission_id)
    except UnknownJobError:
        return False
    return True


def show_code(code: Sequence[UserCode], script: Path | None) -> None:
    """Print the files that are going to travel, and those that are left out."""
    if script is not None:
        say(f"sends {script}")
    for each in code:
        say(f"sends {counted(len(each.sent), 'file')} of {each.folder}, {each.num_bytes:,} bytes:")
        for name in each.sent[:MAX_SHOWN]:
            say(f"  {name}")
        if (more := len(each.sent) - MAX_SHOWN) > 0:
            say(f"  and {more:,} more")
        if each.left_out:
            say(f"leaves out what may hold secrets, and links out of the folder: {', '.join(each.left_out)}")


def _described(found: Probe) -> str:
    """Returns a line about the worker, with what follows from it."""
    line = f"the cluster has Python {found.python} on {found.platform}, Ray {found.ray}"
    if not found.is_worker:
        line += "; no CPU was free in a minute, so that is its head: the job waits for workers"
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not found.python.startswith(f"{ours}."):
        line += f"; this machine has Python {ours}"
    return line


def _runtime_env(job: Job, found: Probe, folder: Path) -> dict[str, Any]:
    """Returns what Ray is to send; nothing of this machine's environment is in it."""
    environment: dict[str, Any] = {}
    if needs_package(found, job.ship):
        environment["py_modules"] = put_together(folder / "package", with_compiled=found.takes_compiled)
        say("sends dray's package" + ("" if found.takes_compiled else _without_compiled(found)))
    if job.code or job.script:
        sent = folder / "code"
        sent.mkdir()
        for each in job.code:
            each.copy_to(sent)
        if job.script and not (sent / job.script.name).exists():
            (sent / job.script.name).write_bytes(job.script.read_bytes())
        environment["working_dir"] = str(sent)
    return environment


def _without_compiled(found: Probe) -> str:
    names = compiled_modules()
    if not names:
        return ""
    return (
        f"; its compiled modules ({', '.join(names)}) do not fit Python {found.python} on {found.platform}, so Python "
        "does their work: slower, with the same result"
    )
