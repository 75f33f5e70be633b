"""What a billion samples would take: measured on what one machine can hold, computed beyond.

    python benchmarks/scale.py                           # everything, at the sizes of docs/scale.md
    python benchmarks/scale.py sums                      # requests, seconds and dollars: arithmetic only
    python benchmarks/scale.py plan --samples 1000000
    python benchmarks/scale.py build --shards 1000 --address none

    plan       planning simulated sources: time, and memory of the driver
    partition  the same for one of ten partitions, by the hash of the key, of ten times as many samples
    scan       scanning the inputs on object storage; the objects are in memory
    records    sizes of the records of a version, the memory of a process that opens it, the order of an epoch
    build      a real build of tiny shards on Ray: the driver's memory must not grow with what is packed
    sums       see above; docs/scale.md shows this output

Each section runs in a process of its own. Peaks of memory include the interpreter (the first line) and what earlier
steps left.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from measured import Measured, measure
from scaling import sums
from scaling.building import RECORD_BYTES, SAMPLE_BYTES, build_moments, growth
from scaling.case import Case, Rates
from scaling.planning import plan_steps, scan_steps
from scaling.records import index_bytes, open_steps, order_lines, record_steps

PARTITIONS = 10


def main() -> None:
    """Run the sections that are asked for."""
    arguments = _arguments()
    for name in arguments.sections or SECTIONS:
        for line in SECTIONS[name](arguments):
            print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--samples", type=int, default=10_000_000, help="planned samples (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=1_000_000, help="scanned objects (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=10_000, help="shards that are built (default: %(default)s)")
    parser.add_argument("--address", default="local", help="of a Ray cluster, or none (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="where shards are built (default: a temporary folder)")
    return parser.parse_args()


def _plan(arguments: argparse.Namespace) -> Iterator[str]:
    yield f"planning {arguments.samples:,} samples"
    yield from _lines(measure(plan_steps, arguments.samples).result, arguments.samples)


def _partition(arguments: argparse.Namespace) -> Iterator[str]:
    total = PARTITIONS * arguments.samples
    yield f"planning 1 of {PARTITIONS} partitions, by the hash of the key, of {total:,} samples"
    yield from _lines(measure(plan_steps, total, PARTITIONS).result, arguments.samples)


def _scan(arguments: argparse.Namespace) -> Iterator[str]:
    yield f"scanning {arguments.objects:,} objects"
    yield from _lines(measure(scan_steps, arguments.objects).result, arguments.objects)


def _records(_: argparse.Namespace) -> Iterator[str]:
    case = Case()
    yield f"records of a version of {case.num_shards:,} shards"
    with tempfile.TemporaryDirectory() as folder:
        for steps in (measure(record_steps, case.num_shards, Path(folder)), measure(open_steps, Path(folder))):
            yield from _lines(steps.result, case.num_shards, "shard")
    yield from order_lines(case.num_samples, case.stored_bytes)
    yield f"index: {index_bytes(case.shard_samples, case.sample_bytes):.1f} bytes a sample"


def _build(arguments: argparse.Namespace) -> Iterator[str]:
    yield f"building {arguments.shards:,} shards, address={arguments.address!r}"
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        moments = build_moments(arguments.shards, arguments.address, Path(folder))
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        moment = next(moment for moment in moments if moment.num_stored >= share * arguments.shards * 0.99)
        yield f"  {moment.num_stored:>7,} shards stored: driver {_mib(moment.driver_bytes)}, {moment.seconds:.0f} s"
    yield f"  at its end: driver {_mib(moments[-1].driver_bytes)}, {moments[-1].seconds:.0f} s"
    grown = growth(moments, arguments.shards)
    yield f"  the driver grew by {grown:,.0f} bytes for each shard of {SAMPLE_BYTES:,}"
    if grown > RECORD_BYTES:
        raise SystemExit(f"the driver keeps more of a shard than a record of {RECORD_BYTES:,} bytes")


def _sums(_: argparse.Namespace) -> Iterator[str]:
    case, rates = Case(), Rates()
    yield sums.table(sums.request_rows(case))
    yield ""
    yield from sums.price_lines()
    tables = (
        sums.build_rows(case, rates),
        sums.driver_rows(rates),
        sums.epoch_rows(case, rates),
        sums.memory_rows(case, rates),
        sums.upkeep_rows(case, rates),
    )
    for rows in tables:
        yield ""
        yield sums.table(rows)


def _lines(steps: list[Measured], count: int, unit: str = "sample") -> Iterator[str]:
    idle = steps[0].peak_bytes
    for step in steps:
        yield (
            f"  {step.what:48} {step.seconds:7.2f} s {step.seconds / count * 1e6:7.2f} us a {unit}, "
            f"peak {_mib(step.peak_bytes)}, {(step.peak_bytes - idle) / count:6.0f} bytes a {unit}"
        )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "plan": _plan,
    "partition": _partition,
    "scan": _scan,
    "records": _records,
    "build": _build,
    "sums": _sums,
}

if __name__ == "__main__":
    main()
