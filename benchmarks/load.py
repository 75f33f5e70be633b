"""Loading tensors from local disk: dray beside the others, and beside copying the same bytes.

    python3 -m venv .venv-rivals && .venv-rivals/bin/pip install -r benchmarks/requirements.txt
    python benchmarks/load.py --rivals .venv-rivals/bin/python
    python benchmarks/load.py --sizes 4kB --samples 5000 --quick

The same random float32 tensors, written in each contestant's own form, are loaded in batches of 32, in this process
tree: every contestant has one process that stays, all of them take turns in every round, in an order that changes from
round to round. A turn is as many whole epochs as last half a second. A ratio is taken inside each round, and the median
of the rounds is shown, so that a machine that slows down meanwhile slows all of them. The files lie in the page cache.
Before the first round each contestant loads an epoch of which every number is looked at; in a turn the first and the
last number of every row are kept, and tell that each sample came once an epoch.

    copy                the yardstick: see loading/copying.py
    bionemo             the documented example of bionemo-webdatamodule, which batches in the training process
    litdata, MosaicML   from the interpreter of --rivals, or where they are installed here
    Ray Data            `iter_torch_batches`, over Parquet
    dray WebDataModule  the documented example, unchanged, with dray's import
    dray pickled        `ShardLoader`, over pickled tensors
    dray transcoded     `ShardLoader`, over .npy parts
"""

import argparse
import os
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

from loading.race import CONTESTANTS, find_entries, race, started, write
from loading.report import print_table, print_targets
from loading.task import BATCH, Task, parse_bytes

MOST_SAMPLES, MOST_BYTES = 20_480, 512_000_000
ROUNDS, QUICK_ROUNDS = 7, 2


def main() -> None:
    """Write and race each size."""
    arguments = _arguments()
    entries = find_entries(CONTESTANTS, arguments.rivals)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    results = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="dray-benchmark-", dir=arguments.dir) as folder:
            given = Task(folder=folder, num_samples=_num_samples(size, arguments.samples), num_floats=size // 4)
            write(given, entries)
            with started(entries, Path(folder)) as racers:
                for num_workers, shuffle in product(arguments.workers, (False, True)):
                    task = replace(given, num_workers=num_workers, shuffle=shuffle)
                    results.append((task, race(racers, task, rounds)))
                    print_table(*results[-1])
    print_targets(results)


def _num_samples(size: int, most: int | None) -> int:
    """As many as are wanted, in whole batches for two workers."""
    wanted = min(MOST_SAMPLES, MOST_BYTES // size) if most is None else most
    return max(1, wanted // (2 * BATCH)) * 2 * BATCH


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=parse_bytes, default=[4_000, 100_000, 2_000_000], help="of a sample")
    parser.add_argument("--samples", type=int, help=f"default: {MOST_SAMPLES:,}, or as many as make 512 MB")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument(
        "--rivals",
        type=os.path.abspath,
        metavar="PYTHON",
        help="the interpreter that has litdata and MosaicML streaming",
    )
    parser.add_argument("--dir", type=os.path.abspath, help="where the data lie meanwhile: the disk to be measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
