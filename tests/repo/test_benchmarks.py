"""The benchmarks run: a contestant that no longer fits the code would otherwise be found when figures are wanted."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy  # processes for each contestant
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_packing_is_measured_against_the_others(tmp_path: Path) -> None:
    """On few samples: every contestant packs the same members, and the ratios are printed; what they are is no test."""
    command = [sys.executable, BENCHMARKS / "pack.py", "--sizes", "4kB", "--samples", "40", "--rounds", "1"]
    done = subprocess.run([*command, "--dir", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for line in ("dray pack", "dray call", "ShardWriter", "GNU tar", "time of ShardWriter / dray pack", "peak memory"):
        assert line in done.stdout


def test_builds_on_ray_are_measured_beside_those_in_process(tmp_path: Path) -> None:
    """On few shards: all contestants pack them, and both ratios are printed."""
    command = [sys.executable, BENCHMARKS / "ray_build.py", "--shards", "20", "--rounds", "1", "--dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for line in ("in_process", "grouped", "wall x 2 cores / summed task time", "summed task time / in process"):
        assert line in done.stdout


def test_ray_data_is_measured_beside_rays_own_readers_and_writer(tmp_path: Path) -> None:
    """On few samples, on a disk and on object storage: all ways give all of them, and the ratios are printed."""
    command = [sys.executable, BENCHMARKS / "ray_data.py", "--sizes", "4kB", "--samples", "60", "--rounds", "1"]
    command += ["--remote-rounds", "1", "--latency", "1", "--dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for place in ("local disk", "S3 with 1 ms"):
        for kind in ("input files", "shards"):
            assert f"{kind}, 60 x 4 kB, {place}" in done.stdout
    for ratio in ("read_pickles / read_binary_files", "read_shards / read_webdataset"):
        assert done.stdout.count(ratio) == 2
    for kind in ("rows in memory", "rows from files"):
        assert f"writing {kind}, 60 x 4 kB, local disk" in done.stdout
    assert done.stdout.count("write_shards / write_webdataset") == 2


def test_writing_is_measured_without_the_rivals(tmp_path: Path) -> None:
    """On few samples: both forms of `write_samples` write them."""
    command = [sys.executable, BENCHMARKS / "write.py", "--sizes", "4kB", "--samples", "60", "--rounds", "1"]
    done = subprocess.run([*command, "--dir", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for line in ("60 samples of 4 kB", "iterable ", "inputs ", "litdata is left out"):
        assert line in done.stdout


def test_reruns_are_measured_beside_their_floor(tmp_path: Path) -> None:
    """On few samples: it tells what was packed, and that a rerun with nothing to do wrote nothing."""
    command = [sys.executable, BENCHMARKS / "rerun.py", "--samples", "200", "--rounds", "1", "--dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for line in ("first build", "nothing to do", "looking up every file", "1 of 10 shards packed", "1 of 11 shards"):
        assert line in done.stdout


def test_loading_is_measured_against_the_others(tmp_path: Path) -> None:
    """On few samples, without the rivals that need an environment of their own: the contestants give all of them."""
    command = [sys.executable, BENCHMARKS / "load.py", "--sizes", "4kB", "--samples", "128", "--rounds", "1"]
    done = subprocess.run([*command, "--workers", "2", "--dir", tmp_path], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for line in (
        "in order",
        "shuffled",
        "copy",
        "bionemo",
        "Ray Data",
        "transcoded / bionemo",
        "litdata is left",
    ):
        assert line in done.stdout


def test_reading_from_object_storage_is_measured_against_raw_ranges() -> None:
    """On few samples: throughput, what was fetched for what was delivered, and what the first batch cost."""
    command = [sys.executable, BENCHMARKS / "remote.py", "--samples", "64", "--size", "4000", "--rounds", "1"]
    command += ["--short-samples", "0", "--latency", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for line in (
        "dray / raw", "8 ranks, 0 workers: fetched / delivered", "4 workers", "with a cache", "first batch at 90 %"
    ):  # fmt: skip
        assert line in done.stdout


def test_scale_is_measured_and_computed() -> None:
    """On few samples: each section prints its steps."""
    sizes = ["--samples", "2000", "--objects", "2000"]
    command = [sys.executable, BENCHMARKS / "scale.py", "plan", "partition", "scan", "records", "sums", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for line in (
        "plan a build without changes",
        "1 of 10 partitions",
        "scan the inputs",
        "open the version",
        "| epoch |",
    ):
        assert line in done.stdout


def test_the_memory_of_a_driver_does_not_grow_with_what_is_packed(tmp_path: Path) -> None:
    """A build of 10,000 shards on Ray: the benchmark fails if the driver keeps more of a shard than a small record."""
    command = [sys.executable, BENCHMARKS / "scale.py", "build", "--shards", "10000", "--dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10,000 shards" in done.stdout
    assert "the driver grew by" in done.stdout
