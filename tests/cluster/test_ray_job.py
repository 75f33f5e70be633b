"""`ray job submit -- dray build` packs on the cluster of the job."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.shards import Snapshot
from tests.conftest import MakeInputs

BIN = Path(sys.executable).parent
HEAD = """
import tempfile
from pathlib import Path
from ray.cluster_utils import Cluster
size = {"num_cpus": 2, "object_store_memory": 80 << 20}
free_ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}
# A job finds its cluster by a file in Ray's temporary folder, which is that of all clusters if none is given.
own = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "temp_dir": own.name, **free_ports}
cluster = Cluster(initialize_head=True, head_node_args=size | dashboard)
Path(own.name, "ray_current_cluster").write_text(cluster.address)
print(cluster.head_node.webui_url, flush=True)
input()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def ray_environment() -> dict[str, str]:
    """A token for this cluster and its clients, because its ports are open to the network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="module")
def dashboard(ray_environment: dict[str, str]) -> Iterator[str]:
    """The URL of the dashboard of a one-node cluster, which lives as long as a process of its own."""
    head = [sys.executable, "-c", HEAD]
    with subprocess.Popen(
        head, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ray_environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://{process.stdout.readline().strip()}"
        process.stdin.write("\n")  # and the `with` waits for its end


def call_ray(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / "ray"), *arguments], env=environment, capture_output=True, text=True, timeout=120)


def test_a_submitted_build_packs_on_the_cluster(
    dashboard: str, ray_environment: dict[str, str], make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """Without an address the job finds its own cluster, and makes the requested shards."""
    inputs = make_inputs(40, ("image.pyd", "label.cls"))
    build = [str(BIN / "dray"), "build", str(inputs.folder), str(tmp_path / "out"), "--shards", "4"]
    build += ["--suffix", "image.pyd", "--suffix", "label.cls"]
    done = call_ray(ray_environment, "job", "submit", "--address", dashboard, "--", *build)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 samples in 4 shards" in done.stdout
    assert [shard.num_samples for shard in Snapshot.open(tmp_path / "out").shards] == [10, 10, 10, 10]
    assert "pack_shard" in call_ray(ray_environment, "summary", "tasks", "--address", dashboard).stdout


def test_a_submitted_build_that_fails_fails_its_job(
    dashboard: str, ray_environment: dict[str, str], tmp_path: Path
) -> None:
    """The line of the error is in the job's log."""
    build = [str(BIN / "dray"), "build", str(tmp_path), "out", "--suffix", "image.pyd"]
    done = call_ray(ray_environment, "job", "submit", "--address", dashboard, "--", *build)
    assert done.returncode != 0
    assert "dray: error: no file *.image.pyd" in done.stdout + done.stderr
