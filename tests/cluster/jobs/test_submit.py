"""`dray submit` on a cluster whose Python lacks dray: jobs are followed, found again, stopped and resumed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from dray.shards import Snapshot
from tests.cluster.jobs.bare_cluster import BareCluster, bare_cluster
from tests.conftest import MakeInputs

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

SCRIPT = """
import os, sys, time, helper
print("started", flush=True)
open(sys.argv[1] + ".seen", "a").write("x")
while not os.path.exists(sys.argv[1]):
    time.sleep(0.2)
print("says", helper.WORD)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    with bare_cluster(tmp_path_factory.mktemp("bare")) as running:
        yield running


def client(cluster: BareCluster, *words: object) -> "subprocess.Popen[str]":
    """A command line of dray that goes on."""
    command = [sys.executable, "-m", "dray", "submit", "--address", cluster.url, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=cluster.environment)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.1)


def read_until(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    while text not in (line := stream.readline()):
        assert line, f"the end of the stream instead of {text}"


@pytest.fixture
def script(tmp_path: Path) -> list[object]:
    """A script that waits for a file and imports a module that travels, and a planted secret beside it."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "helper.py").write_text("WORD = 'hello'\n")
    (code / ".env").write_text("SECRET=planted\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return ["--with", code, "--", "run", tmp_path / "script.py", tmp_path / "go"]


def test_a_build_runs_where_dray_is_missing_and_is_one_build(
    cluster: BareCluster, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """The package travels with its compiled modules; a second submit finds the first one done."""
    inputs = make_inputs(40, ("image.pyd",))
    words = ["submit", "build", inputs.folder, tmp_path / "out", "--suffix", "image.pyd", "--shards", 4]
    words += ["--address", cluster.url]
    done = cluster.dray(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 samples in 4 shards" in done.stdout
    assert "sends dray's package\n" in done.stderr
    version = Snapshot.open(tmp_path / "out").version
    again = cluster.dray(*words)
    assert (again.returncode, "is done" in again.stdout) == (0, True)
    assert cluster.dray(*words, "--again").returncode == 0
    assert Snapshot.open(tmp_path / "out").version == version


def test_a_client_is_killed_and_another_one_attaches(
    cluster: BareCluster, script: list[object], tmp_path: Path
) -> None:
    """The script ran once, and its exit code is that of the second client; its record says the same."""
    words = ["--record", tmp_path / "record", *script, 7]
    first = client(cluster, *words)
    wait_for(tmp_path / "go.seen")
    first.kill()
    first.communicate()
    second = client(cluster, *words)
    read_until(second.stderr, "runs already")
    (tmp_path / "go").touch()
    out, err = second.communicate(timeout=120)
    assert second.returncode == 7, out + err
    assert (out.count("started"), "says hello" in out) == (1, True)
    assert (tmp_path / "go.seen").read_text() == "x"
    (record,) = json.loads(cluster.dray("jobs", tmp_path / "record", "--json").stdout)
    assert (record["command"], record["state"], record["exit_code"]) == ("run", "failed", 7)


def test_ctrl_c_detaches_and_a_stopped_job_is_resumed(
    cluster: BareCluster, script: list[object], tmp_path: Path
) -> None:
    """Ctrl-C leaves the job running and says how to come back; with --stop-on-interrupt it stops."""
    first = client(cluster, *script, 0)
    wait_for(tmp_path / "go.seen")
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, out + err
    assert "dray jobs logs -f dray-run-" in err
    second = client(cluster, "--stop-on-interrupt", *script, 0)
    read_until(second.stdout, "started")
    second.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=60)
    assert "-1 is stopped" in err
    (tmp_path / "go").touch()
    third = client(cluster, *script, 0)
    out, err = third.communicate(timeout=120)
    assert third.returncode == 0, out + err
    assert "-1 stopped: attempt 2 does what is missing" in err


def test_no_token_and_a_wrong_one_are_refused(cluster: BareCluster) -> None:
    """With what to set."""
    for token, words in ((None, "asks for its token"), ("0" * 64, "refuses the token in RAY_AUTH_TOKEN")):
        environment = {name: value for name, value in cluster.environment.items() if name != "RAY_AUTH_TOKEN"}
        environment |= {"HOME": "/nonexistent"} | ({"RAY_AUTH_TOKEN": token} if token else {})
        bad = BareCluster(cluster.url, environment, cluster.process)
        done = bad.dray("submit", "verify", "s3://lab/shards", "--address", cluster.url)
        assert done.returncode != 0
        assert words in done.stderr, done.stderr
        assert "0" * 64 not in done.stderr


def test_no_secret_is_in_a_job_record(cluster: BareCluster, script: list[object], tmp_path: Path) -> None:
    """Neither the token, nor the environment of this machine, nor files that hold secrets."""
    (tmp_path / "go").touch()
    environment = cluster.environment | {"AWS_SECRET_ACCESS_KEY": "planted-key"}
    done = BareCluster(cluster.url, environment, cluster.process).dray("submit", "--address", cluster.url, *script, 0)
    assert done.returncode == 0, done.stderr
    assert ".env" in done.stderr
    code = "from dray.cluster.jobs.client import job_client; print([dict(job) for job in job_client().list_jobs()])"
    listed = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"RAY_ADDRESS": cluster.url},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "dray-run-" in listed
    for secret in (cluster.environment["RAY_AUTH_TOKEN"], "planted"):
        assert secret not in listed + done.stdout + done.stderr
