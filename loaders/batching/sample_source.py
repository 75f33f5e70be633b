"""Reads a dataset's samples in one process: prefetched, checked, decoded, and replaced if they are unreadable.

The batches of `ShardLoader` and the chunks of a DataModule are made from it; it keeps no epoch state.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from dray.loaders.batching.buffers import BufferPool, Buffers
from dray.loaders.batching.skipping import Skipper
from dray.loaders.batching.stacking import Stacker
from dray.loaders.order.passes import Pass, Step
from dray.shards.codecs.decode import Decoder
from dray.shards.errors import DamagedError, RefusedError
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.node_cache import BlockStore
from dray.shards.reading.ranged import RangeReader
from dray.shards.reading.readers import open_reader
from dray.shards.reading.samples import Column, Reader, Run, Samples, Stats, wanted_columns
from dray.shards.reading.suffixes import WantedParts

STEPS_AHEAD = 64  # number of steps whose samples are fetched ahead, as far as the reader has room
THREADS = 4  # maximum number of threads that copy large parts
GROUP_STEPS = 16  # maximum number of steps in a group
STEP_GROUP_BYTES = 2 << 20  # approximate maximum size of a group of several steps


class SampleSource:
    """Reads and decodes samples by number. Each process, and each copy, opens readers of its own.

    Args:
        open_catalog: Opens the list of samples.
        wanted: The parts to read.
        decoder: Decodes the parts.
        blocks: The node's store of blocks fetched from object storage; None: nothing is shared.
        skipper: Replaces samples that cannot be read; None: they raise errors.
    """

    def __init__(
        self,
        open_catalog: Callable[[], Catalog],
        wanted: WantedParts,
        decoder: Decoder,
        *,
        blocks: BlockStore | None = None,
        skipper: Skipper | None = None,
    ) -> None:
        self.wanted, self.decoder, self.skipper = wanted, decoder, skipper
        self._open_catalog, self._blocks = open_catalog, blocks
        self._opened: _Tools | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def catalog(self) -> Catalog:
        """The list of samples."""
        return self._tools.catalog

    @property
    def stacker(self) -> Stacker:
        """Stacks parts of equal dtype and shape."""
        return self._tools.stacker

    @property
    def stats(self) -> Stats:
        """Counts of what was read in this process since the last `close`."""
        return self._tools.reader.stats if self._opened is not None else Stats()

    def close(self) -> None:
        """Release files and threads; the next read opens new ones."""
        self._opened = None

    def use(self, buffers: Buffers) -> None:
        """Make large tensors in `buffers`, in one thread: this process is one of several workers."""
        self._opened = replace(self._tools, stacker=Stacker(buffers, num_threads=1))

    def step_groups(self, epoch_pass: Pass, first: int, stride: int, size: int | None = None) -> Iterator[list[Step]]:
        """Yields the steps `first`, `first + stride`, ... in groups, and fetches the samples of later steps meanwhile.

        Args:
            epoch_pass: The pass that has the steps.
            first: Number of the first step.
            stride: Distance between two steps.
            size: Number of steps in a group; None: groups grow up to `group_steps`.
        """
        reader, most = self._tools.reader, size or self.group_steps(epoch_pass)
        is_ranged = isinstance(reader, RangeReader)
        steps = epoch_pass.steps(first, stride, with_runs=is_ranged)
        ahead, size = list[Step](), size or 1
        while True:
            if len(ahead) < size + STEPS_AHEAD // 2:  # many at a time, as each `expect` costs time
                ahead += islice(steps, STEPS_AHEAD + size - len(ahead))
                if is_ranged:
                    reader.expect(chain.from_iterable(step.runs for step in ahead))
            if not ahead:
                return
            group, ahead = ahead[:size], ahead[size:]
            yield group
            size = min(size * 2, most)

    def group_steps(self, epoch_pass: Pass) -> int:
        """Returns the number of steps that are best made, or sent, together."""
        snapshot, rest = self.catalog.snapshot, epoch_pass.rest
        step_bytes = snapshot.num_bytes / max(1, snapshot.num_samples) * rest.batch / rest.num_ranks
        return max(1, min(GROUP_STEPS, int(STEP_GROUP_BYTES / max(1.0, step_bytes))))

    @contextmanager
    def read(self, numbers: NDArray[np.int64], runs: Sequence[Run]) -> Iterator[tuple[Samples, Mapping[str, Column]]]:
        """Yields samples and their wanted parts by name; after an error, a damaged sample is reported first.

        Raises:
            NotFoundError: A shard or an index is missing.
            DamagedError: A sample is damaged.
            CallError: A sample lacks a part that it must have; see `wanted_columns`.
        """
        samples = self._tools.reader.read(numbers, runs)
        try:
            yield samples, wanted_columns(samples, self.wanted)
        except Exception:
            samples.check()
            raise

    def value(self, samples: Samples, column: Column, row: int) -> Any:
        """Returns the decoded value of a sample's part; None if the sample lacks it.

        Raises:
            DamagedError: The part does not match its suffix; the message names shard, key and suffix.
            RefusedError: The part holds something that is not on the safe list.
        """
        suffix, data = column.suffix_of(row), column.parts[row]
        return None if suffix is None or data is None else self._decoded(samples, row, suffix, data)

    def replaced(self, epoch_pass: Pass, step: Step) -> Step:
        """Returns the step with unreadable samples replaced by others."""
        if self.skipper is None:
            return step
        order, positions = epoch_pass.start.order(), step.share.positions

        def runs(some: NDArray[np.int64]) -> list[Run]:
            return list(zip(*map(np.ndarray.tolist, order.runs(some)), strict=True))

        found = self.skipper.replaced(
            positions, epoch_pass.start, lambda some: self.check_readable(order.at(some), runs(some))
        )
        self._tools.reader.stats.skipped += int((found != positions).sum())
        return replace(step, samples=order.at(found), runs=runs(found))

    def check_readable(self, numbers: NDArray[np.int64], runs: Sequence[Run] | None = None) -> None:
        """Read and decode samples, each with its run or alone.

        Raises:
            NotFoundError: A shard or an index is missing.
            DamagedError: A sample is damaged.
            RefusedError: A sample holds something that is not on the safe list.
        """
        samples = self._tools.reader.read(numbers, runs or [(int(number), 1) for number in numbers])
        for row in range(len(samples)):
            for suffix, data in samples.sample(row).items():
                self._decoded(samples, row, suffix, data)

    def _decoded(self, samples: Samples, row: int, suffix: str, data: memoryview) -> Any:
        try:
            return self.decoder.part(suffix, data)
        except (DamagedError, RefusedError) as exc:
            raise exc.at(url=samples.url(row), key=samples.key(row), suffix=suffix) from exc

    @property
    def _tools(self) -> "_Tools":
        """Catalog, reader and stacker of this process; a forked child opens its own."""
        if self._opened is None or self._opened.process != os.getpid():
            num_threads = 1 if get_worker_info() else min(THREADS, len(os.sched_getaffinity(0)))
            catalog = self._open_catalog()
            reader = open_reader(catalog, self.wanted, self._blocks)
            self._opened = _Tools(os.getpid(), catalog, reader, Stacker(BufferPool(), num_threads))
        return self._opened


@dataclass(frozen=True, slots=True)
class _Tools:
    process: int
    catalog: Catalog
    reader: Reader
    stacker: Stacker
