"""How a command ends: an exit code for each kind of error, the same for all commands, on a laptop and in a job.

A program that runs dray reads from the code who has to act: whoever owns the data, the caller, the store or the
cluster. SIGTERM ends a command as Ctrl-C does: completed work is kept, and a message says so.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType


class ExitCode(IntEnum):
    """Exit codes of every command; any other error is a fault of dray, which ends with a traceback and 1."""

    DONE = 0  # also if there was nothing to do
    BAD_DATA = 1  # an input or stored data is missing, damaged or refused
    WRONG_CALL = 2  # an argument or option
    STORE = 3  # the storage failed, denied access or lacks the object
    CLUSTER = 4  # Ray cannot be reached, a node is unfit, or tasks were lost too often
    CONFLICT = 5  # another writer changed the dataset
    INTERRUPTED = 128 + signal.SIGINT
    CLOSED_OUTPUT = 128 + signal.SIGPIPE  # `dray ls | head`
    TERMINATED = 128 + signal.SIGTERM


def exit_code(error: Exception) -> ExitCode | None:
    """Returns the exit code for an error; None if a caller can do nothing about it."""
    from dray.shards.errors import ClusterError, ConflictError, DamagedError, InputError, RefusedError  # imports numpy

    ray = sys.modules.get("ray")
    ray_errors = (ray.exceptions.RayError,) if ray is not None else ()
    kinds: tuple[tuple[ExitCode, tuple[type[Exception], ...]], ...] = (
        (ExitCode.BAD_DATA, (InputError, DamagedError, RefusedError)),  # before OSError: a missing input is both
        (ExitCode.CLUSTER, (ClusterError, *ray_errors)),
        (ExitCode.CONFLICT, (ConflictError,)),
        (ExitCode.WRONG_CALL, (TypeError, ValueError)),  # CallError is a ValueError
        (ExitCode.STORE, (OSError,)),  # StoreError is one
    )
    return next((code for code, types in kinds if isinstance(error, types)), None)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Turns the first SIGTERM into a KeyboardInterrupt of the main thread; the process then exits with 143.

    `ray job stop`, Kubernetes and Slurm send it some seconds before they kill a program.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not received:  # a second signal must not interrupt the clean-up
            received.append(number)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BaseException:
        if received:
            sys.exit(ExitCode.TERMINATED)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
