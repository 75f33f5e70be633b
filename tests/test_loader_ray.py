"""`ShardLoader` under Ray Train: a worker is killed in the middle of an epoch, and the restart takes the rest of it."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import torch

from dray.pipelines import pickles_to_tars

NUM_SAMPLES = 96

PROGRAM = """
import json, os, sys, tempfile
from pathlib import Path

import ray, ray.train, torch
from ray.train.torch import TorchTrainer

from dray.loaders import ShardLoader
from dray.shards import Snapshot

url, folder = sys.argv[1], Path(sys.argv[2])


def train(config):
    context = ray.train.get_context()
    size = 12 // context.get_world_size()
    loader = ShardLoader(url, batch_size=size, shuffle=True, seed=3, version=config["version"])
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as place:
            loader.load_state_dict(json.loads(Path(place, "cursor.json").read_text()))
    for batch in loader:
        torch.distributed.all_reduce(torch.zeros(1))  # uneven ranks would hang here
        state = loader.state_dict()
        with tempfile.TemporaryDirectory() as place:
            Path(place, "cursor.json").write_text(json.dumps(state))
            saved = ray.train.Checkpoint.from_directory(place) if context.get_world_rank() == 0 else None
            note = {"step": state["steps"], "samples": batch["tensor.pyd"][:, 0].int().tolist()}
            with (folder / f"rank{context.get_world_rank()}.jsonl").open("a") as log:
                print(json.dumps(note), file=log)
            ray.train.report({"step": state["steps"]}, checkpoint=saved)
        if context.get_world_rank() == 1 and state["steps"] == 3 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), 9)


ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=80 << 20)
result = TorchTrainer(
    train,
    train_loop_config={"version": Snapshot.open(url).version},  # found out once, for all restarts
    scaling_config=ray.train.ScalingConfig(num_workers=2),
    run_config=ray.train.RunConfig(
        storage_path=str(folder / "results"), failure_config=ray.train.FailureConfig(max_failures=1)
    ),
).fit()
print("last step", result.metrics["step"])
"""


def test_a_killed_worker_costs_no_sample(tmp_path: Path) -> None:
    """The epoch goes on from the last checkpoint: what was trained on up to it and after it is every sample once."""
    (tmp_path / "pickles").mkdir()
    names = [f"s{number:03d}" for number in range(NUM_SAMPLES)]
    for number, name in enumerate(names):
        (tmp_path / "pickles" / f"{name}.tensor.pyd").write_bytes(pickle.dumps(torch.full((3,), float(number))))
    pickles_to_tars(tmp_path / "pickles", names, "tensor.pyd", tmp_path / "out", "wdshards", progress=False)
    (tmp_path / "program.py").write_text(PROGRAM)
    variables = os.environ | {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1"}
    command = [sys.executable, tmp_path / "program.py", tmp_path / "out", tmp_path]
    done = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "last step 8" in done.stdout
    assert (tmp_path / "killed").exists()
    taken: dict[tuple[int, int], list[int]] = {}  # the last time a rank took a step is the one that counts
    for rank in range(2):
        for line in (tmp_path / f"rank{rank}.jsonl").read_text().splitlines():
            note = json.loads(line)
            taken[note["step"], rank] = note["samples"]
    assert sorted(taken) == [(step, rank) for step in range(1, 9) for rank in range(2)]
    assert sorted(sample for samples in taken.values() for sample in samples) == list(range(NUM_SAMPLES))
