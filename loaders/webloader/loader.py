"""The loader that a DataModule gives: a `webdataset.WebLoader` whose epochs are exact, and which can be resumed."""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any, Self, cast

from webdataset.compat import WebLoader
from webdataset.pipeline import DataPipeline

from dray.loaders.lightning.epoch_loader import EpochLoader
from dray.loaders.webloader.passes import Passes
from dray.loaders.webloader.progress import Progress
from dray.loaders.workers.forks import check_process, check_worker
from dray.loaders.workers.portable import Portable
from dray.shards.errors import CallError


class ChunkLoader(EpochLoader, WebLoader):  # type: ignore[misc]  # webdataset has no types
    """Iterates over one epoch of one rank's stream after another.

    `.compose`, `.map`, `.with_epoch` and the like work as in webdataset. After `.with_epoch(n)` an epoch is n outputs
    of the last stage, going on into the next pass where the data end; else it is one pass, and there is no length.

    Args:
        passes: The stream.
    """

    repetitions: int  # webdataset's: passes of an epoch at the most,
    nsamples: int  # and its outputs; less than 0: as many as the passes give

    def __init__(self, passes: Passes) -> None:
        DataPipeline.__init__(self, passes)
        self._passes = passes
        self._progress = passes.progress
        self._wait_s = 0.0

    def __copy__(self) -> Self:
        """The same stream: webdataset's `.compose` and the like copy a loader and change the copy."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__)
        return found

    def __reduce__(self) -> tuple[Callable[..., "ChunkLoader"], tuple[Any, ...]]:
        """For a copy with a stream of its own, which goes on from where this loader is, with the user's lambdas."""
        return _restored, (Portable((type(self), {**self.__dict__, "_keeper": None})), self.position.state())

    @property
    def position(self) -> Progress:
        """Where the loader is in its epochs. Copies share it, and the one in use says how long an epoch is."""
        self._progress.goal = self.nsamples if self.repetitions > 1 and self.nsamples >= 0 else None
        return self._progress

    def __iter__(self) -> Iterator[Any]:
        """The next epoch; after `load_state_dict`, the rest of the one that was saved.

        After `sampler.set_epoch`, as a Trainer calls it, each further `iter()` is another pass of that epoch. An epoch
        counts as begun when its first output is asked for; an iterator that was left ends then.

        Raises:
            CallError: The pipelines give nothing at all, so the epoch cannot have its length; a newer iterator of this
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
                f"rank {progress.rank}: {left} outputs are missing in this epoch, and a whole pass gave none: the "
                "pipelines keep nothing"
            )

    def __len__(self) -> int:
        """Outputs of the epoch at hand, those before a resume counted too.

        Raises:
            TypeError: An epoch is one pass, and who knows what the pipelines make of it.
        """
        length = self.position.length()
        if length is None:
            raise TypeError("a loader without a global batch size has no length")
        return length

    def stats(self) -> dict[str, float]:
        """What was read for this rank since the start, a little ahead, and how long outputs were waited for.

        See `ShardLoader.stats`; wait_s holds what the pipelines in this process take as well.
        """
        return {**self._passes.stats(), "wait_s": self._wait_s}

    def __bool__(self) -> bool:
        return True

    def close(self) -> None:
        """End worker processes, threads and the iterator that runs. The next `iter()` starts others."""
        self._progress.end()
        self._passes.close()


def _restored(content: Portable[tuple[type[ChunkLoader], dict[str, Any]]], state: Mapping[str, Any]) -> ChunkLoader:
    kind, values = content.value
    loader = object.__new__(kind)
    loader.__dict__.update({**values, "_wait_s": 0.0})
    loader.load_state_dict(state)
    return loader
