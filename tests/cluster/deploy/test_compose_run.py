"""The commands of the Compose file, run without containers: in a network of their own, with its names and ports."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from dray.cluster.deploy.compose import render_compose
from dray.cluster.deploy.deployment import Deployment
from dray.cluster.quickstart.seaweed import find_weed
from tests.conftest import MakeInputs
from tests.support.manifests.programs import run_program

IN_NAMESPACE = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
RUN = """
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

services, weed, folder, build = json.loads(Path("run.json").read_text())
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
Path("hosts").write_text("127.0.0.1 localhost store head worker job\\n")
subprocess.run(["mount", "--bind", "hosts", "/etc/hosts"], check=True)
kept = {name: os.environ[name] for name in ("PATH", "HOME")}

def command_of(name):
    words = [word.replace("$$", "$").replace("/data", folder) for word in services[name]["command"]]
    return [weed, *words] if name == "store" else words

def start(name, *more):
    log, env = open(f"{name}.log", "ab"), kept | services[name]["environment"]
    return subprocess.Popen([*command_of(name), *more], env=env, stdout=log, stderr=log)

def own_files():  # in one file system and one network, unlike containers; a socket's path is short
    temp.append(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    return f"--temp-dir={temp[-1]}", "--object-store-memory=80000000"

def wait(name):
    check = services[name]["healthcheck"]["test"][1:]
    for _ in range(120):
        if subprocess.run(check, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.5)
    sys.exit(f"{name} is not healthy")

temp, running = [], [start("store")]
try:
    wait("store")
    running.append(start("head", *own_files()))
    wait("head")
    for _ in range(services["worker"]["deploy"]["replicas"]):
        running.append(start("worker", *own_files(), "--dashboard-agent-listen-port=0"))
    code = subprocess.run(build, env=kept | services["head"]["environment"]).returncode
    stranger = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ADDRESS": "http://head:8265"}
    refused = subprocess.run(["ray", "job", "list"], env=kept | stranger, capture_output=True).returncode
finally:
    for process in reversed(running):
        process.terminate()
    for process in running:
        process.wait()
    for folder in temp:
        shutil.rmtree(folder, ignore_errors=True)
print("refused" if refused else "let in")
sys.exit(code)
"""


@pytest.mark.heavy
def test_the_commands_start_a_store_and_a_cluster_that_builds(tmp_path: Path, make_inputs: MakeInputs) -> None:
    """In the order of `up`: each is healthy before what depends on it; a wrong token is refused."""
    if subprocess.run([*IN_NAMESPACE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no network namespaces")
    inputs = make_inputs(40)
    (tmp_path / "compose.yaml").write_text(render_compose(Deployment(image="lab/dray:1", cpus=1)))
    keys = {name: secrets.token_hex(32) for name in ("RAY_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    found = run_program("docker-compose", "-f", tmp_path / "compose.yaml", "config", "--format", "json", env=keys)
    services = json.loads(found.stdout)["services"]
    build = ["dray", "build", str(inputs.folder), "s3://data/shards", "--suffix", "tensor.pyd", "--shards", "4"]
    run = [services, str(find_weed()), str(tmp_path / "objects"), [*build, "--address", "auto"]]
    (tmp_path / "objects").mkdir()
    (tmp_path / "run.json").write_text(json.dumps(run))
    env = os.environ | {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*IN_NAMESPACE, sys.executable, "-c", RUN], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 samples in 4 shards" in done.stdout
    assert "refused" in done.stdout
