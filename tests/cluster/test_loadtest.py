"""`dray loadtest` prints what was read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import pickles_to_tars
from tests.conftest import Dray, Inputs, MakeInputs


def build(inputs: Inputs, url: str, **options: object) -> None:
    pickles_to_tars(inputs.folder, inputs.names, inputs.suffixes, url, "wdshards", min_num_shards=6, progress=False,
                    **options)  # type: ignore[arg-type]  # fmt: skip


def test_a_local_dataset_is_read_by_all_ranks(dray: Dray, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """It reads at most one epoch, and fetches nothing."""
    build(make_inputs(60), str(tmp_path / "out"))
    found = json.loads(dray("loadtest", tmp_path / "out", "--batch-size", 4, "--ranks", 3, "--steps", 99, "--json").out)
    assert (found["steps"], found["ranks"], found["shards"], found["requests"]) == (5, 3, 6, 0)
    assert 1 < found["shards_in_a_global_batch"] <= 6
    assert found["shards_in_a_random_batch"] == pytest.approx(6 * (1 - (5 / 6) ** 12))
    assert found["slowest_step_s"] > 0
    assert found["bytes_read_per_byte"] is None
    text = dray("loadtest", tmp_path / "out", "--no-shuffle", "--batch-size", 4, "--steps", 2).out
    assert "version 1, 1 rank x 4, 2 steps" in text
    assert "1.0 of 6 shards in a global batch; a random draw has 3.1" in text
    text = dray("loadtest", tmp_path / "out", "--workers", 1, "--batch-size", 4, "--steps", 2).out
    assert "samples/s" in text


def test_a_single_step_is_its_own_throughput(dray: Dray, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The first step is left out only if there are others."""
    build(make_inputs(8), str(tmp_path / "out"))
    found = json.loads(dray("loadtest", tmp_path / "out", "--batch-size", 8, "--steps", 1, "--json").out)
    assert found["samples_per_s"] == pytest.approx(8 / found["slowest_step_s"])


def test_a_remote_dataset_counts_what_was_fetched(dray: Dray, make_inputs: MakeInputs, s3: SeaweedServer) -> None:
    """It reports requests, and bytes fetched per byte needed."""
    build(make_inputs(60), s3.url("loadtest"), storage_options=s3.storage_options)
    options = [f"--storage-option={name}={value}" for name, value in s3.storage_options.items()]
    found = json.loads(dray("loadtest", s3.url("loadtest"), "--batch-size", 30, "--json", *options).out)
    assert found["requests"] > 0
    assert found["bytes_read_per_byte"] >= 1
    assert found["retries"] == 0


def test_too_small_a_dataset_is_an_error(dray: Dray, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The error is one line."""
    build(make_inputs(5), str(tmp_path / "out"))
    assert "fewer samples than one step" in dray("loadtest", tmp_path / "out", "--ranks", 9).err


def test_a_missing_compiled_module_is_reported(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Nothing else would explain why loading is slow."""
    build(make_inputs(5), str(tmp_path / "out"))
    code = "import sys; sys.modules['dray.loaders.batching.gather'] = None; from dray.cluster.cli import main; main()"
    command = [sys.executable, "-c", code, "loadtest", str(tmp_path / "out"), "--batch-size", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "dray.loaders.batching.gather: not compiled when dray was installed" in done.stderr
    assert "pickles.scan" not in done.stderr
    assert "samples/s" in done.stdout
