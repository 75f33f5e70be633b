"""Writing a dataset from a program: `write_samples` beside litdata's `optimize` and MosaicML's `MDSWriter`.

    python3 -m venv .venv-rivals && .venv-rivals/bin/pip install -r benchmarks/requirements.txt
    python benchmarks/write.py --rivals .venv-rivals/bin/python
    python benchmarks/write.py --sizes 4kB --samples 2000 --rounds 3

A function makes samples of one float32 array each, of numbers that are there before; each contestant stores them in its
own form in a local folder, in shards of 64 MiB. Every contestant has one process that stays; they take turns in every
round, in an order that changes from round to round. A ratio is taken inside each round, and the median of the rounds is
shown. A first turn of each is not counted. A turn begins with the call and ends when the dataset can be opened; what it
wrote is deleted after it.

    write_samples iterable    a generator of samples
    write_samples inputs      a function and its inputs, in the same process; a rerun would do nothing
    litdata                   `optimize` with one worker, its fewest
    MosaicML                  `MDSWriter` with an `ndarray` column, without compression and hashes: its fast form

Without --rivals, or where they are not installed, dray runs alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
CONTESTANTS = {"write_samples iterable": "", "write_samples inputs": "", "litdata": "litdata", "MosaicML": "streaming"}
OURS = ("write_samples iterable", "write_samples inputs")
MOST_SAMPLES, MOST_BYTES, ROUNDS = 20_000, 400_000_000, 5
UNITS = {"kB": 1_000, "MB": 1_000_000}


class Racer:
    """A contestant in a process of its own."""

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        command = [python, "-m", "making.runner", name]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def turn(self, folder: str, size: int, num_samples: int) -> float:
        """Returns the seconds that a turn took."""
        asked: IO[str] | None = self._process.stdin
        if asked is None or self._process.stdout is None:
            raise RuntimeError(self.name)
        print(json.dumps([folder, size, num_samples]), file=asked, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return float(answer)

    def end(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Race each size."""
    arguments = _arguments()
    racers = [Racer(name, python) for name, python in _interpreters(arguments.rivals).items()]
    try:
        for size in arguments.sizes:
            num = arguments.samples or min(MOST_SAMPLES, MOST_BYTES // size)
            with tempfile.TemporaryDirectory(prefix="dray-benchmark-", dir=arguments.dir) as folder:
                _race(racers, folder, size, num, arguments.rounds)
    finally:
        for racer in racers:
            racer.end()


def _interpreters(rivals: str | None) -> dict[str, str]:
    """Returns contestant -> its Python; says who is left out."""
    found = {}
    for name, module in CONTESTANTS.items():
        python = (rivals or sys.executable) if module else sys.executable
        look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        if module and subprocess.run([python, "-c", look], check=False).returncode:
            print(f"{name} is left out: {module} is not installed, see requirements.txt")
        else:
            found[name] = python
    return found


def _race(racers: list[Racer], folder: str, size: int, num_samples: int, rounds: int) -> None:
    seconds: dict[str, list[float]] = {racer.name: [] for racer in racers}
    for number in range(rounds + 1):
        shift = number % len(racers)
        for racer in (*racers[shift:], *racers[:shift]):
            taken = racer.turn(folder, size, num_samples)
            if number:
                seconds[racer.name].append(taken)
    print(f"\n{num_samples:,} samples of {size / 1000:,.0f} kB")
    for name, times in seconds.items():
        print(f"  {name:<26} {num_samples / statistics.median(times):>10,.0f} samples/s")
    for rival in seconds.keys() - OURS:
        for ours in OURS:
            ratios = [slow / fast for slow, fast in zip(seconds[rival], seconds[ours], strict=True)]
            print(f"  {ours} / {rival}: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=_bytes, default=[4_000, 100_000], help="of a sample")
    parser.add_argument("--samples", type=int, help=f"default: {MOST_SAMPLES:,}, or as many as make 400 MB")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--rivals", type=os.path.abspath, metavar="PYTHON", help="the interpreter that has the rivals")
    parser.add_argument("--dir", type=os.path.abspath, help="where the data lie meanwhile: the disk to be measured")
    return parser.parse_args()


def _bytes(text: str) -> int:
    """`4kB` is 4,000."""
    number, unit = text[:-2], text[-2:]
    if unit not in UNITS or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a number of kB or MB, such as 4kB")
    return int(number) * UNITS[unit]


if __name__ == "__main__":
    main()
