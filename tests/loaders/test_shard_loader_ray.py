"""`ShardLoader` under Ray Train: workers and nodes come and go inside an epoch, whose rest is trained exactly."""

import json
import os
import secrets
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.datasets import pack, tensor_of

BATCH = 12  # over all workers

WORKER = """
import json, os, sys, tempfile, time
from pathlib import Path

import ray, ray.train, torch
from ray.train.torch import TorchTrainer

from dray.loaders import ShardLoader
from dray.shards import Snapshot

url, folder = sys.argv[1], Path(sys.argv[2])
BATCH, SAVE_EVERY, EPOCHS = 12, 4, 2


def train(config):
    rank, num_ranks = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    loader = ShardLoader(
        url, batch_size=BATCH // num_ranks, shuffle=True, seed=3, remainder="keep", version=config["version"]
    )
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as place:
            loader.load_state_dict(json.loads(Path(place, "cursor.json").read_text()))
    start = loader.state_dict()
    for epoch in range(start["epoch"], EPOCHS):
        for batch in loader:
            torch.distributed.all_reduce(torch.zeros(1))  # uneven ranks would hang here
            state = loader.state_dict()
            note = {
                "epoch": epoch, "step": state["steps"], "rank": rank, "num_ranks": num_ranks,
                "start": [start["epoch"], start["steps"]], "samples": batch["tensor.pyd"][:, 0].int().tolist(),
            }
            with (folder / f"notes-{os.getpid()}.jsonl").open("a") as log:
                print(json.dumps(note), file=log)
            if state["steps"] % SAVE_EVERY == 0:
                with tempfile.TemporaryDirectory() as place:
                    Path(place, "cursor.json").write_text(json.dumps(state))
                    saved = ray.train.Checkpoint.from_directory(place) if rank == 0 else None
                    ray.train.report({"epoch": epoch, "step": state["steps"]}, checkpoint=saved)
            if epoch == 0 and config["drill"](rank, start["steps"], state["steps"]):
                ray.train.get_all_reported_checkpoints()  # the controller learns of a save only every two seconds
                config["halt"](state["steps"])


def fit(drill, halt, num_workers, max_failures, **scaling):
    result = TorchTrainer(
        train,
        train_loop_config={  # one version for all restarts
            "version": Snapshot.open(url).version, "drill": drill, "halt": halt
        },
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers, **scaling),
        run_config=ray.train.RunConfig(
            storage_path=str(folder / "results"), failure_config=ray.train.FailureConfig(max_failures=max_failures)
        ),
    ).fit()
    print("trained until", result.metrics["epoch"], result.metrics["step"])
"""

KILLED_WORKER = """
def drill(rank, start, step):
    return (rank, start, step) == (1, 0, 6)

def die(step):
    os.kill(os.getpid(), 9)

ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=80 << 20)
fit(drill, die, num_workers=2, max_failures=1)
"""

# Workers stop in the middle of the epoch, two steps after a save, until the cluster that they run on was changed.
LOST_NODE = """
from concurrent.futures import ThreadPoolExecutor
from ray.cluster_utils import Cluster

HOLDS = {0: 6, 4: 10}  # steps that an attempt began after -> the step that it holds at

def drill(rank, start, step):
    return step == HOLDS.get(start)

def hold(step):
    (folder / f"held-at-{step}").touch()
    time.sleep(300)

def wait_for_hold(step):
    while not (folder / f"held-at-{step}").exists():
        if training.done():
            training.result()
            sys.exit(f"trained without a hold at step {step}")
        time.sleep(0.05)

small = {"object_store_memory": 80 << 20}
head = {"num_cpus": 0, "include_dashboard": False, "dashboard_port": 0}  # the default port may be taken
cluster = Cluster(initialize_head=True, head_node_args=head | small)
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
cluster.wait_for_nodes()
ray.init(cluster.address, log_to_driver=False)
with ThreadPoolExecutor() as thread:
    training = thread.submit(fit, drill, hold, (1, 2), max_failures=3, elastic_resize_monitor_interval_s=1)
    wait_for_hold(6)
    cluster.remove_node(nodes[1], allow_graceful=False)
    wait_for_hold(10)
    cluster.add_node(num_cpus=1, **small)
    training.result()
ray.shutdown()
cluster.shutdown()
"""


def run(program: str, folder: Path, num_samples: int, **variables: str) -> tuple[str, list[dict[str, Any]]]:
    """Returns the output of the driver and the notes of all workers."""
    url = pack(folder, num_samples, parts={"tensor.pyd": tensor_of(3)})
    (folder / "program.py").write_text(WORKER + program)
    command = [sys.executable, folder / "program.py", url, folder]
    # With this address, Ray Train never asks another test's cluster whether its controller lives.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1", "RAY_ADDRESS": "local"} | variables
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [path.read_text().splitlines() for path in folder.glob("notes-*.jsonl")]
    return done.stdout, [json.loads(line) for lines in logs for line in lines]


def trained(notes: list[dict[str, Any]]) -> dict[int, list[list[dict[str, Any]]]]:
    """Returns epoch -> steps in order -> notes of the ranks, from the last attempt that took the step."""
    steps = defaultdict(list)
    for note in notes:
        steps[note["epoch"], note["step"]].append(note)
    epochs = defaultdict(list)
    for (epoch, _), found in sorted(steps.items()):
        last = max(note["start"] for note in found)
        epochs[epoch].append(sorted((note for note in found if note["start"] == last), key=lambda note: note["rank"]))
    return epochs


def check_exact(notes: list[dict[str, Any]], num_samples: int) -> None:
    """Check that every rank took every step, and that together they trained each sample once per epoch."""
    num_steps = -(-num_samples // BATCH)
    epochs = trained(notes)
    assert sorted(epochs) == [0, 1]
    for steps in epochs.values():
        assert [step[0]["step"] for step in steps] == list(range(1, num_steps + 1))
        assert all([note["rank"] for note in step] == list(range(step[0]["num_ranks"])) for step in steps)
        samples = [sample for step in steps for note in step for sample in note["samples"]]
        assert sorted(samples) == list(range(num_samples))


@pytest.mark.heavy
def test_a_killed_worker_costs_no_sample(tmp_path: Path) -> None:
    """The epoch is resumed from the last checkpoint: before and after it, each sample is trained once in total."""
    output, notes = run(KILLED_WORKER, tmp_path, 96)
    assert "trained until 1 8" in output
    assert {tuple(note["start"]) for note in notes} == {(0, 0), (0, 4)}
    check_exact(notes, 96)


@pytest.mark.heavy
def test_an_epoch_goes_on_with_one_worker_less_and_then_with_one_more(tmp_path: Path) -> None:
    """2 -> 1 -> 2 workers: a node is lost and another added inside an epoch whose last batch is not full."""
    output, notes = run(
        LOST_NODE,
        tmp_path,
        190,
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="3",  # so long the restart waits for the lost node
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )
    assert "trained until 1 16" in output
    attempts = {tuple(note["start"]): note["num_ranks"] for note in notes}
    assert attempts == {(0, 0): 2, (0, 4): 1, (0, 8): 2}
    check_exact(notes, 190)
