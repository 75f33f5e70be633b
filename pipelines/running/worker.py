"""What runs in a Ray worker: a group of tasks, one after another.

Errors are values here: a task that raises would be retried and reported by Ray, with tracebacks of its own.
"""

import pickle
import time
import traceback
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dray.pipelines.running.node import node_name
from dray.pipelines.running.parcel import open_parcel
from dray.shards.errors import ClusterError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a group.

    Attributes:
        results: Of the tasks in their order, up to the one that failed.
        error: Why it failed; None where none did.
        seconds: How long the group took.
        node: Where it ran.
    """

    results: list[Any]
    error: Exception | None
    seconds: float
    node: str


def run_group(body: bytes, stores: bytes, tasks: bytes) -> Outcome:
    """Do a group of tasks.

    Args:
        body: Of a `Parcel` of (function, shared, witness or None); `function(shared, tasks)` yields a result a task.
        stores: Of the same.
        tasks: A pickled list.
    """
    started = time.monotonic()
    results: list[Any] = []
    error: Exception | None = None
    try:
        _check_witness(body, stores)
        function, shared, _ = open_parcel(body, stores)
        for result in function(shared, pickle.loads(tasks)):  # noqa: S301  our own driver's
            results.append(result)
    except Exception as exc:  # noqa: BLE001  the driver judges
        error = _portable(exc)
    return Outcome(results, error, time.monotonic() - started, node_name())


@lru_cache(maxsize=2)
def _check_witness(body: bytes, stores: bytes) -> None:
    """Once in a process."""
    if (witness := open_parcel(body, stores)[2]) is not None:
        witness.check()


def _portable(exc: Exception) -> Exception:
    """The error, if it survives the way to the driver, with the traceback from here; else one that tells of it."""
    text = "".join(traceback.format_exception(exc))
    try:
        copy: Exception = pickle.loads(pickle.dumps(exc))  # noqa: S301
    except Exception:  # noqa: BLE001  a class of the user's may do anything
        copy = ClusterError(f"{type(exc).__name__}: {exc}")
    copy.add_note(f"raised in a Ray worker on {node_name()}:\n{text}")
    return copy
