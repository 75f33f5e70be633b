"""Following a job to its end: the status is polled, the log only printed.

A log that breaks off says nothing about a job: only the cluster's record of it does. While the head restarts or the
network is down, the follower asks again.
"""

import asyncio
import sys
import threading
import time
from dataclasses import dataclass

from ray.job_submission import JobDetails, JobStatus

from dray.cluster.cli.exits import ExitCode
from dray.cluster.jobs.client import JobClient
from dray.pipelines.progress import say
from dray.shards.errors import ClusterError, UnknownJobError, UnreachableError

POLL_S = 1.0
GIVE_UP_S = 1800  # without any answer
LOST_AFTER = 3  # answers in a row that know no such job, as a head that starts may not have read its records yet


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended."""

    status: JobStatus
    exit_code: int  # of the job's command; 143 if it was stopped
    message: str  # Ray's, if the command did not end by itself


def follow(client: JobClient, submission_id: str) -> End:
    """Returns how a job ended, after its log is on standard output.

    Raises:
        UnreachableError: The cluster did not answer for half an hour.
        UnknownJobError: The cluster lost the job.
        ClusterError: The cluster lost the job's command: its node died, or it could not be started.
    """
    log = LogPrinter(client, submission_id)
    try:
        found = _wait(client, submission_id)
    finally:
        log.stop()
    log.print_rest()
    return end_of(found)


def stop(client: JobClient, submission_id: str) -> None:
    """Stop a job and wait until it has ended; it has some seconds to keep what it has stored."""
    client.stop_job(submission_id)
    _wait(client, submission_id)


def end_of(found: JobDetails) -> End:
    """Returns how a job ended, by the cluster's record of it.

    Raises:
        ClusterError: Its command did not end by itself, and nobody stopped it.
    """
    code, message = found.driver_exit_code, found.message or ""
    if found.status == JobStatus.STOPPED:
        return End(found.status, ExitCode.TERMINATED, message)
    if code is None and found.status == JobStatus.FAILED:
        raise ClusterError(f"{found.submission_id}: the cluster lost the job or could not start it: {message}")
    code = code or 0
    return End(found.status, 128 - code if code < 0 else code, message)


def _wait(client: JobClient, submission_id: str) -> JobDetails:
    """Returns the record of a job once it has ended."""
    heard, num_unknown = time.monotonic(), 0
    is_silent = False
    while True:
        try:
            found = client.get_job_info(submission_id)
            if found.status.is_terminal():
                return found
            num_unknown = 0
        except UnreachableError as exc:
            if time.monotonic() - heard > GIVE_UP_S:
                raise
            if not is_silent:
                say(f"{exc} Asking again; the job goes on without this command")
            is_silent = True
        except UnknownJobError as exc:
            if (num_unknown := num_unknown + 1) >= LOST_AFTER:
                raise UnknownJobError(f"{submission_id}: the cluster lost the job: did its head restart?") from exc
        else:
            if is_silent:
                say(f"{client.get_address()} answers again: {submission_id} is {found.status.lower()}")
            heard, is_silent = time.monotonic(), False
        time.sleep(POLL_S)


class LogPrinter:
    """Prints a job's log as it comes, each line once, from a thread that nobody waits for."""

    def __init__(self, client: JobClient, submission_id: str) -> None:
        self._client, self._id = client, submission_id
        self._num_printed = 0  # characters
        self._is_stopped = False
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="dray-log", daemon=True).start()

    def stop(self) -> None:
        """Print nothing more from the stream."""
        with self._lock:
            self._is_stopped = True

    def print_rest(self) -> None:
        """Print what the stream did not bring; a log that cannot be read is only reported."""
        try:
            log = self._client.get_job_logs(self._id)
        except ClusterError as exc:
            say(f"the rest of the job's log cannot be read: {exc}")
        else:
            self._write(log[self._num_printed :])

    def _run(self) -> None:
        while not self._is_stopped:
            try:
                asyncio.run(self._tail())
            except Exception:  # noqa: BLE001  whatever broke the stream: the status decides, and the rest is printed
                time.sleep(POLL_S)
            else:
                return

    async def _tail(self) -> None:
        """Print the log from where an earlier stream broke off; it always starts at the first line."""
        skipped = 0
        async for text in self._client.tail_job_logs(self._id):
            known = min(len(text), self._num_printed - skipped)
            skipped += known
            with self._lock:
                if self._is_stopped:
                    return
                self._write(text[known:])
            skipped = self._num_printed if known < len(text) else skipped

    def _write(self, text: str) -> None:
        self._num_printed += len(text)
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # `dray submit ... | head`
            self._is_stopped = True
