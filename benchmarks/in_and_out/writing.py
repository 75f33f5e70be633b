"""Writing with Ray Data: dray's writer beside Ray's own."""

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from ray.data import Dataset

from dray.pipelines import read_pickles, write_shards
from in_and_out.data import SUFFIX, Samples, Where
from in_and_out.race import Race, Way

SHARDS = 8
TARGETS = {4_000: 2.5, 100_000: 1.0}  # bytes of a sample -> ratio


def races(where: Where, samples: Samples) -> Iterator[Race]:
    """Rows of bytes that lie in Ray's object store, and rows that a read task fetches from files meanwhile."""
    if where.slow_options:
        return
    held = _rows(samples).materialize()
    for title, make in (("rows in memory", lambda: held), ("rows from files", lambda: _rows(samples))):
        yield Race(
            title=f"writing {title}, {samples}, {where.name}",
            num_samples=samples.num,
            theirs=Way("write_webdataset", _written(where, make, _their_tars, samples.num)),
            ours=Way("write_shards", _written(where, make, _our_shards, samples.num)),
            target=TARGETS.get(samples.num_bytes),
        )


def _rows(samples: Samples) -> Dataset:
    return read_pickles(samples.pickles, suffixes=SUFFIX, decode=False)


def _their_tars(rows: Dataset, folder: str, _: int) -> None:
    rows.write_webdataset(folder)


def _our_shards(rows: Dataset, folder: str, num: int) -> None:
    write_shards(rows, folder, samples_per_shard=-(-num // SHARDS), progress=False)


def _written(
    where: Where, make: Callable[[], Dataset], write: Callable[[Dataset, str, int], None], num: int
) -> Callable[[], int]:
    """Makes the dataset and writes all of it to a new folder."""
    numbers = count()

    def run() -> int:
        folder = where.folder(f"written-{write.__name__}-{next(numbers)}")
        write(make(), folder, num)
        found = len(list(Path(folder).glob("*.tar")))
        shutil.rmtree(folder)
        return num if found else 0

    return run
