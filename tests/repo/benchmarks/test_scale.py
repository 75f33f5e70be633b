"""The page "Scale": its tables are those that the benchmark computes, and what they count is what a server is asked."""

import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import ShardLoader
from dray.shards import Store
from tests.conftest import Dray
from tests.support.chaos import Chaos

ROOT = Path(__file__).parents[3]
FILE_BYTES, SHARD_SAMPLES, BATCH = 3_000, 10, 4


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arithmetic of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from scaling import case, sums  # type: ignore[import-not-found]  # no package: the benchmarks are scripts

    return sums, case.Case


def test_the_tables_of_the_page_are_those_that_the_benchmark_computes() -> None:
    """Nobody types a figure."""
    command = [sys.executable, ROOT / "benchmarks" / "scale.py", "sums"]
    tables = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n\n")
    page = (ROOT / "docs" / "scale.md").read_text()
    assert not [table for table in tables if table.strip() not in page]


class Counted:
    """A dataset on an S3 server; each method returns the requests that it sent there."""

    def __init__(self, s3: SeaweedServer, chaos: Chaos, dray: Dray, requests: type[Any]) -> None:
        url = s3.url(f"scale/{uuid.uuid4().hex}")
        self._inputs, self.output = Store(f"{url}/inputs", s3.storage_options), f"{url}/output"
        self._options = s3.storage_options | {"endpoint": chaos.endpoint}
        self._chaos, self._dray, self._requests = chaos, dray, requests

    def put(self, name: str) -> None:
        """Add an input file."""
        self._inputs.put_new(f"{name}.bin", b"." * FILE_BYTES)

    def build(self, num_shards: int) -> Any:
        """Build the dataset of all input files."""
        return self.run("build", self._inputs.url, self.output, "--suffix", "bin", "--shards", num_shards)

    def run(self, *words: object) -> Any:
        """Run a command."""
        self._chaos.clear()
        options = [word for name, value in self._options.items() for word in ("--storage-option", f"{name}={value}")]
        done = self._dray(*words, *options)
        assert done.code == 0, done.err
        return self._sent()

    def read_epoch(self) -> Any:
        """Open the dataset and read a shuffled epoch."""
        self._chaos.clear()
        loader = ShardLoader(
            self.output, batch_size=BATCH, shuffle=True, remainder="keep", collate=list, storage_options=self._options
        )
        assert sum(map(len, loader)) % SHARD_SAMPLES == 0
        return self._sent()

    def _sent(self) -> Any:
        kinds = Counter("LIST" if "list-type=2" in asked.path else asked.method for asked in self._chaos.log)
        reads = kinds["GET"] + kinds["HEAD"]
        return self._requests(puts=kinds["PUT"], gets=reads, lists=kinds["LIST"], deletes=kinds["POST"])


@pytest.fixture
def counted(s3: SeaweedServer, chaos: Chaos, dray: Dray, sums: Any) -> Counted:
    """A dataset without samples."""
    return Counted(s3, chaos, dray, sums[0].Requests)


@pytest.mark.parametrize("num_shards", [2, 5])
def test_requests_are_as_computed(counted: Counted, sums: Any, num_shards: int) -> None:
    """Those of a first build, a rerun, a quick verification, an epoch of one rank, and a gc."""
    arithmetic, make_case = sums
    case = make_case(
        num_samples=num_shards * SHARD_SAMPLES,
        sample_bytes=FILE_BYTES,
        num_nodes=1,
        ranks=1,
        global_batch=BATCH,
        shard_bytes=SHARD_SAMPLES * 3584 + 1024,
    )
    assert case.num_shards == num_shards
    for number in range(case.num_samples):
        counted.put(f"f{number % 3}/s{number:03d}")
    assert counted.build(num_shards) == arithmetic.first_build(case)
    assert counted.build(num_shards) == arithmetic.rerun(case)
    assert counted.run("verify", counted.output, "--level", "quick") == arithmetic.verify_quick(case)
    found, expected = counted.read_epoch(), arithmetic.epoch(case)
    assert found.lists == expected.lists
    assert 0.9 * expected.gets <= found.gets <= expected.gets  # neighbours share a request
    counted.build(num_shards + 3)
    assert counted.run("gc", counted.output, "--keep", 1, "--older-than", 0) == arithmetic.collect(case)
