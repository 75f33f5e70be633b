"""Keeps the record of a running job up to date. A record that cannot be written never fails the job."""

import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import typer

from dray.cluster.cli.exits import ExitCode
from dray.cluster.jobs.record import MOST_CHARS, JobPlace, JobRecord, JobState, after_event, first_record
from dray.pipelines.events import Began, Event, observed_by
from dray.pipelines.progress import say
from dray.shards.errors import StoreError
from dray.shards.log import now
from dray.shards.storage.client import without_secrets

WRITE_EVERY_S = 2.0
_SECRET_NAME = re.compile(r"(SECRET|TOKEN|KEY|PASSWORD|PASSWD|CREDENTIALS?|SAS)$", re.IGNORECASE)
_LEAST_CHARS = 8  # of a secret: a shorter text may be any word
_INTERRUPTED = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)


class Recorder:
    """Writes the record of a job in a thread.

    Args:
        place: Where the record is stored.
        attempt: Number of the attempt, from 1.
        command: Name of dray's command.
    """

    def __init__(self, place: JobPlace, attempt: int, command: str) -> None:
        self._place = place
        self._record = first_record(place.id, attempt, command, platform.node())
        self._lock = threading.Lock()
        self._stage_began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="dray-record", daemon=True)
        self._has_failed = False

    def start(self) -> None:
        """Begin to write the record."""
        self._thread.start()

    def observe(self, event: Event) -> None:
        """Take an event of the work into account."""
        with self._lock:
            if isinstance(event, Began):
                self._stage_began = time.monotonic()
            self._record = after_event(self._record, event, time.monotonic() - self._stage_began)

    def end(self, exit_code: int, error: str | None) -> None:
        """Write how the job ended. Nothing is written afterwards."""
        self._ended.set()
        self._thread.join()
        state = JobState.STOPPED if exit_code in _INTERRUPTED else JobState.FAILED if exit_code else JobState.SUCCEEDED
        with self._lock:
            self._record = replace(
                self._record, state=state, exit_code=exit_code, error=error, ended=now(), waiting=None
            )
        self._write()

    def _keep(self) -> None:
        self._write()
        while not self._ended.wait(WRITE_EVERY_S):
            self._write()

    def _write(self) -> None:
        with self._lock:
            record = _clean(replace(self._record, updated=now()))
        try:
            self._place.write(record)
        except (StoreError, ValueError) as exc:
            if not self._has_failed:
                say(f"the record of this job cannot be written, and the job goes on without it: {exc}")
            self._has_failed = True


@contextmanager
def recorded(place: JobPlace | None, attempt: int, command: str) -> Iterator[None]:
    """Keeps the record of the command that runs in this context, up to its exit code; None: there is no record."""
    if place is None:
        yield
        return
    recorder = Recorder(place, attempt, command)
    recorder.start()
    exit_code, error = 1, None
    try:
        with observed_by(recorder.observe):
            yield
        exit_code = 0
    except SystemExit as exc:
        exit_code, error = _code_of(exc), _reason_of(exc)
        raise
    except KeyboardInterrupt:
        exit_code = ExitCode.INTERRUPTED
        raise
    except BaseException as exc:
        error = f"{type(exc).__name__}: {exc}"
        raise
    finally:
        recorder.end(exit_code, error)


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    return 1  # a message, as Python defines it


def _reason_of(end: SystemExit) -> str | None:
    """Returns the message of the error that a command printed before it ended the process."""
    if isinstance(end.code, str):
        return end.code
    context = end.__context__
    error = context.__cause__ if isinstance(context, typer.Exit) else context
    if error is None or isinstance(error, KeyboardInterrupt) or not _code_of(end):
        return None
    return getattr(error, "message", None) or str(error)  # click's errors have a message


def _clean(record: JobRecord) -> JobRecord:
    """Returns the record with texts that are short, on one line, and without secrets."""
    return replace(record, waiting=_safe(record.waiting), error=_safe(record.error))


def _safe(text: str | None) -> str | None:
    if text is None:
        return None
    line = without_secrets(" ".join(text.split()), {})
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _LEAST_CHARS:
            line = line.replace(value, "***")
    return line[:MOST_CHARS]
