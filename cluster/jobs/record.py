"""The record of a job: a small object beside the dataset that says how far the job is and how it ended.

Anyone who can read the dataset can follow its jobs, without a connection to the cluster. Only the job writes its
record, again and again, and no version of a dataset depends on it.
"""

import re
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from dray.pipelines.events import Advanced, Began, Ended, Event, FoundBad, LostNode, Retried, Waiting
from dray.shards.errors import CallError, DamagedError
from dray.shards.layout import Location
from dray.shards.log import now
from dray.shards.parsing.records import read_record, write_record
from dray.shards.storage.pieces import replace_object

MOST_CHARS = 500  # of a text in a record
LOST_AFTER_S = 60.0  # a running job whose record was not written for so long is lost: it is written every 2 s

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


class JobState(StrEnum):
    """What a job does, or how it ended."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # by Ctrl-C or SIGTERM
    LOST = "lost"  # is never written: readers compute it


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """How far a job is.

    Attributes:
        id: Submission id of the job.
        attempt: Number of the attempt, from 1.
        command: Name of dray's command, such as "build".
        state: See `JobState`.
        node: Host name of the node that runs it.
        started: UTC, ISO 8601.
        updated: When the record was written: UTC, ISO 8601.
        ended: UTC, ISO 8601; None while the job runs.
        exit_code: None while the job runs.
        stage: Title of the last stage that has begun; None before the first.
        done: Number of units of the stage that are done.
        total: Number of units of the stage; None if unknown.
        unit: Their name, in plural.
        num_bytes: Bytes stored in the stage; read, if nothing is stored.
        stage_s: Seconds for which the stage has run.
        retries: Number of tasks that were sent again.
        lost_nodes: Number of nodes that the cluster lost meanwhile.
        bad_inputs: Number of inputs that cannot be packed.
        waiting: What is waited for, and why; None while work gets done.
        error: Why the job failed, on one line without secrets; None if it did not.
    """

    id: str
    attempt: int
    command: str
    state: str
    node: str
    started: str
    updated: str
    ended: str | None = None
    exit_code: int | None = None
    stage: str | None = None
    done: int = 0
    total: int | None = None
    unit: str = ""
    num_bytes: int = 0
    stage_s: int = 0
    retries: int = 0
    lost_nodes: int = 0
    bad_inputs: int = 0
    waiting: str | None = None
    error: str | None = None

    @property
    def rate(self) -> float:
        """Units of the stage that were done per second."""
        return self.done / max(1, self.stage_s)

    @property
    def remaining_s(self) -> int | None:
        """Seconds until the stage ends at this rate; None if unknown, or if the job does not run."""
        if self.state != JobState.RUNNING or self.total is None or not self.done:
            return None
        return round((self.total - self.done) * max(1, self.stage_s) / self.done)


@dataclass(frozen=True, slots=True)
class JobPlace:
    """Where the record of a job is stored.

    Attributes:
        location: The dataset that the job works on; there may be no version of it yet.
        id: Submission id of the job.

    Raises:
        CallError: The id cannot be part of the record's name.
    """

    location: Location
    id: str

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise CallError(f"submission id {self.id!r}: expected up to 200 letters, digits, '_', '.' and '-'")

    @property
    def name(self) -> str:
        """Name of the record, relative to the dataset's URL."""
        return f"{self.location.layout.jobs}/{self.id}.json"

    @property
    def url(self) -> str:
        """URL of the record."""
        return self.location.store.url_of(self.name)

    def write(self, record: JobRecord) -> None:
        """Write the record, in place of an earlier one. Readers see one of them, whole."""
        replace_object(self.location.store, self.name, write_record(record))

    def read(self) -> JobRecord:
        """Returns the record.

        Raises:
            NotFoundError: There is none.
            DamagedError: It is no record of a job.
        """
        try:
            found = read_record(JobRecord, self.location.store.get(self.name))
        except ValueError as exc:
            raise DamagedError(f"expected the record of a job: {exc}", url=self.url) from exc
        values: dict[str, Any] = {
            name: _line(value) if isinstance(value, str) else value for name, value in asdict(found).items()
        }
        return JobRecord(**values)


def _line(text: str) -> str:
    """Returns a text on one line, without control characters: anyone may have written it."""
    return "".join(char if char.isprintable() else " " for char in text)[:MOST_CHARS]


def after_event(record: JobRecord, event: Event, stage_s: float) -> JobRecord:
    """Returns the record after an event, `stage_s` seconds after the begin of the stage."""
    moving = replace(record, waiting=None, stage_s=int(stage_s))
    match event:
        case Began(stage, total, unit):
            return replace(moving, stage=stage, done=0, total=total, unit=unit, num_bytes=0, stage_s=0)
        case Advanced(stage, count, num_bytes):
            if stage != record.stage:
                return moving
            return replace(moving, done=record.done + count, num_bytes=record.num_bytes + num_bytes)
        case Ended():
            return moving
        case Retried():
            return replace(moving, retries=record.retries + 1)
        case LostNode():
            return replace(moving, lost_nodes=record.lost_nodes + 1)
        case FoundBad(count):
            return replace(moving, bad_inputs=record.bad_inputs + count)
        case Waiting(reason):
            return replace(moving, waiting=reason[:MOST_CHARS])


def first_record(job_id: str, attempt: int, command: str, node: str) -> JobRecord:
    """Returns the record of a job that begins."""
    return JobRecord(
        id=job_id, attempt=attempt, command=command, state=JobState.RUNNING, node=node, started=now(), updated=now()
    )
