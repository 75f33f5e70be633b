"""The contestants of benchmarks/write.py; each imports what it needs in its own environment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from loading.task import TRANSCODED, Epoch, Task
from numpy.typing import NDArray

SHARD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Maker:
    """What a contestant can do.

    Attributes:
        folder: Its dataset, below the folder of the task.
        write: Writes it.
        loaded: Reads it again.
    """

    folder: str
    write: Callable[[Task], None]
    loaded: Callable[[Task], Epoch]


def iterable(_: Task) -> Maker:
    """`write_samples` with a generator."""
    from loading.shard_loader import transcoded

    from dray.pipelines import write_samples

    def write(task: Task) -> None:
        samples = ({TRANSCODED: sample} for sample in task.samples())
        write_samples(samples, task.path(TRANSCODED), shard_bytes=SHARD_BYTES, progress=False)

    return Maker(TRANSCODED, write, transcoded)


def inputs(_: Task) -> Maker:
    """`write_samples` with a function and its inputs."""
    from loading.shard_loader import transcoded

    from dray.pipelines import write_samples

    def write(task: Task) -> None:
        write_samples(
            partial(_make_sample, task), task.path(TRANSCODED), inputs=range(task.num_samples), transform_version="1",
            shard_bytes=SHARD_BYTES, progress=False,
        )  # fmt: skip

    return Maker(TRANSCODED, write, transcoded)


def litdata(_: Task) -> Maker:
    """`optimize` with one worker."""
    from loading import lit

    return Maker("litdata", lit.write, lit.loaded)


def mosaic(_: Task) -> Maker:
    """`MDSWriter`."""
    from loading import mosaic

    return Maker("mosaic", mosaic.write, mosaic.loaded)


def _make_sample(task: Task, number: int) -> Mapping[str, NDArray]:
    return {TRANSCODED: task.samples()[number]}
