"""Builds on Ray give the same bytes: one worker, several nodes, killed workers."""

import io
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from dray.pipelines import pickles_to_tars
from dray.pipelines.building import pack
from dray.pipelines.running import dispatch, pace
from dray.shards import CallError, ClusterError, DamagedError, InputError, Snapshot
from dray.shards.verify import verify
from tests.conftest import Inputs, MakeInputs, Place
from tests.pipelines.building.test_compact import compacted, eight_small
from tests.pipelines.building.test_compact_damage import flipped
from tests.support.datasets import latest

SUFFIXES = ("image.pyd", "label.cls")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs nothing and two nodes of one CPU; this process is their driver."""
    here = {"object_store_memory": 80 << 20}
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "dashboard_port": 0, **here}
    )
    for _ in range(2):
        nodes.add_node(num_cpus=1, **here)
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def build(inputs: Inputs, output: Path, **options: Any) -> Any:
    options = {"min_num_shards": 8, "progress": False, **options}
    return pickles_to_tars(inputs.folder, inputs.names, inputs.suffixes, output, "wds", **options)


def content(folder: Path) -> dict[str, bytes]:
    """Returns all objects of a build except the records with a time and a write id."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.parent.name not in RECORDS}


RECORDS = ("commits", "intents")


ONE_WORKER = """
import ray, sys
from pathlib import Path
from dray.pipelines import pickles_to_tars
folder, output, *names = sys.argv[1:]
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20)
pickles_to_tars(folder, names, ("image.pyd", "label.cls"), output, "wds", min_num_shards=8, progress=False)
"""


@pytest.mark.usefixtures("cluster")
def test_in_process_and_on_two_nodes_the_bytes_are_the_same(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Law 1: tars, indexes, manifests and tables of sources."""
    inputs = make_inputs(100, SUFFIXES)
    build(inputs, tmp_path / "process", address="none")
    report = build(inputs, tmp_path / "nodes")
    assert content(tmp_path / "process") == content(tmp_path / "nodes")
    assert len(list((tmp_path / "nodes").glob("wds-*.tar"))) == 8
    assert report.num_reused == 0


@pytest.mark.heavy
def test_so_does_one_worker_on_a_cluster_of_its_own(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Law 1, in a program that starts Ray itself."""
    inputs = make_inputs(100, SUFFIXES)
    build(inputs, tmp_path / "process", address="none")
    command = [sys.executable, "-c", ONE_WORKER, inputs.folder, tmp_path / "worker", *inputs.names]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "RAY_ADDRESS": "local"})
    assert content(tmp_path / "process") == content(tmp_path / "worker")


@pytest.mark.usefixtures("cluster")
def test_compacted_in_process_and_on_two_nodes_the_bytes_are_the_same(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """One task a merged shard; what is damaged is named by the worker."""
    places = [Place(str(tmp_path / name)) for name in ("process", "nodes", "damaged")]
    inputs = make_inputs(24)
    for place in places:
        eight_small(inputs, place)
    tar = tmp_path / "damaged" / "wds-000004.tar"
    tar.write_bytes(flipped(tar.read_bytes(), 513))
    compacted(places[0], address="none")
    compacted(places[1])
    with pytest.raises(DamagedError, match=r"wds-000004\.tar at offset \d+, key 'sample-0012'"):
        compacted(places[2])
    assert content(tmp_path / "process") == content(tmp_path / "nodes")
    assert latest(places[1]).version == 9


@pytest.mark.usefixtures("cluster")
def test_encoded_in_process_and_on_two_nodes_the_bytes_are_the_same(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Law 1; workers unpickle safely as well."""
    inputs = make_inputs(40, SUFFIXES)
    for number, name in enumerate(inputs.names):
        inputs.path(name, SUFFIXES[0]).write_bytes(pickle.dumps([number] if number % 3 else (number,)))
    for folder, address in (("process", "none"), ("nodes", None)):
        build(inputs, tmp_path / folder, encode="auto", address=address)
    assert content(tmp_path / "process") == content(tmp_path / "nodes")
    assert Snapshot.open(tmp_path / "nodes", "wds").manifest.counts()[0] == {
        "image.pyd": 2, "label.cls": 5, "image.json": 3
    }  # fmt: skip


@pytest.mark.usefixtures("cluster")
def test_the_work_is_spread_over_the_nodes(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Every node packs, and the driver does not."""

    def where(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        del key, parts
        return {"node.txt": ray.get_runtime_context().get_node_id().encode()}

    build(make_inputs(40, SUFFIXES), tmp_path / "out", func_output_data=where)
    snapshot = Snapshot.open(tmp_path / "out", "wds")
    starts = [snapshot.index(shard).offsets[0].tolist() for shard in snapshot.shards]
    nodes = {bytes(snapshot.store.get_ranges(snapshot.layout.shard(shard.number), start, [56])[0])
             for shard, start in zip(snapshot.shards, starts, strict=True)}  # fmt: skip
    assert len(nodes) == 2
    assert ray.get_runtime_context().get_node_id().encode() not in nodes


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_is_replaced_without_a_trace(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The retried task ends in the same bytes as an undisturbed build."""
    inputs, died = make_inputs(40, SUFFIXES), tmp_path / "died"

    def die_once(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if key == "sample-0021" and not died.exists():
            died.touch()
            os._exit(1)
        return parts

    build(inputs, tmp_path / "out", func_output_data=die_once, transform_version="1")
    undisturbed = {"func_output_data": lambda key, parts: parts, "transform_version": "1", "address": "none"}
    build(inputs, tmp_path / "undisturbed", **undisturbed)
    assert died.exists()
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("when", ["before its index is", "after its index was"])
def test_a_worker_that_dies_after_its_shard_was_stored_has_it_adopted(
    make_inputs: MakeInputs, tmp_path: Path, when: str
) -> None:
    """The retry's function gives other bytes; the index tells those that are stored."""
    inputs, died = make_inputs(40, SUFFIXES), tmp_path / "died"

    def noise(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        store_index = pack.store_index

        def die_once(*args: Any, **kwargs: Any) -> str:
            digest = store_index(*args, **kwargs) if when == "after its index was" else None
            with suppress(FileExistsError):
                died.touch(exist_ok=False)
                os._exit(1)
            return digest or store_index(*args, **kwargs)

        if not died.exists() and store_index.__name__ != die_once.__name__:
            pack.store_index = die_once
        return {"noise.bin": os.urandom(1000 + os.urandom(1)[0])}

    report = build(inputs, tmp_path / "out", func_output_data=noise)
    assert died.exists()
    assert (report.version, report.num_shards, report.num_reused) == (1, 8, 1)
    assert list(verify(Snapshot.open(tmp_path / "out", "wds"), "full")) == []
    assert len(list((tmp_path / "out").glob("wds-*"))) == 8


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_always_dies_ends_the_build_with_its_shard_named(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Retries are bounded; the other shards serve the next build."""
    inputs = make_inputs(40, SUFFIXES)

    def die(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if key == "sample-0021":
            os._exit(1)
        return parts

    with pytest.raises(ClusterError, match=r"shard 4 .*'sample\.0020' to 'sample\.0024'"):
        build(inputs, tmp_path / "out", func_output_data=die, transform_version="1")
    report = build(inputs, tmp_path / "out", func_output_data=lambda key, parts: parts, transform_version="1")
    assert 4 <= report.num_reused < 8
    assert report.version == 1  # the build that failed made none


@pytest.mark.usefixtures("cluster")
def test_the_driver_says_again_and_again_what_it_waits_for(
    make_inputs: MakeInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason: another job holds the cluster's CPUs."""
    monkeypatch.setattr(dispatch, "SILENT_S", 0.3)
    errors, held, release = io.StringIO(), [tmp_path / "one", tmp_path / "two"], tmp_path / "release"

    @ray.remote(num_cpus=1)
    def hold_a_cpu(path: Path) -> None:
        path.touch()
        while not release.exists():
            time.sleep(0.05)

    def release_after_two_lines() -> None:
        while errors.getvalue().count("nothing has finished") < 2:
            time.sleep(0.05)
        release.touch()

    tasks = [hold_a_cpu.remote(path) for path in held]
    while not all(path.exists() for path in held):
        time.sleep(0.01)
    monkeypatch.setattr(sys, "stderr", errors)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(release_after_two_lines)
        build(make_inputs(1, SUFFIXES), tmp_path / "out", progress=True)
    assert "waiting for shard 0 (samples 'sample.0000' to 'sample.0000'): all CPUs are taken" in errors.getvalue()
    ray.get(tasks)


@pytest.mark.usefixtures("cluster")
def test_small_shards_share_a_task(make_inputs: MakeInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far fewer Ray tasks than shards, the same bytes; compaction groups as well."""
    groups: list[int] = []
    send = dispatch.Sender.send

    def count(self: Any, tasks: Any, memory_bytes: int) -> Any:
        groups.append(len(tasks))
        return send(self, tasks, memory_bytes)

    monkeypatch.setattr(dispatch.Sender, "send", count)
    monkeypatch.setattr(pace, "GROUP_S", 60.0)  # so that the speed of a busy machine does not matter
    inputs = make_inputs(200, SUFFIXES)
    build(inputs, tmp_path / "process", min_num_shards=200, address="none")
    build(inputs, tmp_path / "nodes", min_num_shards=200)
    assert content(tmp_path / "process") == content(tmp_path / "nodes")
    assert sum(groups) == 200
    assert len(groups) < 100


@pytest.mark.usefixtures("cluster")
def test_bad_samples_of_a_group_are_counted_for_their_shards(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """A shard of a group is stored without them, or not at all; its neighbours are whole."""
    inputs = make_inputs(120, SUFFIXES)

    def fail(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if key in ("sample-0013", "sample-0090"):
            raise ValueError("oops")
        return parts

    options: dict[str, Any] = {"func_output_data": fail, "transform_version": "1", "min_num_shards": 60}
    for name, address in (("process", "none"), ("nodes", None)):
        build(inputs, tmp_path / name, on_error="skip", max_bad=2, address=address, **options)
    assert content(tmp_path / "process") == content(tmp_path / "nodes")
    with pytest.raises(InputError, match=r"2 of 120 samples .*sample\.0013"):
        build(inputs, tmp_path / "fails", **options)
    assert len(list((tmp_path / "fails").glob("*.tar"))) == 58


@pytest.mark.usefixtures("cluster")
def test_a_failing_sample_is_named_and_not_retried(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The error is the same as in process: its type, and the sample."""
    tries = tmp_path / "tries"

    def fail(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if key == "sample-0021":
            with tries.open("a") as file:
                file.write("x")
            raise ValueError("oops")
        return parts

    with pytest.raises(InputError, match=r"sample\.0021.*ValueError: oops") as failure:
        build(make_inputs(40, SUFFIXES), tmp_path / "out", func_output_data=fail)
    assert type(failure.value) is InputError
    assert tries.read_text() == "x"


@pytest.mark.usefixtures("cluster")
def test_a_function_from_a_module_that_workers_lack_says_so(
    make_inputs: MakeInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function arrives by reference; the worker names the module, and no sample is left out for it."""
    (tmp_path / "only_at_the_driver.py").write_text("def transform(key, parts):\n    return parts\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_at_the_driver  # type: ignore[import-not-found]

    options = {"func_output_data": only_at_the_driver.transform, "on_error": "skip", "max_bad": "100%"}
    with pytest.raises(ClusterError, match=r"node .* id \w{8}\).*sample\.\d+.*'only_at_the_driver'.*runtime_env"):
        build(make_inputs(5, SUFFIXES), tmp_path / "out", **options)
    del sys.modules["only_at_the_driver"]


@pytest.mark.usefixtures("cluster")
def test_a_function_that_cannot_travel_says_so(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Before anything is packed, with advice."""
    lock = threading.Lock()
    with pytest.raises(CallError, match=r"func_output_data cannot be sent to other processes.*'none'"):
        build(make_inputs(5, SUFFIXES), tmp_path / "out", func_output_data=lambda key, parts: {"x": str(lock).encode()})


@pytest.mark.usefixtures("cluster")
def test_inside_a_ray_task_a_build_runs_in_process(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The task holds its CPU, and a training group may hold all: a nested task might never start."""
    inputs = make_inputs(20, SUFFIXES)

    @ray.remote(num_cpus=1)
    def hold_a_cpu(output: Path) -> tuple[int, list[bytes]]:
        pids = {"func_output_data": lambda key, parts: {"pid.cls": os.getpid()}}
        pickles_to_tars(inputs.folder, inputs.names, inputs.suffixes, output, "wds", progress=False, **pids)
        snapshot = Snapshot.open(output, "wds")
        index = snapshot.index(snapshot.shards[0])
        name = snapshot.layout.shard(0)
        found = snapshot.store.get_ranges(name, index.offsets[:, 0].tolist(), index.sizes[:, 0].tolist())
        return os.getpid(), [bytes(data) for data in found]

    for pid, found in ray.get([hold_a_cpu.remote(tmp_path / out) for out in "ab"], timeout=60):
        assert set(found) == {str(pid).encode()}
