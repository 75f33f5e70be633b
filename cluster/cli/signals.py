"""SIGTERM ends a command as Ctrl-C does: in order, so that what is stored is kept and said."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def orderly_end() -> Iterator[None]:
    """Inside, the first SIGTERM is a KeyboardInterrupt in the main thread; the process then exits with 143.

    Job systems stop programs by it: `ray job stop`, Kubernetes and Slurm, some seconds before they kill them.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not received:  # the end takes a moment, and is not to be interrupted by impatience
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
