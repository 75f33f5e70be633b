"""An object as a file that is read from its start to its end."""

import io
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

STREAM_CHUNK_BYTES = 8 << 20


class RangeReader(io.RawIOBase):
    """Reads one range of an object while the next is fetched.

    Args:
        fetch: Returns the bytes of a range, given its start and its length.
        num_bytes: Size of the object.
        ahead: Where ranges are fetched.
    """

    def __init__(self, fetch: Callable[[int, int], memoryview], num_bytes: int, ahead: Executor) -> None:
        self._fetch = fetch
        self._num_bytes = num_bytes
        self._ahead = ahead
        self._rest = memoryview(b"")
        self._next = 0  # where the range after the coming one starts
        self._coming = self._submit()

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:  # the type of a writable buffer has a public name from Python 3.12 on
        """Fills the buffer as far as the present range goes; returns the number of bytes."""
        if not self._rest and self._coming is not None:
            self._rest, self._coming = self._coming.result(), self._submit()
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def _submit(self) -> Future[memoryview] | None:
        start, length = self._next, min(STREAM_CHUNK_BYTES, self._num_bytes - self._next)
        if length <= 0:
            return None
        self._next += length
        return self._ahead.submit(self._fetch, start, length)
