"""Runs checks with a time limit: a store or a disk that never answers is a finding, not a hang."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dray.cluster.doctor.finding import Finding, bad, unchecked
from dray.shards.errors import DrayError


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        name: Its name in findings.
        run: Yields its findings; raises DrayError or OSError for what it did not expect.
    """

    name: str
    run: Callable[[], Iterable[Finding]]


class Stuck(Exception):  # noqa: N818  the end of a run, not an error of a caller
    """A check did not end in time; its thread may never end."""


def run_checks(checks: Sequence[Check], timeout_s: float) -> Iterator[Finding]:
    """Yields the findings of checks as they are made, one after another.

    Args:
        checks: In their order.
        timeout_s: Time limit of all of them together.

    Raises:
        Stuck: A check did not end in time; that was yielded as a finding, as was each check that was not made.
    """
    deadline = time.monotonic() + timeout_s
    for number, check in enumerate(checks):
        try:
            yield from _within(check, deadline - time.monotonic())
        except queue.Empty:
            yield bad(
                check.name,
                f"no end after {timeout_s:.0f} s",
                "does the store, the disk or the cluster answer others? On a slow network give it --timeout 300",
            )
            yield from (unchecked(other.name, f"not checked after {check.name}") for other in checks[number + 1 :])
            raise Stuck from None


def _within(check: Check, seconds: float) -> list[Finding]:
    """Returns the findings of one check; raises queue.Empty if there are none after these seconds."""
    answer: queue.Queue[list[Finding] | BaseException] = queue.Queue()
    threading.Thread(target=_answer, args=(check, answer), name=f"dray-doctor {check.name}", daemon=True).start()
    found = answer.get(timeout=max(seconds, 0.001))
    if isinstance(found, BaseException):
        raise found
    return found


def _answer(check: Check, answer: "queue.Queue[list[Finding] | BaseException]") -> None:
    try:
        answer.put(list(check.run()))
    except (DrayError, OSError) as exc:
        answer.put([bad(check.name, str(exc), "")])
    except BaseException as exc:  # noqa: BLE001  a fault of dray: raised by the caller
        answer.put(exc)
