"""Running a group of tasks in a Ray worker, one after another.

Errors are returned, not raised: Ray would retry a task that raises, and report it with tracebacks of its own.
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
    """The outcome of a group.

    Attributes:
        results: The tasks' results in their order, up to the one that failed.
        error: The error of the task that failed; None if none did.
        seconds: Run time of the group.
        node: The node that ran it.
    """

    results: list[Any]
    error: Exception | None
    seconds: float
    node: str


def run_group(body: bytes, stores: bytes, tasks: bytes, *blocks: Any) -> Outcome:
    """Run a group of tasks; returns the outcome.

    Args:
        body: `body` of a `Parcel` of (function, shared, witness or None); see `run_tasks`.
        stores: `stores` of that parcel.
        tasks: A pickled list.
        blocks: Objects from Ray's object store, which the function gets as further arguments.
    """
    started = time.monotonic()
    results: list[Any] = []
    error: Exception | None = None
    try:
        _check_witness(body, stores)
        function, shared, _ = open_parcel(body, stores)
        for result in function(shared, pickle.loads(tasks), *blocks):  # noqa: S301  our own driver's
            results.append(result)
    except Exception as exc:  # noqa: BLE001  the driver decides
        error = _portable(exc)
    return Outcome(results, error, time.monotonic() - started, node_name())


@lru_cache(maxsize=2)
def _check_witness(body: bytes, stores: bytes) -> None:
    """Check the witness, once in a process."""
    if (witness := open_parcel(body, stores)[2]) is not None:
        witness.check()


def _portable(exc: Exception) -> Exception:
    """Returns the error with its traceback as a note; an error of the same text if it cannot be pickled."""
    text = "".join(traceback.format_exception(exc))
    try:
        copy: Exception = pickle.loads(pickle.dumps(exc))  # noqa: S301
    except Exception:  # noqa: BLE001  a class of the user's may do anything
        copy = ClusterError(f"{type(exc).__name__}: {exc}")
    copy.add_note(f"raised in a worker on {node_name()}:\n{text}")
    return copy
