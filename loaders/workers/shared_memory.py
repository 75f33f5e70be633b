"""Shared memory in which a worker's batches reach the trainer, used again and again.

A worker fills a buffer and sends its number; the first time the buffer itself as well, which costs a file descriptor
and fresh pages. When the trainer's last tensor over it is gone, the trainer writes the number into a pipe, and the
worker fills the buffer again. When a pass begins, both forget the buffers that the trainer has not given back: it may
never have looked at them, or keep them indefinitely.
"""

import os
import struct
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from dray.loaders.batching.buffers import lease
from dray.loaders.compat import new_shared_storage

ROUND_BYTES = 64 << 10  # sizes are rounded up to this, so that buffers fit again
MOST_BUFFERS = 64  # of a worker; then those that are free give way
_MESSAGE = struct.Struct("<II")  # pass, number: so small that the system writes all of it or nothing


@dataclass(frozen=True, slots=True)
class Handle:
    """A buffer on its way to the trainer."""

    number: int
    memory: torch.Tensor | None  # (n,) uint8; None where the trainer has it already


class SendBuffers:
    """The worker's side.

    Args:
        freed: The end of the pipe that tells which buffers the trainer is done with.
    """

    def __init__(self, freed: Connection) -> None:
        self._freed = freed.fileno()
        os.set_blocking(self._freed, False)
        self._connection = freed  # keeps it open
        self._memory: dict[int, torch.Tensor] = {}  # by number
        self._uses: dict[int, int] = {}  # of each: by tensors here, and by the trainer
        self._numbers: dict[int, int] = {}  # by address
        self._known: set[int] = set()  # that the trainer has
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # by size
        self._count = 0  # of all buffers ever made
        self._pass = 0
        self._gone: list[int] = []  # buffers that the trainer may forget

    def begin(self, pass_number: int) -> None:
        """Forget the buffers that are in use: a new pass begins, and what the trainer gave back is in the pipe.

        It may have begun already: an iterator of a pass that was left starts late, and takes the new one's number.
        """
        if pass_number == self._pass:
            return
        self._collect()
        for number in [number for number, uses in self._uses.items() if uses]:
            self._forget(number)
        self._pass = pass_number

    def take(self, num_bytes: int) -> torch.Tensor:
        """See `dray.loaders.batching.buffers.Buffers`: free again when nothing here and nothing there uses it."""
        self._collect()
        step = max(
            ROUND_BYTES, 1 << max(0, num_bytes.bit_length() - 4)
        )  # eight sizes from one power of two to the next
        size = -(-max(num_bytes, 1) // step) * step
        number = self._free[size].pop() if self._free[size] else self._new(size)
        self._uses[number] = 1
        return lease(self._memory[number].numpy(), self._drop, number)[:num_bytes]

    def send(self, tensor: torch.Tensor) -> Handle | None:
        """How the trainer gets a tensor that fills a buffer; None for any other, and for one that was sent already."""
        number = self._numbers.get(tensor.data_ptr())
        if number is None or self._uses[number] != 1 or not tensor.is_contiguous():
            return None
        self._uses[number] += 1
        is_known = number in self._known
        self._known.add(number)
        return Handle(number, None if is_known else self._memory[number])

    def holds(self, tensor: torch.Tensor) -> bool:
        """Returns whether a tensor begins where a buffer does."""
        return tensor.data_ptr() in self._numbers

    def gone(self) -> list[int]:
        """Return the buffers that the trainer may forget, of those not yet reported."""
        gone, self._gone = self._gone, []
        return gone

    def _new(self, size: int) -> int:
        if len(self._memory) >= MOST_BUFFERS:
            for number in [number for numbers in self._free.values() for number in numbers]:
                self._forget(number)
            self._free.clear()
        storage = new_shared_storage(size)
        memory = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
        number, self._count = self._count, self._count + 1
        self._memory[number], self._uses[number] = memory, 0
        self._numbers[memory.data_ptr()] = number
        return number

    def _forget(self, number: int) -> None:
        del self._numbers[self._memory.pop(number).data_ptr()], self._uses[number]
        self._gone.append(number)

    def _collect(self) -> None:
        """Take back what the trainer is done with."""
        with suppress(BlockingIOError):
            while message := os.read(self._freed, _MESSAGE.size):
                pass_number, number = _MESSAGE.unpack(message)
                if pass_number == self._pass:
                    self._drop(number)

    def _drop(self, number: int) -> None:
        if number in self._uses:
            self._uses[number] -= 1
            if not self._uses[number]:
                self._free[len(self._memory[number])].append(number)


class ReceiveBuffers:
    """The trainer's side, for one worker.

    Args:
        freed: The other end of the pipe.
    """

    def __init__(self, freed: Connection) -> None:
        self._freed = freed
        os.set_blocking(freed.fileno(), False)
        self._process = os.getpid()
        self._pass = 0
        self._idle: dict[int, Any] = {}  # buffers that the worker may fill, by number

    def begin(self, pass_number: int) -> None:
        """Forget the buffers that are in use: a new pass begins."""
        self._pass = pass_number

    def forget(self, numbers: Sequence[int]) -> None:
        """Let go of buffers that the worker will not fill again."""
        for number in numbers:
            self._idle.pop(number, None)

    def open(self, handle: Handle) -> torch.Tensor:
        """(n,) uint8, the buffer; the worker may fill it again when this tensor and all its views are gone."""
        memory = self._idle.pop(handle.number) if handle.memory is None else handle.memory.numpy()
        return lease(memory, self._give_back, self._pass, handle.number, memory)

    def _give_back(self, pass_number: int, number: int, memory: Any) -> None:
        """Tell the worker, without a lock and without waiting: it runs wherever a tensor happens to be freed.

        A worker that is gone, or has not listened for so long that the pipe is full, makes do without the buffer.
        """
        if pass_number != self._pass or os.getpid() != self._process:  # a forked child's tensors are not the trainer's
            return
        with suppress(OSError):
            self._idle[number] = memory
            os.write(self._freed.fileno(), _MESSAGE.pack(pass_number, number))
