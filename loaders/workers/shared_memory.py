"""Reusable shared memory in which a worker's batches reach the trainer.

A worker fills a buffer and sends its number; the first time also the buffer itself, which costs a file descriptor and
fresh pages. When the trainer's last tensor over it is freed, the trainer writes the number into a pipe, and the worker
fills the buffer again. When a pass begins, both forget the buffers that the trainer has not given back, as it may never
have opened them, or may keep them indefinitely.
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
MOST_BUFFERS = 64  # maximum number per worker before free buffers are dropped
_MESSAGE = struct.Struct("<II")  # pass, number; small enough to be written atomically


@dataclass(frozen=True, slots=True)
class Handle:
    """Names a buffer that is sent to the trainer."""

    number: int
    memory: torch.Tensor | None  # (n,) uint8; None if the trainer has it already


class SendBuffers:
    """The worker's side of the buffers.

    Args:
        freed: Reading end of the pipe for the buffers that the trainer gives back.
    """

    def __init__(self, freed: Connection) -> None:
        self._freed = freed.fileno()
        os.set_blocking(self._freed, False)
        self._connection = freed  # keeps it open
        self._memory: dict[int, torch.Tensor] = {}  # by number
        self._uses: dict[int, int] = {}  # number of uses: by tensors here, and by the trainer
        self._numbers: dict[int, int] = {}  # by address
        self._known: set[int] = set()  # buffers that the trainer has
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # by size
        self._count = 0  # number of buffers made so far
        self._pass = 0
        self._gone: list[int] = []  # buffers that the trainer may forget

    def begin(self, pass_number: int) -> None:
        """Begin a pass: take back the buffers that the trainer freed, and forget those still in use.

        The pass may have begun already: a late iterator of an abandoned pass takes the new one's number.
        """
        if pass_number == self._pass:
            return
        self._collect()
        for number in [number for number, uses in self._uses.items() if uses]:
            self._forget(number)
        self._pass = pass_number

    def take(self, num_bytes: int) -> torch.Tensor:
        """Returns memory as `dray.loaders.batching.buffers.Buffers` does; reused once neither side refers to it."""
        self._collect()
        step = max(ROUND_BYTES, 1 << max(0, num_bytes.bit_length() - 4))  # eight sizes between two powers of two
        size = -(-max(num_bytes, 1) // step) * step
        number = self._free[size].pop() if self._free[size] else self._new(size)
        self._uses[number] = 1
        return lease(self._memory[number].numpy(), self._drop, number)[:num_bytes]

    def send(self, tensor: torch.Tensor) -> Handle | None:
        """Returns the handle of a tensor that fills a buffer; None for any other, and for one that was sent already."""
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
        """Returns the buffers that the trainer may forget and that were not reported yet."""
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
        """Take back the buffers that the trainer freed."""
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
    """The trainer's side of one worker's buffers.

    Args:
        freed: Writing end of the pipe.
    """

    def __init__(self, freed: Connection) -> None:
        self._freed = freed
        os.set_blocking(freed.fileno(), False)
        self._process = os.getpid()
        self._pass = 0
        self._idle: dict[int, Any] = {}  # buffers that the worker may fill, by number

    def begin(self, pass_number: int) -> None:
        """Begin a pass: forget the buffers that are in use."""
        self._pass = pass_number

    def forget(self, numbers: Sequence[int]) -> None:
        """Release buffers that the worker will not fill again."""
        for number in numbers:
            self._idle.pop(number, None)

    def open(self, handle: Handle) -> torch.Tensor:
        """Returns the buffer, (n,) uint8; the worker may fill it again when this tensor and its views are freed."""
        memory = self._idle.pop(handle.number) if handle.memory is None else handle.memory.numpy()
        return lease(memory, self._give_back, self._pass, handle.number, memory)

    def _give_back(self, pass_number: int, number: int, memory: Any) -> None:
        """Notify the worker without locking or blocking, as this runs wherever a tensor happens to be freed.

        If the worker has ended, or the pipe is full, the worker does without the buffer.
        """
        if pass_number != self._pass or os.getpid() != self._process:  # a forked child's tensors are not the trainer's
            return
        with suppress(OSError):
            self._idle[number] = memory
            os.write(self._freed.fileno(), _MESSAGE.pack(pass_number, number))
