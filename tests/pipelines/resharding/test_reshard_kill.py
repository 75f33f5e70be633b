"""Copies on Ray, and copies whose process is killed: the same bytes as of one that nobody disturbs."""

import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import reshard
from dray.shards import NotFoundError, Snapshot, Store
from dray.shards.verify import verify
from tests.pipelines.resharding.test_reshard import copy, made_samples, tars_of, write
from tests.support import processes
from tests.support.datasets import samples_at

SHAPE: dict[str, Any] = {"num_shards": 6, "shuffle_seed": 7}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 60 samples in 9 shards."""
    folder = tmp_path_factory.mktemp("source")
    write(made_samples(60), folder)
    return folder


def _copy_and_die(source: str, out: str, calls: int) -> None:
    """Copy, and be killed before a request that writes."""
    numbers, put_new = count(), Store.put_new

    def put_or_die(self: Store, name: str, data: bytes) -> None:
        if next(numbers) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        put_new(self, name, data)

    Store.put_new = put_or_die  # type: ignore[method-assign]
    reshard(source, out, progress=False, **SHAPE)


@pytest.mark.heavy
def test_a_copy_killed_before_any_write_is_finished_by_the_same_call(source: Path, tmp_path: Path) -> None:
    """It makes what is missing; until then there is no version."""
    copy(source, tmp_path / "whole", **SHAPE)
    for calls in range(18):
        out = tmp_path / f"out{calls}"
        doomed = processes.start(_copy_and_die, str(source), str(out), calls)
        doomed.join()
        if doomed.exitcode == 0:
            assert calls > 13  # intent, 6 shards with indexes, table, manifest, commit
            break
        with pytest.raises(NotFoundError):
            Snapshot.open(out)
        report = copy(source, out, **SHAPE)
        assert report.num_reused == min(6, calls // 2)
        assert tars_of(out) == tars_of(tmp_path / "whole")
        assert not list(verify(Snapshot.open(out)))
        assert Snapshot.open(out).commit.intent == 1
    else:
        pytest.fail("the copy was killed before each of 18 writes")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.heavy
def test_a_copy_on_ray_has_the_same_bytes(cluster: None, source: Path, s3: SeaweedServer, tmp_path: Path) -> None:
    """From a disk to object storage and back."""
    copy(source, tmp_path / "whole", **SHAPE)
    url = s3.url(f"reshard-{os.getpid()}")
    report = copy(source, url, storage_options=s3.storage_options, source_storage_options={}, **SHAPE)
    assert (report.num_shards, report.num_reused) == (6, 0)
    assert tars_of(url, storage_options=s3.storage_options) == tars_of(tmp_path / "whole")
    copy(url, tmp_path / "back", source_storage_options=s3.storage_options, samples_per_shard=7)
    assert sorted(samples_at(tmp_path / "back")) == sorted(samples_at(source))
