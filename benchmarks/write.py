"""Writing a dataset from a program: `write_samples` beside litdata's `optimize` and MosaicML's `MDSWriter`.

    python3 -m venv .venv-rivals && .venv-rivals/bin/pip install -r benchmarks/requirements.txt
    python benchmarks/write.py --rivals .venv-rivals/bin/python
    python benchmarks/write.py --sizes 4kB --samples 2000 --rounds 3

The same random float32 arrays, which lie in the page cache, are stored by each contestant in its own form in a local
folder, in shards of 64 MB. Every contestant has one process that stays; all of them take turns in every round, in an
order that changes from round to round. A ratio is taken inside each round, and the median of the rounds is shown. A
turn begins with the call and ends when the dataset can be opened; what it wrote is deleted after it. Before the first
round each contestant writes a dataset of which its own loader reads every number. Only dray waits until its shards are
on the disk.

    iterable    `write_samples` with a generator of samples
    inputs      `write_samples` with a function and its inputs, in the same process; a rerun would do nothing
    litdata     `optimize` with one worker, its fewest; each call starts one, which weighs on small datasets
    MosaicML    `MDSWriter` with an `ndarray` column, without compression and hashes: its fast form

Without --rivals, or where they are not installed, dray runs alone.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from loading.race import Contestant, Rates, find_entries, race, started
from loading.task import Task, parse_bytes

CONTESTANTS = (
    Contestant("iterable", "contestants:iterable", "dray", is_ours=True, package="making"),
    Contestant("inputs", "contestants:inputs", "dray", is_ours=True, package="making"),
    Contestant("litdata", "contestants:litdata", "litdata", package="making"),
    Contestant("MosaicML", "contestants:mosaic", "streaming", package="making"),
)
MOST_SAMPLES, MOST_BYTES, ROUNDS = 20_000, 400_000_000, 5


def main() -> None:
    """Race each size."""
    arguments = _arguments()
    entries = find_entries(CONTESTANTS, arguments.rivals)
    for size in arguments.sizes:
        num = arguments.samples or min(MOST_SAMPLES, MOST_BYTES // size)
        with tempfile.TemporaryDirectory(prefix="dray-benchmark-", dir=arguments.dir) as folder:
            task = Task(folder=folder, num_samples=num, num_floats=size // 4)
            task.write_samples()
            with started(entries, Path(folder)) as racers:
                print(f"\n{num:,} samples of {size / 1000:,.0f} kB")
                _print(race(racers, task, arguments.rounds))


def _print(rates: Rates) -> None:
    """The median rates, and the ratios of ours to those of the rivals."""
    for name, of_rounds in rates.items():
        print(f"  {name:<10} {statistics.median(of_rounds):>10,.0f} samples/s")
    ours, rivals = ([one.name for one in CONTESTANTS if one.is_ours is kind] for kind in (True, False))
    for theirs in [name for name in rivals if name in rates]:
        for name in ours:
            ratios = [our / their for our, their in zip(rates[name], rates[theirs], strict=True)]
            print(f"  {name} / {theirs}: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=parse_bytes, default=[4_000, 100_000], help="of a sample")
    parser.add_argument("--samples", type=int, help=f"default: {MOST_SAMPLES:,}, or as many as make 400 MB")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--rivals", type=os.path.abspath, metavar="PYTHON", help="the interpreter that has the rivals")
    parser.add_argument("--dir", type=os.path.abspath, help="where the data lie meanwhile: the disk to be measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
