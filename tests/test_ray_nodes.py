"""Builds on a Ray cluster with a node that is unfit: errors that name it, and no sample left out for it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from dray.pipelines import BuildReport, pickles_to_tars
from dray.shards import ClusterError, InputError, Snapshot
from tests.conftest import Inputs, MakeInputs

pytestmark = pytest.mark.heavy  # nodes come and go

ROOT = Path(__file__).parent.parent
SIZE = {"object_store_memory": 80 << 20}
DIES_SOON = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs nothing; this process is its driver."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": DIES_SOON, **SIZE}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@contextmanager
def node(cluster: Cluster, environment: dict[str, str] | None = None, **size: Any) -> Iterator[str]:
    """A node of one CPU whose workers have an environment of their own; gives its id."""
    added = cluster.add_node(num_cpus=1, env_vars=environment or {}, **SIZE, **size)
    yield added.node_id
    cluster.remove_node(added)


@contextmanager
def node_that_mounts(cluster: Cluster, commands: str) -> Iterator[None]:
    """A node in a mount namespace of its own, where these commands were run: it sees other files than the others."""
    before = len(alive())
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={cluster.address}"]
    start += ["--num-cpus=1", f"--object-store-memory={SIZE['object_store_memory']}", "--disable-usage-stats"]
    script = f"{commands} && exec {' '.join(start)}"
    unshare = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    if unshare.returncode:
        pytest.skip("mount namespaces need root")
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.DEVNULL) as process:
        wait_for_nodes(before + 1)
        yield
        process.terminate()
    wait_for_nodes(before)


def alive() -> list[dict[str, Any]]:
    return [found for found in ray.nodes() if found["Alive"]]


def wait_for_nodes(number: int) -> None:
    deadline = time.monotonic() + 60
    while len(alive()) != number:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def build(inputs: Inputs, output: Path, **options: Any) -> BuildReport:
    options = {"min_num_shards": 10, "progress": False, **options}
    return pickles_to_tars(inputs.folder, inputs.names, inputs.suffixes, output, "wds", **options)


def package(folder: Path) -> Path:
    """A copy of dray as a folder to put on a path."""
    for room in ("shards", "pipelines", "loaders", "cluster"):
        shutil.copytree(ROOT / room, folder / "dray" / room, ignore=shutil.ignore_patterns("__pycache__", "package"))
    shutil.copy(ROOT / "cluster/package/__init__.py", folder / "dray")
    return folder


def without_dray(folder: Path) -> dict[str, str]:
    (folder / "dray").mkdir(parents=True)
    (folder / "dray/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'dray'\", name='dray')")
    return {"PYTHONPATH": str(folder)}


def with_another_dray(folder: Path) -> dict[str, str]:
    log = package(folder) / "dray/shards/log.py"
    log.write_text(log.read_text().replace("FORMAT = 1\n", "FORMAT = 2\n"))
    return {"PYTHONPATH": str(folder)}


def with_changed_code(folder: Path) -> dict[str, str]:
    tar = package(folder) / "dray/shards/tar.py"
    tar.write_text(tar.read_text() + "\n# changed\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("unfit", "found"),
    [
        (without_dray, r"cannot import dray \(ModuleNotFoundError: No module named 'dray'\)"),
        (with_another_dray, r"has dray .* \(format 2, code \w{8}\)"),
        (with_changed_code, r"has dray .* \(format 1, code \w{8}\)"),
    ],
)
def test_a_node_with_another_dray_or_none_is_refused_before_a_byte_is_written(
    cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path, unfit: Any, found: str
) -> None:
    """By name, with both versions and the way out, whatever on_error is; and a build without that node succeeds."""
    inputs = make_inputs(40)
    environment = unfit(tmp_path / "node")
    with node(cluster):
        with node(cluster, environment) as node_id:
            expected = rf"node .*id {node_id[:8]}\) {found}; this process has dray .*format 1.*py_modules"
            with pytest.raises(ClusterError, match=expected):
                build(inputs, tmp_path / "out", on_error="quarantine", max_bad="100%")
            assert not (tmp_path / "out").exists()
        assert build(inputs, tmp_path / "out").num_samples == 40


def test_an_equal_copy_of_dray_is_fit(cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The code decides, not where it was installed."""
    with node(cluster, {"PYTHONPATH": str(package(tmp_path / "node"))}):
        assert build(make_inputs(40), tmp_path / "out").num_samples == 40


MOUNTS = {
    "an empty folder": "mount -t tmpfs none {inputs}",
    "no folder": "mount -t tmpfs none {parent}",
    "an old copy": "mkdir {copy} && cp {inputs}/*1.tensor.pyd {copy} && mount --bind {copy} {inputs}",
}


@pytest.mark.parametrize(
    ("mount", "on_error"), list(zip(MOUNTS.values(), ["quarantine", "fail", "skip"], strict=True)), ids=MOUNTS
)
def test_inputs_that_one_node_does_not_see_are_an_error_of_that_node(
    cluster: Cluster, tmp_path: Path, mount: str, on_error: str
) -> None:
    """No sample is left out for it; without the node the build holds them all, and adopts what was stored."""
    inputs = Inputs(tmp_path / "parent/inputs", [f"s{number:03d}" for number in range(100)], ("tensor.pyd",))
    inputs.folder.mkdir(parents=True)
    for name in inputs.names:
        inputs.path(name, "tensor.pyd").write_bytes(name.encode() * 100)
    command = mount.format(inputs=inputs.folder, parent=inputs.folder.parent, copy=tmp_path / "copy")
    with node(cluster):
        with node_that_mounts(cluster, command), pytest.raises(ClusterError) as failure:
            build(inputs, tmp_path / "out", on_error=on_error, max_bad="100%")
        for text in (str(inputs.folder), "node ", "id ", "all nodes share"):
            assert text in str(failure.value)
        report = build(inputs, tmp_path / "out", on_error=on_error, max_bad="100%")
        assert (report.version, report.num_samples, report.left_out_url) == (1, 100, None)


def test_touched_inputs_that_one_node_does_not_see_are_an_error_of_that_node(
    cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """They are not taken for changed ones."""
    inputs = make_inputs(40)
    build(inputs, tmp_path / "out", address="none")
    for name in inputs.names:
        os.utime(inputs.path(name, "tensor.pyd"), (1, 1))
    empty = node_that_mounts(cluster, f"mount -t tmpfs none {inputs.folder}")
    with empty, pytest.raises(ClusterError, match=r"node .* cannot read sample 'sample\.0000'.*all nodes share"):
        build(inputs, tmp_path / "out")


def test_a_destination_that_one_node_does_not_see_is_an_error_of_that_node(
    cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """It is found before that node stores a shard where nobody looks for it."""
    inputs, output = make_inputs(40), tmp_path / "out"
    output.mkdir()
    with node(cluster):
        unfit = node_that_mounts(cluster, f"mount -t tmpfs none {output}")
        with unfit, pytest.raises(ClusterError, match=r"node .* does not see .*/intents/.*all nodes share"):
            build(inputs, output)
        assert build(inputs, output).version == 1


def test_a_file_that_vanished_during_the_build_stays_a_bad_input(
    cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """The driver cannot read it either: it is left out, or named, as in process."""
    inputs = make_inputs(40)

    def vanish(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        inputs.path("sample.0039", "tensor.pyd").unlink(missing_ok=True)
        return parts

    options: dict[str, Any] = {"func_output_data": vanish, "transform_version": "1"}
    with node(cluster):
        report = build(inputs, tmp_path / "out", on_error="quarantine", **options)
        assert (report.num_samples, report.num_quarantined) == (39, 1)
        inputs.path("sample.0039", "tensor.pyd").write_bytes(b"again")
        with pytest.raises(InputError, match=r"sample\.0039.*No such file"):
            build(inputs, tmp_path / "other", **options)


STARVED = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"}  # kills whatever works


def slow(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
    time.sleep(0.2)
    return parts


def test_a_task_that_is_killed_for_lack_of_memory_goes_on_where_there_is_more(
    cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each attempt reserves twice the memory, until only the larger node has that much."""
    inputs = make_inputs(20)
    with node(cluster, STARVED, memory=200 << 20), node(cluster):
        report = build(inputs, tmp_path / "out", func_output_data=slow, transform_version="1", progress=True)
    assert report.num_samples == Snapshot.open(tmp_path / "out", "wds").num_samples == 20
    assert "killed for lack of memory: once more with 0.3 GB reserved" in capsys.readouterr().err


def test_kills_for_lack_of_memory_end_in_an_error_that_names_the_shard(
    cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where even a whole node is too little; by then it was tried a few times."""
    inputs = make_inputs(4)
    expected = pytest.raises(ClusterError, match=r"shard 0 \(.*killed for lack of memory although 0\.3 GB.*smaller")
    with node(cluster, STARVED, memory=300 << 20), expected:
        build(inputs, tmp_path / "out", func_output_data=slow, transform_version="1", min_num_shards=1, progress=True)
    assert 2 <= capsys.readouterr().err.count("once more") <= 4
