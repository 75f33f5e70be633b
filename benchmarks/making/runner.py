"""A contestant in a process of its own, in whatever environment it needs: it writes a dataset on request.

    python -m making.runner CONTESTANT

Each line of standard input is a list of folder, bytes of a sample and number of samples, answered by the seconds that
it took to write them.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SHARD_BYTES = 64 << 20
DIFFERENT = 256  # numbers of samples that differ; they are made before
Make = Callable[[int], dict[str, Any]]


class Maker:
    """Makes samples of a number; other processes get it as well."""

    def __init__(self, size: int) -> None:
        chance = np.random.default_rng(0)
        self.arrays = [chance.random(size // 4, np.float32) for _ in range(DIFFERENT)]

    def __call__(self, number: int) -> dict[str, Any]:
        """Returns a sample."""
        return {"x": self.arrays[number % DIFFERENT]}


def iterable(make: Make, folder: str, num_samples: int, _: int) -> None:
    """`write_samples` with a generator."""
    from dray.pipelines import write_samples

    write_samples(map(make, range(num_samples)), folder, shard_bytes=SHARD_BYTES, progress=False)


def inputs(make: Make, folder: str, num_samples: int, _: int) -> None:
    """`write_samples` with a function."""
    from dray.pipelines import write_samples

    write_samples(
        make, folder, inputs=range(num_samples), transform_version="1", shard_bytes=SHARD_BYTES, progress=False
    )


def litdata(make: Make, folder: str, num_samples: int, _: int) -> None:
    """`optimize` with one worker."""
    from litdata import optimize

    optimize(make, inputs=list(range(num_samples)), output_dir=folder, chunk_bytes="64MB", num_workers=1, verbose=False)


def mosaic(make: Make, folder: str, num_samples: int, size: int) -> None:
    """`MDSWriter`."""
    import loading.mosaic  # noqa: F401  makes streaming importable beside a torch without CUDA
    from streaming import MDSWriter

    with MDSWriter(out=folder, columns={"x": f"ndarray:float32:{size // 4}"}, size_limit=SHARD_BYTES) as writer:
        for number in range(num_samples):
            writer.write(make(number))


CONTESTANTS = {
    "write_samples iterable": iterable,
    "write_samples inputs": inputs,
    "litdata": litdata,
    "MosaicML": mosaic,
}


def main() -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    contestant = CONTESTANTS[sys.argv[1]]
    for line in sys.stdin:
        folder, size, num_samples = json.loads(line)
        make, place = Maker(size), os.path.join(folder, sys.argv[1].replace(" ", "-"))
        started = time.perf_counter()
        contestant(make, place, num_samples, size)
        seconds = time.perf_counter() - started
        shutil.rmtree(place)
        print(seconds, file=replies, flush=True)


if __name__ == "__main__":
    main()
