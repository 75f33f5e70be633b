"""Builds on a Ray cluster with a node that is unfit: errors that name it, and no sample left out for it."""

import os
import shutil
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from dray.cluster.cli.exits import ExitCode
from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import BuildReport, pickles_to_tars
from dray.shards import ClusterError, DeniedError, InputError, Snapshot, Store
from tests.conftest import Inputs, MakeInputs

pytestmark = pytest.mark.heavy  # nodes come and go

ROOT = Path(__file__).parents[3]
DRAY = Path(sys.executable).parent / "dray"
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
    head = {"num_cpus": 0, "include_dashboard": False, "dashboard_port": 0, "_system_config": DIES_SOON, **SIZE}
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
    records = package(folder) / "dray/shards/parsing/records.py"
    records.write_text(records.read_text().replace("FORMAT = 2\n", "FORMAT = 3\n"))
    return {"PYTHONPATH": str(folder)}


def with_changed_code(folder: Path) -> dict[str, str]:
    tar = package(folder) / "dray/shards/tar.py"
    tar.write_text(tar.read_text() + "\n# changed\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("unfit", "found"),
    [
        (without_dray, r"cannot import dray \(ModuleNotFoundError: No module named 'dray'\)"),
        (with_another_dray, r"has dray .* \(format 3, code \w{8}\)"),
        (with_changed_code, r"has dray .* \(format 2, code \w{8}\)"),
    ],
)
def test_a_node_with_another_dray_or_none_is_refused_before_a_byte_is_written(
    cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path, unfit: Any, found: str
) -> None:
    """By name, with both versions and advice, for any on_error; and a build without that node succeeds."""
    inputs = make_inputs(40)
    environment = unfit(tmp_path / "node")
    with node(cluster):
        with node(cluster, environment) as node_id:
            expected = rf"node .*id {node_id[:8]}\) {found}; this process has dray .*format 2.*py_modules"
            with pytest.raises(ClusterError, match=expected):
                build(inputs, tmp_path / "out", on_error="quarantine", max_bad="100%")
            assert not (tmp_path / "out").exists()
        assert build(inputs, tmp_path / "out").num_samples == 40


def test_an_equal_copy_of_dray_is_fit(cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The code decides, not where it was installed, and not that a folder alone does not know its version."""
    folder = package(tmp_path / "node") / "dray"
    (folder / "__init__.py").write_text('UNKNOWN_VERSION = __version__ = "of unknown version"\n')
    with node(cluster, {"PYTHONPATH": str(folder.parent)}):
        assert build(make_inputs(40), tmp_path / "out").num_samples == 40


def test_the_way_out_for_a_node_without_dray_works(cluster: Cluster, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Ray ships the folder of dray to it, as the error says."""
    inputs, folder = make_inputs(40), package(tmp_path / "shipped") / "dray"
    script = (
        "import ray, sys; from dray.pipelines import pickles_to_tars; address, folder, source, output = sys.argv[1:]"
    )
    script += "\nray.init(address, runtime_env={'py_modules': [folder]})"
    script += "\nnames = [f'sample.{number:04d}' for number in range(40)]"
    script += "\nprint(pickles_to_tars(source, names, 'tensor.pyd', output, 'wds').num_samples)"
    arguments = [cluster.address, str(folder), str(inputs.folder), str(tmp_path / "out")]
    with node(cluster, without_dray(tmp_path / "node")):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout == "40\n", done.stderr


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
    """It is detected before that node stores a shard in the wrong place."""
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
    """If even a whole node has too little memory, after a few attempts."""
    inputs = make_inputs(4)
    expected = pytest.raises(ClusterError, match=r"shard 0 \(.*killed for lack of memory although 0\.3 GB.*smaller")
    with node(cluster, STARVED, memory=300 << 20), expected:
        build(inputs, tmp_path / "out", func_output_data=slow, transform_version="1", min_num_shards=1, progress=True)
    assert 2 <= capsys.readouterr().err.count("once more") <= 4


def without_keys(s3: SeaweedServer) -> dict[str, str]:
    return {name: str(value).lower() for name, value in s3.storage_options.items() if "key" not in name}


def keys_in_environment(s3: SeaweedServer) -> dict[str, str]:
    options = s3.storage_options
    return {"AWS_ACCESS_KEY_ID": options["access_key_id"], "AWS_SECRET_ACCESS_KEY": options["secret_access_key"]}


@pytest.mark.parametrize(
    ("on_s3", "code"),
    [("inputs", ExitCode.CLUSTER), ("output", ExitCode.STORE)],  # a node that cannot read inputs is unfit
)
def test_workers_that_lack_the_keys_of_the_drivers_shell_get_an_error_that_says_where_to_put_them(
    cluster: Cluster, s3: SeaweedServer, make_inputs: MakeInputs, tmp_path: Path, on_s3: str, code: ExitCode
) -> None:
    """One line after one task, without tracebacks and retries; no input is left out for it."""
    inputs, folder = make_inputs(40), uuid.uuid4().hex
    source, output = str(inputs.folder), str(tmp_path / "out")
    if on_s3 == "output":
        output = s3.url(folder)
    else:
        source = s3.url(folder)
        for name in inputs.names:
            Store(source, s3.storage_options).put_new(f"{name}.tensor.pyd", inputs.part(name, "tensor.pyd"))
    command = [DRAY, "build", source, output, "--suffix", "tensor.pyd", "--shards", "8", "--address", cluster.address]
    command += ["--on-error", "quarantine", "--max-bad", "100%"]
    command += [word for option in without_keys(s3).items() for word in ("--storage-option", "=".join(option))]
    with node(cluster):
        done = subprocess.run(
            command, env={**os.environ, **keys_in_environment(s3)}, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    for text in ("dray: error: ", "instance role", "~/.aws/credentials", "environment"):
        assert text in done.stderr


def test_secrets_of_storage_options_are_in_no_log_and_no_file_of_ray(
    cluster: Cluster, s3: SeaweedServer, make_inputs: MakeInputs
) -> None:
    """Nor in an error, of a wrong key or of a worker that died."""
    inputs, secret = make_inputs(40), s3.storage_options["secret_access_key"]
    wrong = {**s3.storage_options, "secret_access_key": "planted" + secret}
    large = os.urandom(1 << 20)  # the function goes through Ray's object store

    def die(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if key == "sample-0021" and large:
            os._exit(1)
        return parts

    def build_there(**options: Any) -> BuildReport:
        place = {"min_num_shards": 10, "progress": False, **options}
        return pickles_to_tars(inputs.folder, inputs.names, "tensor.pyd", s3.url(uuid.uuid4().hex), "wds", **place)

    with node(cluster):
        assert build_there(storage_options=s3.storage_options).num_samples == 40
        with pytest.raises(ClusterError) as died:
            build_there(storage_options=s3.storage_options, func_output_data=die)
        with pytest.raises(DeniedError) as denied:
            build_there(storage_options=wrong)
    assert secret not in "".join(traceback.format_exception(died.value) + traceback.format_exception(denied.value))
    for path in Path(cluster.head_node.get_session_dir_path()).rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
