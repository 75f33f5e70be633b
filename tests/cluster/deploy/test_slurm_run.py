"""The Slurm script, run on this machine: a stand-in for srun starts the nodes as processes, the rest is real."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.cluster.deploy.deployment import Deployment
from dray.cluster.deploy.slurm import render_slurm
from dray.shards import Snapshot
from tests.conftest import MakeInputs

SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words, options = sys.argv[1:], dict()
while words[0].startswith("--"):
    name, _, options[name] = words.pop(0).partition("=")
assert options["--ntasks-per-node"] == "1" and options["--cpus-per-task"] == os.environ["SLURM_CPUS_PER_TASK"], options
steps = [
    subprocess.Popen(words, env=os.environ | dict(SLURM_PROCID=str(rank))) for rank in range(int(options["--ntasks"]))
]
signal.signal(signal.SIGTERM, lambda *_: [step.terminate() for step in steps])
sys.exit(max([step.wait() for step in steps]))
"""
PROGRAM = """
import json, os, signal, stat, sys, time
from pathlib import Path
import ray

def end(number, frame):
    Path("ended").touch()
    sys.exit(143)

ray.init(log_to_driver=False)
signal.signal(signal.SIGTERM, end)  # after Ray, which has a handler of its own
while len(ray.nodes()) < int(sys.argv[1]):
    time.sleep(0.2)
token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
modes = [stat.S_IMODE(path.stat().st_mode) for path in (token, token.parent)]
Path("found").write_text(json.dumps([modes, ray.cluster_resources()["CPU"], len(token.read_text()), sys.argv[2]]))
time.sleep(float(sys.argv[3]))
sys.exit(7)
"""


class Slurm:
    """One batch job, on nodes of one CPU."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        srun = folder / "bin" / "srun"
        srun.parent.mkdir()
        srun.write_text(SRUN)
        srun.chmod(0o700)

    def start(self, deployment: Deployment, path: str = "") -> subprocess.Popen[str]:
        """Starts the script as sbatch would, on the first node."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        slurm = {"JOB_ID": self.number, "JOB_NUM_NODES": deployment.workers, "CPUS_PER_TASK": 1, "MEM_PER_NODE": 1024}
        env = kept | {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        env |= {"SLURM_SUBMIT_DIR": str(self.folder), "PATH": f"{path}{self.folder}/bin:{os.environ['PATH']}"}
        (self.folder / "job.sh").write_text(render_slurm(deployment))
        return subprocess.Popen(
            ["bash", "job.sh"], cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def leftovers(self) -> list[str]:
        """Files and processes of the job that should be gone."""
        files = [*Path("/tmp").glob(f"ray-{self.number}-*"), *self.folder.glob(".ray-*")]
        processes = subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()
        return [*map(str, files), *(line for line in processes if f"/tmp/ray-{self.number}-" in line)]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    """A job whose number no other test has."""
    job = Slurm(tmp_path, os.getpid() * 1000 + time.monotonic_ns() % 1000)
    yield job
    assert job.leftovers() == []


@pytest.mark.heavy
def test_a_build_runs_over_the_nodes_and_nothing_stays(slurm: Slurm, make_inputs: MakeInputs) -> None:
    """As `sbatch` would: the tasks run on Ray, the exit code is that of the build."""
    inputs = make_inputs(40)
    words = ("build", str(inputs.folder), str(slurm.folder / "out"), "--suffix", "tensor.pyd", "--shards", "4")
    job = slurm.start(Deployment(words=words, venv=sys.prefix))
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, output
    assert "40 samples in 4 shards" in output
    assert sum(shard.num_samples for shard in Snapshot.open(slurm.folder / "out").shards) == 40


def program(folder: Path, *arguments: str) -> tuple[str, ...]:
    (folder / "program.py").write_text(PROGRAM)
    return ("run", str(folder / "program.py"), *arguments)


@pytest.mark.heavy
def test_a_program_sees_all_nodes_behind_a_private_token_and_its_exit_code_is_passed_on(slurm: Slurm) -> None:
    """The token is readable by its owner only; hostile arguments arrive as they are."""
    hostile = "$(touch broken) `touch broken`; touch broken\n'\"*"
    job = slurm.start(Deployment(workers=3, words=program(slurm.folder, "3", hostile, "0"), venv=sys.prefix))
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 7, output
    assert json.loads((slurm.folder / "found").read_text()) == [[0o600, 0o700], 3, 64, hostile]
    assert not (slurm.folder / "broken").exists()


@pytest.mark.heavy
def test_sigterm_before_the_time_limit_reaches_the_program_and_ends_all(slurm: Slurm) -> None:
    """Slurm sends it to the script alone (`--signal=B:TERM@120`)."""
    job = slurm.start(Deployment(workers=1, words=program(slurm.folder, "1", "", "100"), venv=sys.prefix))
    while not (slurm.folder / "found").exists():
        assert job.poll() is None
        time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 143, output
    assert (slurm.folder / "ended").exists()


def test_a_ray_that_does_not_start_ends_the_job(slurm: Slurm) -> None:
    """With the exit code for a fault of the cluster, and its own message above."""
    ray = slurm.folder / "bin" / "ray"
    ray.write_text("#!/bin/sh\necho no such option >&2\nexit 2\n")
    ray.chmod(0o700)
    job = slurm.start(
        Deployment(words=("build", "a", "b"), workers=1), f"{slurm.folder}/bin:{Path(sys.executable).parent}:"
    )
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 4, output
    assert "no such option" in output
    assert "dray: error: Ray did not start" in output
