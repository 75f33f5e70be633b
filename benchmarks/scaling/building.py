"""A real build of many tiny shards: how much memory its driver has as the shards are stored."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dray.pipelines import pickles_to_tars

PREFIX, SUFFIX = "wds", "pyd"
SAMPLE_BYTES = 32_000  # one sample a shard
POLL_S = 0.2
FROM = 0.1  # share of the shards after which memory is compared: workers and caches are warm by then
RECORD_BYTES = 2048  # limit of what the driver keeps of a shard; one that kept tars or messages would need more


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of a build.

    Attributes:
        num_stored: Number of stored shards.
        driver_bytes: Resident memory of its driver.
        seconds: Time since its start.
    """

    num_stored: int
    driver_bytes: int
    seconds: float


def build_moments(num_shards: int, address: str, folder: Path) -> list[Moment]:
    """Build a dataset in a process of its own, and look at it from here until it ends.

    Raises:
        SystemExit: The build failed.
    """
    inputs, output = folder / "inputs", folder / "output"
    names = _make_inputs(inputs, num_shards)
    process = multiprocessing.get_context("forkserver").Process(target=_build, args=(inputs, names, output, address))
    process.start()
    moments = list(_moments(process, output))
    process.join()
    if process.exitcode:
        raise SystemExit(f"the build ended with {process.exitcode}")
    return moments


def growth(moments: list[Moment], num_shards: int) -> float:
    """Returns the bytes by which the driver's memory grew for each shard, from a tenth of the shards to the last."""
    packing = [moment for moment in moments if FROM * num_shards <= moment.num_stored < num_shards]
    first, last = packing[0], packing[-1]
    return (last.driver_bytes - first.driver_bytes) / max(1, last.num_stored - first.num_stored)


def _moments(process: multiprocessing.process.BaseProcess, output: Path) -> Iterator[Moment]:
    started = time.monotonic()
    while process.is_alive():
        stored = sum(name.endswith(".tar") for name in os.listdir(output)) if output.is_dir() else 0
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):  # it has just ended
            return
        yield Moment(stored, pages * os.sysconf("SC_PAGE_SIZE"), time.monotonic() - started)
        time.sleep(POLL_S)


def _make_inputs(folder: Path, num_samples: int) -> list[str]:
    folder.mkdir(parents=True)
    random = Random(0)
    names = [f"s{number:07d}" for number in range(num_samples)]
    for name in names:
        (folder / f"{name}.{SUFFIX}").write_bytes(random.randbytes(SAMPLE_BYTES))
    return names


def _build(inputs: Path, names: list[str], output: Path, address: str) -> None:
    pickles_to_tars(inputs, names, SUFFIX, output, PREFIX, min_num_shards=len(names), address=address)
