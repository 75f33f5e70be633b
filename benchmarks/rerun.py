"""Rerunning a build of many small files on local disk: nothing to do, one file changed, one file new.

    python benchmarks/rerun.py
    python benchmarks/rerun.py --samples 100000 --rounds 5

Every build runs in a process of its own, whose peak memory is shown, beside the floor of any tool that compares
fingerprints: a process that looks up every file once. Both run in each round, in changing order; the ratio is taken
inside a round, and the median of the rounds is shown. A rerun with nothing to do must write nothing: the objects of the
dataset are compared before and after.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from measured import Measured, measure

from dray.pipelines import BuildReport, pickles_to_tars

SUFFIX = "pyd"
NUM_SHARDS = 10
FILE_BYTES = 64


def main() -> None:
    """Make the files, build, and measure the reruns."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        inputs, output = Path(folder, "inputs"), Path(folder, "output")
        names = _make_inputs(inputs, arguments.samples)
        print(f"{arguments.samples:,} files of {FILE_BYTES} bytes on {folder}, {NUM_SHARDS} shards")
        _show("first build", measure(_build, inputs, names, output))
        before = _objects(output)
        ratios, found = [], list[Measured]()
        for number in range(arguments.rounds):
            contestants: list[Callable[..., BuildReport | None]] = [_build, _look_up]
            taken = {}
            for contestant in contestants if number % 2 else contestants[::-1]:
                taken[contestant] = measure(contestant, inputs, names, output)
            ratios.append(taken[_build].seconds / taken[_look_up].seconds)
            found.append(taken[_build])
        if _objects(output) != before:
            raise SystemExit("a rerun with nothing to do has written something")
        _show("nothing to do", sorted(found, key=lambda one: one.seconds)[len(found) // 2])
        print(f"    time of it / of looking up every file once: {statistics.median(ratios):.2f}")
        (inputs / f"{names[len(names) // 3]}.{SUFFIX}").write_bytes(b"changed" * 9)
        _show("one file changed", measure(_build, inputs, names, output))
        (inputs / f"new.{SUFFIX}").write_bytes(b"new")
        _show("one file new", measure(_build, inputs, [*names, "new"], output))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000, help="files (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="reruns (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary folder)")
    return parser.parse_args()


def _make_inputs(folder: Path, num_samples: int) -> list[str]:
    folder.mkdir()
    names = [f"sample-{number:08d}" for number in range(num_samples)]
    for name in names:
        descriptor = os.open(f"{folder}/{name}.{SUFFIX}", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, name.encode().ljust(FILE_BYTES))
        os.close(descriptor)
    return names


def _build(inputs: Path, names: list[str], output: Path) -> BuildReport:
    return pickles_to_tars(
        inputs, names, SUFFIX, output, "wds", min_num_shards=NUM_SHARDS, address="none", progress=False
    )


def _look_up(inputs: Path, names: list[str], _: Path) -> None:
    for name in names:
        os.stat(f"{inputs}/{name}.{SUFFIX}")


def _objects(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (info.st_ino, info.st_mtime_ns) for path in folder.rglob("*") if (info := path.stat())}


def _show(what: str, found: Measured) -> None:
    report = found.result
    packed = f", {report.num_shards - report.num_reused} of {report.num_shards} shards packed" if report else ""
    print(f"{what:17} {found.seconds:7.1f} s, peak memory {found.peak_bytes / 2**20:6,.0f} MiB{packed}")


if __name__ == "__main__":
    main()
