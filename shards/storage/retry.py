"""Requests to object storage that are retried, and announced if they take long.

The client retries what HTTP calls safe. Here the rest is retried: a conditional PUT whose reply was lost, a listing
that was cut. That is safe as well, as objects never change: a caller that meets an object reads it and compares.
"""

import itertools
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from dray.shards.errors import CallError, StoreError

PAUSES_S = (0.1, 0.3, 1.0, 3.0, 5.0)  # between two tries of one request
LATEST_RETRY_S = 60.0  # no retry starts later than this after the first try
SILENT_S = 3.0  # a request that takes longer is announced
QUIET_S = 30.0  # between two announcements

Answer = TypeVar("Answer")
_FINAL = re.compile(
    r"status code: (?:4(?!08|09|29)\d\d|3\d\d|501)|builder error|after \d+ retries.*error sending request"
)  # another try would end the same way
_waiting: dict[int, tuple[float, str]] = {}  # request -> time and text of its announcement
_numbers = itertools.count()
_watcher_lock = threading.Lock()
_watcher: threading.Thread | None = None


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is tried again.

    Attributes:
        most: Maximum number of further tries.
    """

    most: int = len(PAUSES_S)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Retries":
        """Returns no more than the caller allows the client in `retry_config`.

        Raises:
            CallError: It is not a dict, or its `max_retries` is not an integer.
        """
        config = options.get("retry_config") or {}
        if not isinstance(config, Mapping) or not isinstance(config.get("max_retries", 0), int):
            raise CallError(f"expected retry_config={{'max_retries': 10, ...}}, found {config!r}")
        return cls(min(len(PAUSES_S), config.get("max_retries", len(PAUSES_S))))

    def __call__(self, request: Callable[[], Answer], what: str, transfer_s: float = 0.0) -> Answer:
        """Returns the answer to a request.

        Args:
            request: Raises a StoreError where the outcome is unknown.
            what: The announcement of a request that takes long.
            transfer_s: Time that the transfer itself may take, in seconds.

        Raises:
            StoreError: The store did not answer, or answered with an error that another try would not change.
        """
        started = time.monotonic()
        with announced(what, SILENT_S + transfer_s):
            for number in itertools.count(1):
                try:
                    return request()
                except StoreError as exc:
                    spent = time.monotonic() - started
                    if number > self.most or spent > LATEST_RETRY_S or not exc.is_transient or _FINAL.search(str(exc)):
                        raise _counted(exc, number, spent) from None
                time.sleep(PAUSES_S[number - 1])
        raise AssertionError("unreachable: the last try returns or raises")


def _counted(exc: StoreError, tries: int, spent: float) -> StoreError:
    return exc if tries == 1 else type(exc)(f"{exc.problem} ({tries} tries in {spent:.0f} s)", **exc.place)


@contextmanager
def announced(what: str, after_s: float) -> Iterator[None]:
    """Says `what` on standard error if the block takes longer than `after_s` seconds, and again from time to time."""
    number = next(_numbers)
    _waiting[number] = (time.monotonic() + after_s, what)
    _start_watcher()
    try:
        yield
    finally:
        del _waiting[number]


def _start_watcher() -> None:
    global _watcher
    if _watcher is None:
        with _watcher_lock:
            if _watcher is None:
                _watcher = threading.Thread(target=_watch, name="dray-waiting", daemon=True)
                _watcher.start()


def _watch() -> None:
    while True:
        time.sleep(0.5)
        now = time.monotonic()
        late = [what for when, what in list(_waiting.values()) if when < now]
        if late:
            others = f" (and {len(late) - 1} other requests)" if len(late) > 1 else ""
            print(f"dray: {late[0]}{others}", file=sys.stderr, flush=True)  # noqa: T201 - a job's log is read as lines
            time.sleep(QUIET_S)
