"""The same work done twice at the same time: by threads, by processes, by several that prepare the same data."""

import os
import pickle
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import PickledDataWDS, Split
from dray.pipelines.building.job import PackedShard, PackJob, PackTask
from dray.pipelines.building.pack import pack_shard, read_index
from dray.pipelines.inputs.sources import find_sources
from dray.pipelines.inputs.transform import Function, Transform
from dray.pipelines.versions.holds import history
from dray.shards import Snapshot, Store
from dray.shards.index import digest_of
from dray.shards.layout import Layout, Location
from dray.shards.verify import verify
from tests.conftest import Inputs, MakeInputs, Place
from tests.support.processes import call_at_once, meet

SUFFIX = "tensor.pyd"
NUM_PROCESSES = 4
NUM_TASKS = 6


def job_of(inputs: Inputs, place: Place, function: Function | None) -> PackJob:
    return PackJob(
        inputs=Store(inputs.folder),
        location=Location(Store(place.url, place.storage_options), Layout("wds")),
        transform=Transform(function) if function else None,
    )


def tasks_of(inputs: Inputs) -> list[PackTask]:
    """`NUM_TASKS` shards of equal size."""
    sources = find_sources(Store(inputs.folder), inputs.names, inputs.suffixes)
    rows = np.split(np.arange(len(sources)), NUM_TASKS)
    return [PackTask(number=number, sources=sources.take(some), memory_bytes=1) for number, some in enumerate(rows)]


def random_parts(key: str, parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Other bytes of another size at each call."""
    return {"noise.bin": os.urandom(1000 + os.urandom(1)[0])}


def record(packed: PackedShard) -> dict[str, Any]:
    """All but whether it was adopted, in values that compare."""
    names = ("number", "num_bytes", "index_digest", "bad")
    arrays = {"is_packed": packed.is_packed.tolist(), "source_hashes": packed.source_hashes.tolist()}
    return {name: getattr(packed, name) for name in names} | arrays


def check_one_object_each(job: PackJob, attempts: list[list[PackedShard]]) -> None:
    """Of each task's attempts one stored its shard, all tell the same of it, and the index tells what is stored."""
    for twice in zip(*attempts, strict=True):
        assert [packed.adopted for packed in twice].count(False) == 1
        first = record(twice[0])
        assert all(record(packed) == first for packed in twice[1:])
        index = job.location.store.get(job.location.layout.index(first["number"]))
        assert digest_of(index) == first["index_digest"]
        assert index == read_index(job.location.store, job.location.layout.shard(first["number"])).to_bytes()
    assert (
        len(job.location.store.list_folder())
        == len(job.location.store.list_folder(job.location.layout.indexes))
        == NUM_TASKS
    )
    assert not job.location.store.leftovers()


@pytest.mark.parametrize("is_random", [False, True])
def test_two_threads_with_the_same_tasks_store_one_object_each(
    make_inputs: MakeInputs, place: Place, *, is_random: bool
) -> None:
    """Both have filled their shard before either stores it."""
    inputs, barrier = make_inputs(2 * NUM_TASKS), threading.Barrier(2, timeout=60)

    def meet_at_the_last_sample(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if int(key[-1]) % 2:
            barrier.wait()
        return random_parts(key, parts) if is_random else parts

    job, tasks = job_of(inputs, place, meet_at_the_last_sample), tasks_of(inputs)
    with ThreadPoolExecutor(2) as threads:
        attempts = list(threads.map(lambda _: [pack_shard(job, task) for task in tasks], range(2)))
    check_one_object_each(job, attempts)


def pack_all(job: PackJob, tasks: list[PackTask]) -> list[PackedShard]:
    """Each task together with the other process."""
    packed = []
    for task in tasks:
        meet()
        packed.append(pack_shard(job, task))
    return packed


@pytest.mark.parametrize("function", [None, random_parts])
@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_two_processes_with_the_same_tasks_store_one_object_each(
    make_inputs: MakeInputs, tmp_path: Path, request: pytest.FixtureRequest, kind: str, function: Function | None
) -> None:
    """As a retried task and its late first attempt do."""
    place = Place(str(tmp_path / "out"))
    if kind == "s3":
        server: SeaweedServer = request.getfixturevalue("s3")
        place = Place(server.url(uuid.uuid4().hex), server.storage_options)
    inputs = make_inputs(2 * NUM_TASKS)
    job = job_of(inputs, place, function)
    check_one_object_each(job, call_at_once(2, pack_all, job, tasks_of(inputs)))


def prepare(pickles: Path, output: Path, names: dict[Split, list[str]]) -> None:
    directories = {split: output / split.name for split in names}
    PickledDataWDS(pickles, names, SUFFIX, directories, 4, n_tars_wds=5, progress=False).prepare_data()


def check_prepared(inputs: Inputs, output: Path, names: dict[Split, list[str]], version: int) -> None:
    """One more version of each split, whole: just these samples; and no tar that no version names."""
    for split, subset in names.items():
        snapshot = Snapshot.open(output / split.name)
        commits = history(snapshot.location)
        assert [commit.version for commit in commits] == list(range(1, version + 1))
        assert list(verify(snapshot, "full")) == []
        found = {key: snapshot.read(key)[SUFFIX] for shard in snapshot.shards for key in snapshot.index(shard).keys}
        assert found == {name.replace(".", "-"): inputs.part(name, SUFFIX) for name in subset}
        versions = [Snapshot.load(snapshot.location, commit) for commit in commits]
        urls = {url for one in versions for url in one.urls()}
        assert {snapshot.store.url_of(info.name) for info in snapshot.store.list_folder()} == urls


def test_processes_that_prepare_the_same_data_at_once_make_one_version(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """A first build, an incremental one, and one that has nothing to do: all succeed."""
    inputs = make_inputs(48)
    names = {Split.train: inputs.names[:30], Split.val: inputs.names[30:40]}
    for version in (1, 2, 2):
        call_at_once(NUM_PROCESSES, prepare, inputs.folder, tmp_path / "out", names)
        check_prepared(inputs, tmp_path / "out", names, version)
        if version == 1:
            for split in names:
                inputs.path(names[split][3], SUFFIX).write_bytes(pickle.dumps("changed"))
            names = {Split.train: names[Split.train][:-1] + inputs.names[40:], Split.val: names[Split.val][1:]}
