"""Pooled memory for batches, which is reused as soon as nothing refers to it.

The system hands out fresh memory page by page, zeroed: for large batches that takes longer than filling them. A batch's
tensor refers to an array over a buffer; when the last tensor that uses the array is freed, so is the array, and the
buffer returns to the pool. Nothing is ever written into the memory of a tensor that is alive.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

MOST_FREE_BYTES = 256 << 20  # maximum size of the free buffers that are kept when one of another size is made


class Buffers(Protocol):
    """Where memory for batches comes from."""

    def take(self, num_bytes: int) -> torch.Tensor:
        """Returns an uninitialized tensor (num_bytes,) uint8; its memory is reused once it and its views are freed."""
        ...


class BufferPool:
    """Buffers of this process; up to 256 MiB of free ones are kept when another size is needed."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def take(self, num_bytes: int) -> torch.Tensor:
        """See `Buffers`."""
        buffer = self._find(num_bytes)
        return lease(buffer, self._free.append, buffer)  # append is atomic: any thread may end a lease

    def _find(self, num_bytes: int) -> NDArray[np.uint8]:
        for _ in range(len(self._free)):
            buffer = self._free.pop()
            if buffer.nbytes == num_bytes:
                return buffer
            self._free.appendleft(buffer)
        while sum(buffer.nbytes for buffer in self._free) > MOST_FREE_BYTES:
            self._free.popleft()
        return np.empty(num_bytes, np.uint8)


def lease(buffer: NDArray[np.uint8], end: Callable[..., Any], *arguments: Any) -> torch.Tensor:
    """Returns a tensor over a buffer; any thread calls `end(*arguments)` when it and all its views are freed.

    The tensor's storage refers to an array made for it alone, and so does every view of the tensor. (A view of that
    array would not: numpy lets it refer to the buffer.)
    """
    held = buffer[:]
    weakref.finalize(held, end, *arguments).atexit = False
    return torch.from_numpy(held)
