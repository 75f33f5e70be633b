"""Latency and bandwidth between this machine and a store, with few bytes."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dray.cluster.doctor.finding import Finding, good, warning
from dray.cluster.doctor.scratch import Scratch
from dray.shards.storage.store import Store

REQUESTS = 10  # of which the median is the latency
FIRST_BYTES = 1 << 20  # its time decides how much more is sent
MOST_BYTES = 32 << 20  # of one object that one stream writes and reads
STREAMS = 16
MOST_STREAM_BYTES = 4 << 20  # of the object of each of many streams
STREAM_S = 1.0  # time that one stream should take
SLOW_READ_S = 0.1  # stores in the same region answer in less
SLOW_BYTES_PER_S = 50e6  # of many streams: what one GPU's training easily takes
_ADVICE = "run builds and trainings where the store is: in its region and its network"


def check_latency(scratch: Scratch) -> Finding:
    """Returns the median times to create and to read a small object."""
    store, names = scratch.store, [scratch.name(f"small-{number}") for number in range(REQUESTS)]
    writes = [_seconds(partial(store.put_new, name, bytes(1000))) for name in names]
    reads = [_seconds(partial(store.get, name)) for name in names]
    write, read = statistics.median(writes), statistics.median(reads)
    found = (
        f"reading 1 kB takes {1000 * read:.1f} ms, creating it {1000 * write:.1f} ms (median of {REQUESTS}; slowest "
        f"{1000 * max(reads):.1f} and {1000 * max(writes):.1f} ms)"
    )
    values = {"read_s": read, "create_s": write, "slowest_read_s": max(reads), "slowest_create_s": max(writes)}
    if read > SLOW_READ_S:
        return warning("latency", found, _ADVICE, **values)
    return good("latency", found, **values)


def check_streams(scratch: Scratch) -> Iterator[Finding]:
    """Yields the bandwidth of one stream, and of many at once; both write and read what they wrote.

    They move as many bytes as take about a second, at most 33 MiB and then 64 MiB in each direction.
    """
    data = os.urandom(MOST_BYTES)
    first = _seconds(lambda: scratch.store.put_new(scratch.name("first"), memoryview(data)[:FIRST_BYTES]))
    size = int(min(MOST_BYTES, max(FIRST_BYTES, FIRST_BYTES * STREAM_S / first)))
    yield _streams(scratch, "one stream", memoryview(data)[:size], 1)
    part = min(MOST_STREAM_BYTES, max(64 << 10, size // 4))
    yield _streams(scratch, f"{STREAMS} streams", memoryview(data)[:part], STREAMS)


def _streams(scratch: Scratch, check: str, data: memoryview, count: int) -> Finding:
    """Writes and reads one object per stream, all at once."""
    store, names = scratch.store, [scratch.name(f"stream-{count}-{number}") for number in range(count)]
    write = _at_once(names, lambda name: store.put_new(name, data))
    _forget_pages(store, names)
    read = _at_once(names, lambda name: store.get(name))
    moved = count * len(data)
    write_rate, read_rate = moved / write, moved / read
    found = f"reads {read_rate / 1e6:,.0f} MB/s, writes {write_rate / 1e6:,.0f} MB/s ({moved / 1e6:,.0f} MB each)"
    values = {"read_bytes_per_s": read_rate, "write_bytes_per_s": write_rate, "bytes": moved}
    if count > 1 and read_rate < SLOW_BYTES_PER_S:
        return warning(check, found, _ADVICE, **values)
    return good(check, found, **values)


def _at_once(names: Sequence[str], move: Callable[[str], object]) -> float:
    """Returns the seconds that all names took, each in a thread of its own."""
    with ThreadPoolExecutor(len(names)) as threads:
        return _seconds(lambda: list(threads.map(move, names)))


def _forget_pages(store: Store, names: Sequence[str]) -> None:
    """Drops written files from this machine's page cache, so that reading them reads the disk."""
    if store.local_root is None or not hasattr(os, "posix_fadvise"):
        return
    for name in names:
        descriptor = os.open(Path(store.local_root, name), os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return max(time.perf_counter() - started, 1e-9)
