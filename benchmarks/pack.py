"""Packing pickles on local disk: dray against webdataset's ShardWriter and GNU tar.

    python benchmarks/pack.py
    python benchmarks/pack.py --sizes 4kB --samples 5000 --rounds 3

All contestants pack the same pickled tensors, in one process tree, one after the other in every round, in an order that
changes from round to round; a ratio is taken inside each round, and the median of the rounds is shown, so that a
machine that slows down meanwhile slows all of them. Inputs lie in the page cache. Before each run dirty pages are
written back, so that nobody pays for the writes of the one before. Only dray waits until its own are on the disk.

    dray pack    the pack step of a build in process: files in, shards and their indexes out, on the disk
    dray npy     the same, each tensor unpickled safely and stored as `.npy` (encode={"tensor.pyd": "npy"})
    dray call    `pickles_to_tars`: fingerprints, plan, pack step, table of sources, commit
    ShardWriter  the loop of bionemo-webdatamodule, without its unpickling and pickling again
    GNU tar      one process, one tar, names from a file
"""

import argparse
import io
import multiprocessing
import os
import pickle
import random
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import webdataset

from dray.pipelines import pickles_to_tars
from dray.pipelines.building.job import PackJob, PackTask
from dray.pipelines.building.pack import pack_shards
from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.inputs.sources import find_sources
from dray.pipelines.planning.plan import plan
from dray.pipelines.planning.recipe import Recipe
from dray.shards.layout import Layout, Location
from dray.shards.storage.store import Store

SUFFIX = "tensor.pyd"
NUM_SHARDS = 10
WARM_UP_SAMPLES = 100
MEMORY_TARGET = 2.0  # most bytes of memory per byte of shard
UNITS = {"kB": 1_000, "MB": 1_000_000, "B": 1}


@dataclass(frozen=True, slots=True)
class Inputs:
    """The pickles of one size.

    Attributes:
        directory: holds `{name}.{SUFFIX}` for every name, and nothing else.
        names: in the order in which they are packed.
    """

    directory: Path
    names: list[str]


@dataclass(frozen=True, slots=True)
class Target:
    """What a comparison should come to.

    Attributes:
        ours: the contestant of dray.
        theirs: the one it is compared with.
        ratio: of their time to ours if it is to be at least this, of our time to theirs if at most.
        at_least: which of the two.
    """

    ours: str
    theirs: str
    ratio: float
    at_least: bool

    def found(self, seconds: dict[str, list[float]]) -> float:
        """The median over the rounds of the ratio inside each."""
        pairs = zip(seconds[self.ours], seconds[self.theirs], strict=True)
        return statistics.median(theirs / ours if self.at_least else ours / theirs for ours, theirs in pairs)


TARGET_BYTES = 4_000  # the size that the targets are for: larger samples are bound by memory and disk
TARGETS = (
    Target("dray pack", "ShardWriter", 5.0, at_least=True),
    Target("dray pack", "GNU tar", 1.2, at_least=False),
    Target("dray npy", "dray pack", 2.0, at_least=False),
    Target("dray call", "ShardWriter", 3.5, at_least=True),
    Target("dray call", "GNU tar", 2.0, at_least=False),
)


Run = Callable[[], object]
Prepare = Callable[[Inputs, Path], Run]  # what lies before the returned call is not timed


def dray_pack(inputs: Inputs, output: Path, num_shards: int = NUM_SHARDS, encode: dict[str, str] | None = None) -> Run:
    """The pack step of a build in process, its files fingerprinted and planned beforehand."""
    encoder = Encoder.of(encode, (SUFFIX,))
    recipe = Recipe(suffixes=(SUFFIX,), num_shards=num_shards, encoder=encoder)
    source, target = Store(inputs.directory), Store(output)
    job = PackJob(inputs=source, location=Location(target, Layout("shards")), transform=None, encoder=encoder)
    sources = find_sources(job.inputs, inputs.names, recipe.suffixes)
    tasks = [
        PackTask(number=number, sources=sources.take(shard.rows), memory_bytes=shard.num_bytes)
        for number, shard in enumerate(plan(sources, recipe).shards)
    ]
    return lambda: list(pack_shards(job, tasks))


def dray_npy(inputs: Inputs, output: Path) -> Run:
    """The pack step with encoding."""
    return dray_pack(inputs, output, encode={SUFFIX: "npy"})


def dray_call(inputs: Inputs, output: Path) -> Run:
    """The whole call, as users of bionemo-webdatamodule make it."""
    source, names, target = str(inputs.directory), inputs.names, str(output)
    return lambda: pickles_to_tars(source, names, SUFFIX, target, "shards", min_num_shards=NUM_SHARDS, progress=False)


def shard_writer(inputs: Inputs, output: Path) -> Run:
    """As bionemo-webdatamodule does it, with the bytes of the file as they are: the fastest honest reading."""
    pattern, maxcount = str(output / "shards-%06d.tar"), -(-len(inputs.names) // NUM_SHARDS)
    options = {"encoder": False, "compress": False, "mode": 0o777, "verbose": 0}

    def run() -> None:
        with webdataset.ShardWriter(pattern, maxcount=maxcount, **options) as sink:
            for name in inputs.names:
                with open(f"{inputs.directory}/{name}.{SUFFIX}", "rb") as file:
                    sink.write({"__key__": name.replace(".", "-"), SUFFIX: file.read()})

    return run


def gnu_tar(inputs: Inputs, output: Path) -> Run:
    """One process and one tar for all files: ten would start ten times."""
    members = output / "members"
    members.write_text("".join(f"{name}.{SUFFIX}\n" for name in inputs.names))
    command = ["tar", "--create", "--format=ustar", f"--directory={inputs.directory}", f"--files-from={members}"]
    return lambda: subprocess.run([*command, f"--file={output / 'shards-000000.tar'}"], check=True)


CONTESTANTS: dict[str, Prepare] = {
    "dray pack": dray_pack,
    "dray npy": dray_npy,
    "dray call": dray_call,
    "ShardWriter": shard_writer,
    "GNU tar": gnu_tar,
}


def make_inputs(directory: Path, payload_bytes: int, num_samples: int) -> Inputs:
    """Pickled float32 tensors of `payload_bytes` bytes each, no two alike."""
    directory.mkdir(parents=True)
    names = [f"sample{i:07d}" for i in range(num_samples)]
    for name in names:
        (directory / f"{name}.{SUFFIX}").write_bytes(pickle.dumps(torch.rand(payload_bytes // 4)))
    return Inputs(directory, names)


def check_contestants(inputs: Inputs, scratch: Path) -> None:
    """Raises RuntimeError unless every contestant packs the same members; also warms them up."""
    few = Inputs(inputs.directory, inputs.names[:WARM_UP_SAMPLES])
    expected = {f"{name}.{SUFFIX}": (few.directory / f"{name}.{SUFFIX}").read_bytes() for name in few.names}
    for name, prepare in CONTESTANTS.items():
        found: dict[str, bytes] = {}
        with tempfile.TemporaryDirectory(dir=scratch) as output:
            prepare(few, Path(output))()
            for path in Path(output).glob("*.tar"):
                found |= members_of(path)
        if found != (as_npy(expected) if name == "dray npy" else expected):
            raise RuntimeError(
                f"{name}: expected the bytes of {len(expected)} samples, found {len(found)} other members"
            )


def as_npy(members: dict[str, bytes]) -> dict[str, bytes]:
    """What numpy makes of the tensors."""
    saved: dict[str, bytes] = {}
    for name, data in members.items():
        stream = io.BytesIO()
        np.save(stream, pickle.loads(data).numpy())
        saved[f"{name.removesuffix('pyd')}npy"] = stream.getvalue()
    return saved


def members_of(path: Path) -> dict[str, bytes]:
    """Every file of a tar, by name."""
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


def seconds_of(prepare: Prepare, inputs: Inputs, scratch: Path) -> float:
    """The wall time of one run into an empty folder, which is then removed."""
    output = Path(tempfile.mkdtemp(dir=scratch))
    run = prepare(inputs, output)
    os.sync()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds


def race(inputs: Inputs, scratch: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    order, shuffle = list(CONTESTANTS), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # a rotation would always put the same one behind the same other, and its freed memory
        for name in order:
            seconds[name].append(seconds_of(CONTESTANTS[name], inputs, scratch))
    return seconds


def memory_ratio(inputs: Inputs, scratch: Path) -> float:
    """Memory that packing all samples into one shard takes at its peak, in a process of its own, per byte of shard."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory_ratio_here, inputs, scratch).result()


def memory_ratio_here(inputs: Inputs, scratch: Path) -> float:
    """`memory_ratio` of this process; Linux only."""
    with tempfile.TemporaryDirectory(dir=scratch) as warm_up:
        dray_pack(Inputs(inputs.directory, inputs.names[:1]), Path(warm_up), num_shards=1)()  # imports do not count
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        run = dray_pack(inputs, Path(output), num_shards=1)
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # resets VmHWM; getrusage would give the parent's if that is larger
        before = status_bytes("VmRSS")
        run()
        used = status_bytes("VmHWM") - before
        (shard,) = Path(output).glob("*.tar")
        return used / shard.stat().st_size


def status_bytes(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"expected a line {field!r} in /proc/self/status")


def report(payload_bytes: int, inputs: Inputs, seconds: dict[str, list[float]], memory: float) -> None:
    """Prints the tables of one size."""
    num_samples, rounds = len(inputs.names), len(seconds["dray pack"])
    total_mb = sum((inputs.directory / f"{name}.{SUFFIX}").stat().st_size for name in inputs.names) / 1e6
    print(
        f"\n{num_samples:,} samples of {payload_bytes / 1e3:,g} kB, {total_mb:,.0f} MB of pickles, rounds: {rounds}\n"
    )
    print(f"{'':14}{'median s':>10}{'fastest s':>11}{'samples/s':>12}{'MB/s':>8}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:14}{median:10.3f}{min(times):11.3f}{num_samples / median:12,.0f}{total_mb / median:8,.0f}")
    print(f"\n{'':46}{'found':>8}  target")
    for target in TARGETS:
        above, below = (target.theirs, target.ours) if target.at_least else (target.ours, target.theirs)
        wanted = target.ratio if payload_bytes == TARGET_BYTES else None
        print_ratio(f"time of {above} / {below}", target.found(seconds), wanted, target.at_least)
    print_ratio("peak memory of packing one shard / its bytes", memory, MEMORY_TARGET, at_least=False)


def print_ratio(label: str, found: float, target: float | None, at_least: bool) -> None:
    """Prints one ratio, and what became of its target."""
    verdict = ""
    if target is not None:
        kept = found >= target if at_least else found <= target
        verdict = f"{'>=' if at_least else '<='} {target:.1f}  {'kept' if kept else 'MISSED'}"
    print(f"{label:46}{found:8.2f}  {verdict}".rstrip())


def parse_bytes(text: str) -> int:
    """`4kB` is 4,000."""
    for unit, factor in UNITS.items():
        if text.endswith(unit) and text.removesuffix(unit).isdigit():
            return int(text.removesuffix(unit)) * factor
    raise argparse.ArgumentTypeError(f"expected a size like 4kB or 2MB, found {text!r}")


def parse_arguments() -> argparse.Namespace:
    """The command line; `sizes` and `samples` come out equally long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=parse_bytes, default=[4_000, 100_000, 2_000_000], help="of a tensor")
    parser.add_argument("--samples", nargs="+", type=int, help="one number a size; 20,000 or 200 MB if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where the data lie meanwhile: the disk to be measured")
    arguments = parser.parse_args()
    if arguments.samples is None:
        arguments.samples = [min(20_000, 200_000_000 // payload_bytes) for payload_bytes in arguments.sizes]
    if len(arguments.samples) != len(arguments.sizes):
        parser.error(f"expected {len(arguments.sizes)} numbers after --samples, found {len(arguments.samples)}")
    return arguments


def main() -> None:
    """Runs all sizes in a temporary directory, which is removed."""
    arguments = parse_arguments()
    for payload_bytes, num_samples in zip(arguments.sizes, arguments.samples, strict=True):
        with tempfile.TemporaryDirectory(prefix="dray-benchmark-", dir=arguments.dir) as folder:
            scratch = Path(folder)
            inputs = make_inputs(scratch / "inputs", payload_bytes, num_samples)
            check_contestants(inputs, scratch)
            report(payload_bytes, inputs, race(inputs, scratch, arguments.rounds), memory_ratio(inputs, scratch))


if __name__ == "__main__":
    main()
