"""The loader of a DataModule: a `webdataset.WebLoader` with exact epochs that can be resumed."""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any, Self, cast

from webdataset.compat import WebLoader
from webdataset.pipeline import DataPipeline

from dray.loaders.lightning.epoch_loader import EpochLoader
from dray.loaders.webloader.output_position import OutputPosition
from dray.loaders.webloader.passes import Passes
from dray.loaders.workers.forks import check_process, check_worker
from dray.loaders.workers.portable import Portable
from dray.shards.errors import CallError


class ChunkLoader(EpochLoader, WebLoader):  # type: ignore[misc]  # webdataset has no types
    """Iterates over a rank's stream, one epoch per iteration.

    `.compose`, `.map`, `.with_epoch` and the like work as in webdataset. After `.with_epoch(n)` an epoch is n outputs
    of the last stage, continued in the next pass if the data end; otherwise it is one pass, and there is no length.

    Args:
        passes: Passes of the rank's stream.
    """

    repetitions: int  # webdataset's name for the maximum number of passes in an epoch
    nsamples: int  # webdataset's name for the number of outputs in an epoch; less than 0: set by the passes

    def __init__(self, passes: Passes) -> None:
        DataPipeline.__init__(self, passes)
        self._passes = passes
        self._progress = passes.progress
        self._wait_s = 0.0

    def __copy__(self) -> Self:
        """Returns a loader of the same stream: `.compose` and the like copy a loader and change the copy."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__)
        return found

    def __reduce__(self) -> tuple[Callable[..., "ChunkLoader"], tuple[Any, ...]]:
        """Supports pickling of lambdas; the copy has its own stream, which continues from this loader's position."""
        return _restored, (Portable((type(self), {**self.__dict__, "_keeper": None})), self.position.state())

    @property
    def position(self) -> OutputPosition:
        """Position of the loader in its epochs. Copies share it, and the one in use sets the length of an epoch."""
        self._progress.goal = self.nsamples if self.repetitions > 1 and self.nsamples >= 0 else None
        return self._progress

    def __iter__(self) -> Iterator[Any]:
        """Yields the next epoch; after `load_state_dict`, the rest of the saved one.

        After `sampler.set_epoch`, as a Trainer calls it, each further `iter()` is another pass of that epoch. An epoch
        begins when its first output is requested; older iterators end then.

        Raises:
            CallError: The pipelines yield nothing, so the epoch cannot have its length; a newer iterator of this
                loader began, this one was begun before a fork, or this process is one of several workers of a torch
                DataLoader.
        """
        check_worker(self._passes.num_workers, "kwargs_wld={split: {'num_workers': ...}}")
        progress, process = self.position, os.getpid()
        turn = progress.begin()
        left = progress.left()
        with closing(cast("Generator[Any, None, None]", self.iterator())) as outputs:
            while left is None or left > 0:
                check_process(process)
                progress.check(turn)
                asked = perf_counter()
                try:
                    output = next(outputs)
                except StopIteration:
                    break
                self._wait_s += perf_counter() - asked
                progress.count_output()
                left = None if left is None else left - 1
                yield output
        if left and self.repetitions == sys.maxsize:
            raise CallError(
                f"rank {progress.rank}: {left} outputs are missing in this epoch, and a whole pass yielded none: the "
                "pipelines drop every sample"
            )

    def __len__(self) -> int:
        """Number of outputs of the current epoch, including those before a resume.

        Raises:
            TypeError: An epoch is one pass, and the number of outputs of the pipelines is unknown.
        """
        length = self.position.length()
        if length is None:
            raise TypeError("a loader without a global batch size has no length")
        return length

    def stats(self) -> dict[str, float]:
        """Returns what was read for this rank since the start, prefetched samples included, and the time spent waiting.

        See `ShardLoader.stats`; wait_s includes the time of the pipelines in this process.
        """
        return {**self._passes.stats(), "wait_s": self._wait_s}

    def __bool__(self) -> bool:
        return True

    def close(self) -> None:
        """End worker processes, threads and the running iterator. The next `iter()` starts new ones."""
        self._progress.end()
        self._passes.close()


def _restored(content: Portable[tuple[type[ChunkLoader], dict[str, Any]]], state: Mapping[str, Any]) -> ChunkLoader:
    kind, values = content.value
    loader = object.__new__(kind)
    loader.__dict__.update({**values, "_wait_s": 0.0})
    loader.load_state_dict(state)
    return loader
