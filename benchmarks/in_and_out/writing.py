"""Writing with Ray Data: dray's writer beside Ray's own."""

import shutil
import tarfile
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import count
from pathlib import Path

from ray.data import Dataset

from dray.pipelines import read_pickles, write_shards
from in_and_out.data import SHARDS, SUFFIX, Samples, Where
from in_and_out.race import Contents, Race, Way

Write = Callable[[Dataset, str, int], None]
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
            theirs=_way("write_webdataset", where, samples, make, _their_tars),
            ours=_way("write_shards", where, samples, make, _our_shards),
            target=TARGETS.get(samples.num_bytes),
        )


def _rows(samples: Samples) -> Dataset:
    return read_pickles(samples.pickles, suffixes=SUFFIX, decode=False)


def _their_tars(rows: Dataset, folder: str, _: int) -> None:
    rows.write_webdataset(folder)


def _our_shards(rows: Dataset, folder: str, num: int) -> None:
    write_shards(rows, folder, samples_per_shard=-(-num // SHARDS), progress=False)


def _way(name: str, where: Where, samples: Samples, make: Callable[[], Dataset], write: Write) -> Way:
    """Makes the dataset and writes all of it to a new folder."""
    numbers = count()

    def run() -> Path:
        folder = where.folder(f"written-{write.__name__}-{next(numbers)}")
        write(make(), folder, samples.num)
        return Path(folder)

    def counted(folder: Path) -> int:
        num_bytes = sum(tar.stat().st_size for tar in folder.glob("*.tar"))
        shutil.rmtree(folder)
        return samples.num if num_bytes > samples.num * samples.num_bytes else 0

    def contents() -> Contents:
        folder, found = run(), Contents()
        for path in folder.glob("*.tar"):
            with tarfile.open(path) as tar:
                bodies = (file.read() for member in tar if (file := tar.extractfile(member)) is not None)
                found.update(blake2b(body).digest() for body in bodies)
        shutil.rmtree(folder)
        return found

    return Way(name, run, counted, contents)
