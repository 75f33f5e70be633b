"""`dray doctor --address`: each trouble of a cluster, planted for real, is named."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import Dray
from tests.pipelines.running.test_ray_nodes import with_another_dray, without_dray

pytestmark = pytest.mark.heavy  # a cluster of four nodes

DRAY = Path(sys.executable).parent / "dray"
CLUSTER = """
import json, subprocess, sys, time
import tempfile
from pathlib import Path
from ray.cluster_utils import Cluster
environments, folder = json.loads(sys.argv[1])
size = {"object_store_memory": 80 << 20}
# A job finds its cluster by a file in Ray's temporary folder, which is that of all clusters if none is given.
own = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0, "temp_dir": own.name}
head = {"num_cpus": 0, "dashboard_agent_listen_port": 0, **dashboard, **size}
cluster = Cluster(initialize_head=True, head_node_args=head)
Path(own.name, "ray_current_cluster").write_text(cluster.address)
for environment in environments:
    cluster.add_node(num_cpus=1, env_vars=environment, **size)
start = f"{sys.executable} -m ray.scripts.scripts start --block --address={cluster.address} --num-cpus=1"
start += f" --object-store-memory={size['object_store_memory']} --disable-usage-stats"
blind = subprocess.Popen(["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {folder} && exec {start}"],
                         stdout=subprocess.DEVNULL)
import ray
ray.init(address=cluster.address, log_to_driver=False)
for _ in range(120):
    if sum(node["Alive"] for node in ray.nodes()) == len(environments) + 2:
        break
    time.sleep(0.5)
print(cluster.head_node.webui_url, cluster.address, flush=True)
input()
blind.terminate()
blind.wait()
ray.shutdown()
cluster.shutdown()
"""


class Sick(NamedTuple):
    """A cluster with a good node, and three that are not."""

    dashboard: str
    address: str
    environment: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sick]:
    """Of one node dray is missing, one has another, one does not see the folder."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces need root")
    home, folder = tmp_path_factory.mktemp("nodes"), tmp_path_factory.mktemp("folder")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{DRAY.parent}:{environment['PATH']}"  # a job's `python` is the head's
    nodes = [{}, without_dray(home / "none"), with_another_dray(home / "other")]
    command = [sys.executable, "-c", CLUSTER, json.dumps([nodes, str(folder)])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        dashboard, address = process.stdout.readline().split()
        yield Sick(f"http://{dashboard}", address, environment, folder)
        process.stdin.write("\n")


def doctor(*words: object, environment: dict[str, str]) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Returns the exit code, the findings about the cluster by check, and the text."""
    command = [str(DRAY), "doctor", "--json", "--no-speed", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    findings = json.loads(done.stdout)["findings"]
    text = done.stdout + done.stderr
    return done.returncode, {one["check"]: one for one in findings if one["subject"] == "cluster"}, text


@pytest.mark.parametrize("by", ["dashboard", "address"])
def test_each_trouble_of_a_node_is_named(sick: Sick, by: str) -> None:
    """By the node that has it; a good node is in no trouble, and nothing is left in the folder."""
    code, found, text = doctor(sick.folder, "--address", getattr(sick, by), environment=sick.environment)
    assert code == 4, text
    assert found["Ray"]["level"] == "good", text
    assert found["nodes"]["values"] == {"nodes": 4}, text
    dray = found["dray on nodes"]
    assert dray["level"] == "bad"
    assert "2 nodes of 4" in dray["found"]
    assert "cannot import dray (ModuleNotFoundError: No module named 'dray')" in dray["found"]
    assert "(format 3, code" in dray["found"]
    assert "--ship" in dray["advice"]
    seen = found["nodes and URL"]
    assert seen["level"] == "bad"
    assert f"1 node of 2: {os.uname().nodename}" in seen["found"]
    assert f"does not see what the driver has just written to file://{sick.folder}" in seen["found"]
    assert "object storage" in seen["advice"]
    assert os.listdir(sick.folder) == []
    assert sick.environment["RAY_AUTH_TOKEN"] not in text


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["none", "wrong"])
@pytest.mark.parametrize("by", ["dashboard", "address"])
def test_a_token_that_is_missing_or_wrong_is_named(sick: Sick, tmp_path: Path, by: str, token: str | None) -> None:
    """With the way to set it."""
    environment = {name: value for name, value in sick.environment.items() if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    if token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    code, found, text = doctor("--address", getattr(sick, by), environment=environment)
    assert code == 4, text
    assert found["Ray"]["level"] == "bad"
    assert "token" in found["Ray"]["found"]
    assert "RAY_AUTH_TOKEN" in found["Ray"]["advice"]


def test_a_cluster_on_this_machine_is_good(dray: Dray, tmp_path: Path) -> None:
    """Each node is asked, and keeps nothing."""
    done = dray("doctor", tmp_path, "--address", "local", "--no-speed", "--json")
    assert done.code == 0, done.out
    found = {one["check"]: one for one in json.loads(done.out)["findings"] if one["subject"] == "cluster"}
    assert found["nodes and URL"]["found"] == "reads and writes it (on 1 node)"
    assert os.listdir(tmp_path) == []


def test_a_cluster_that_does_not_answer_is_named(dray: Dray, unused_port: int) -> None:
    """At once."""
    for address in (f"127.0.0.1:{unused_port}", f"http://127.0.0.1:{unused_port}"):
        done = dray("doctor", "--address", address)
        assert done.code == 4
        assert address in done.out
