"""Memory for batches that is used again as soon as nothing refers to it.

The system hands out fresh memory page by page, zeroed: for large batches that takes longer than filling them. A batch's
tensor leans on an array over a buffer; when the last tensor that uses it is gone, so is the array, and the buffer is
free. Whoever keeps a batch keeps its memory: nothing is ever written under a tensor that is alive.
"""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

MOST_FREE_BYTES = 256 << 20  # are kept in buffers of other sizes than the one asked for


class Buffers(Protocol):
    """Where memory for batches comes from."""

    def take(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8 with any content; its memory is free again when it and all its views are gone."""
        ...


class BufferPool:
    """Memory of this process: as much as was ever in use at once; of other sizes up to 256 MiB more."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def take(self, num_bytes: int) -> torch.Tensor:
        """See `Buffers`."""
        buffer = self._find(num_bytes)
        return lease(buffer, self._free.append, buffer)  # which is atomic: any thread may end a lease

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
    """A tensor over a buffer; `end(*arguments)` is called when it and all its views are gone, by any thread.

    The tensor's storage refers to an array made for it alone, and so does whatever is made of the tensor. (An array
    made of that array would not: numpy lets it refer to the buffer.)
    """
    held = buffer[:]
    weakref.finalize(held, end, *arguments).atexit = False
    return torch.from_numpy(held)
