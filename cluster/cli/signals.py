"""SIGTERM ends a command as Ctrl-C does: completed work is kept, and a message says so."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
