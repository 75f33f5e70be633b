"""The compiled modules over memory behind which a forbidden page begins: one byte too far ends the process.

Run as `python -m tests.support.guarded scan` or `... gather`; tests/shards/codecs/pickles/test_guarded.py does.
"""

import ctypes
import mmap
import pickle
import struct
import sys

import numpy as np
from xxhash import xxh3_64_intdigest

from dray.loaders.batching.gather import gather
from dray.shards.codecs.pickles.scan import scan
from tests.support.pickles import GOOD, LIES, UNKNOWN_PICKLES

MAX_BYTES = 20_000
PROT_NONE = 0


class Guarded:
    """Memory of `MAX_BYTES` or somewhat more; reading or writing right before or behind it is a SIGSEGV."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        size = -(-MAX_BYTES // page) * page
        self._map = mmap.mmap(-1, size + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        for forbidden in (address, address + page + size):
            if libc.mprotect(ctypes.c_void_p(forbidden), page, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._start, self._end = page, page + size
        self.end_address = address + self._end

    def at_end(self, data: bytes) -> memoryview:
        """The data, its last byte right before the forbidden page."""
        self._map[self._end - len(data) : self._end] = data
        return memoryview(self._map)[self._end - len(data) : self._end]

    def at_start(self, data: bytes) -> memoryview:
        """The data, its first byte right behind the forbidden page."""
        self._map[self._start : self._start + len(data)] = data
        return memoryview(self._map)[self._start : self._start + len(data)]


def framed(data: bytes) -> bytes:
    """A cut pickle whose frame says that it is whole, so that the scan goes on to the cut."""
    if data[2:3] != b"\x95" or len(data) < 11:
        return data
    return data[:3] + struct.pack("<Q", len(data) - 11) + data[11:]


def scan_everywhere() -> int:
    """Every prefix of every pickle, at both edges."""
    memory, count = Guarded(), 0
    pickles = [data for name in GOOD for p in (2, 3, 4, 5) if len(data := pickle.dumps(GOOD[name], p)) < 1500]
    pickles += [data for data in (*UNKNOWN_PICKLES.values(), *LIES.values()) if len(data) < 1500]
    for data in pickles:
        for end in range(len(data) + 1):
            for cut in {data[:end], framed(data[:end])}:
                expected = scan(cut)
                if scan(memory.at_end(cut)) != expected or scan(memory.at_start(cut)) != expected:
                    raise AssertionError(cut)
                count += 1
    return count


def gather_everywhere() -> int:
    """Parts of many sizes; the elements begin and end anywhere; all buffers end at a forbidden page of their own."""
    part_memory, edge_memory, fixed_memory, out_memory = (Guarded() for _ in range(4))
    number_memories = [Guarded() for _ in range(3)]
    count, random = 0, np.random.default_rng(7)
    sizes = [*range(1, 300), 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 16_384, 19_999]
    for size in sizes:
        data = random.bytes(size)
        ranges = {(0, size), (0, 1), (size - 1, size), (size // 3, size // 2), (7, size), (0, size - 7)}
        for start, stop in sorted((start, stop) for start, stop in ranges if start < stop):
            edges = data[:start] + data[stop:]
            part, out = part_memory.at_end(data), out_memory.at_end(bytes(stop - start))
            numbers = (part_memory.end_address - size, xxh3_64_intdigest(data), out_memory.end_address - (stop - start))
            arrays = [memory.at_end(struct.pack("=Q", n)) for memory, n in zip(number_memories, numbers, strict=True)]
            fixed = fixed_memory.at_end(b"\1" * len(edges))
            done = gather(*arrays, len(part), start, stop, edge_memory.at_end(edges), fixed, 0, 0, 0)
            if done != 1 or bytes(out) != data[start:stop]:
                raise AssertionError(size, start, stop)
            count += 1
    return count


if __name__ == "__main__":
    print({"scan": scan_everywhere, "gather": gather_everywhere}[sys.argv[1]]())
