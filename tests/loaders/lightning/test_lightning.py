"""Lightning's Trainer with DDP and every entry point, resumed inside an epoch on another number of processes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.datasets import pack, tensor_of

NUM_SAMPLES, GLOBAL_BATCH, STOP_AFTER = 103, 12, 3
TRAINED = {"ShardDataModule": 96, "ShardLoader": 96, "WebDataModule": NUM_SAMPLES}  # native loaders drop the remainder
NUM_VALIDATED = {"ShardDataModule": 10, "ShardLoader": 10, "WebDataModule": NUM_SAMPLES}

# Trains with each loader for two epochs; two processes do it once more, and stop after a step.
PROGRAM = """
import json, sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from webdataset import batched

from dray.loaders import ShardDataModule, ShardLoader, Split, WebDataModule

url, devices, place, start = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
BATCH = 12 // devices


class Model(lightning.LightningModule):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.layer = torch.nn.Linear(1, 1)

    def note(self, what, values, **more):
        values = values["tensor.pyd"] if isinstance(values, dict) else values
        with (self.folder / f"{what}{self.global_rank}.jsonl").open("a") as log:
            print(json.dumps({"samples": values[:, 0].int().tolist(), **more}), file=log)
        return values[:, :1]

    def training_step(self, batch, number):
        values = self.note("rank", batch, epoch=self.current_epoch, batch=number, last=self.trainer.is_last_batch,
                           step=self.global_step)
        return self.layer(values).square().mean()

    def validation_step(self, batch, number):
        self.note("val", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Loaders(lightning.LightningDataModule):
    def train_dataloader(self):
        return ShardLoader(url, batch_size=BATCH, shuffle=True, seed=5)

    def val_dataloader(self):
        return ShardLoader(url, batch_size=4, remainder="keep", limit=10)


def native():
    return ShardDataModule(url, {"url": url, "batch_size": 4, "limit": 10}, batch_size=BATCH, shuffle=True, seed=5)


def untuple(source):
    return (sample for (sample,) in source)


def module():
    splits = (Split.train, Split.val)
    return WebDataModule(
        None, "tensor.pyd", dict.fromkeys(splits, url), 12,
        pipeline_wds=dict.fromkeys(splits, untuple),
        pipeline_prebatch_wld=dict.fromkeys(splits, batched(BATCH, collation_fn=torch.stack)),
        kwargs_wds={Split.train: {"shardshuffle": True, "seed": 5}},
        kwargs_wld={Split.train: {"num_workers": 2}},
    )


def fit(data, name, max_steps=-1):
    folder = place / name / type(data).__name__.replace("Loaders", "ShardLoader")
    folder.mkdir(parents=True, exist_ok=True)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2,
        max_steps=max_steps, accumulate_grad_batches=3, num_sanity_val_steps=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, filename="at-{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    trainer.fit(Model(folder), data, ckpt_path=f"{start}/{folder.name}/at-step=1.ckpt" if start else None)


if __name__ == "__main__":
    for make in (Loaders, native, module):
        fit(make(), f"on-{devices}")
        if not start:
            fit(make(), "stopped", max_steps=1)
"""


def run(shards: str, place: Path, devices: int, start: Path | str = "") -> Path:
    """Trains on a number of processes, from the start or from checkpoints; returns the folder of their notes."""
    (place / "program.py").write_text(PROGRAM)
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, place / "program.py", shards, devices, place, start]
    done = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / f"on-{devices}"


Note = dict[str, Any]


def notes(folder: Path, what: str = "rank") -> list[list[Note]]:
    """Returns the notes of each rank, step by step."""
    paths = sorted(folder.glob(f"{what}*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def samples(ranks: Sequence[Sequence[Note]], epoch: int) -> list[int]:
    """Returns the samples that were trained in an epoch, sorted."""
    return sorted(n for steps in ranks for step in steps if step["epoch"] == epoch for n in step["samples"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of different sizes."""
    return pack(tmp_path_factory.mktemp("lightning"), NUM_SAMPLES, 7, parts={"tensor.pyd": tensor_of(3)})


@pytest.fixture(scope="module")
def whole(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes of two processes over both epochs; the folder beside it has those of a run that stopped early."""
    return run(shards, tmp_path_factory.mktemp("runs"), 2)


@pytest.fixture(scope="module", params=[1, 3])
def rest(request: pytest.FixtureRequest, shards: str, whole: Path) -> Path:
    """Notes of other numbers of processes, resumed where those two stopped."""
    return run(shards, whole.parent, request.param, whole.parent / "stopped")


@pytest.mark.parametrize("loader", TRAINED)
def test_uneven_data_trains_and_validates_each_sample_once(whole: Path, loader: str) -> None:
    """103 samples in batches of 12 on two processes: no rank waits, and nothing is padded."""
    ranks = notes(whole / loader)
    epochs = [samples(ranks, epoch) for epoch in (0, 1)]
    assert [len(set(epoch)) for epoch in epochs] == [len(epoch) for epoch in epochs] == [TRAINED[loader]] * 2
    assert (epochs[0] != epochs[1]) == (loader != "WebDataModule")  # what is dropped
    last = [[3], [4]] if loader == "WebDataModule" else [[], []]
    assert [[len(step["samples"]) for step in steps if step["epoch"] == 0] for steps in ranks] == [
        [6] * 8 + count for count in last
    ]


@pytest.mark.parametrize("loader", TRAINED)
def test_a_mid_epoch_checkpoint_goes_on_with_another_number_of_processes(whole: Path, rest: Path, loader: str) -> None:
    """Two stop after 3 of 8 or 9 batches; the rest of the epoch is exact, and so is its end and the next epoch."""
    before, first, then = (notes(folder / loader) for folder in (whole, whole.parent / "stopped", rest))
    num_steps = -(-TRAINED[loader] // GLOBAL_BATCH)
    assert [len(steps) for steps in first] == [STOP_AFTER] * 2
    assert sorted(samples(first, 0) + samples(then, 0)) == samples(before, 0)
    for steps in then:
        assert [(step["epoch"], step["batch"], step["last"]) for step in steps] == [
            *((0, batch, batch == num_steps - 1) for batch in range(STOP_AFTER, num_steps)),
            *((1, batch, batch == num_steps - 1) for batch in range(num_steps)),
        ]
    assert [step["step"] for step in then[0]] == [step["step"] for step in before[0]][STOP_AFTER:]
    for number in range(-num_steps, 0):  # of the second epoch: the same global batches
        of_step = [sorted(n for steps in ranks for n in steps[number]["samples"]) for ranks in (before, then)]
        assert of_step[0] == of_step[1]


@pytest.mark.parametrize("loader", TRAINED)
def test_each_epoch_validates_each_sample_once(whole: Path, rest: Path, loader: str) -> None:
    """On one, two and three processes: no rank waits for another, and nothing is padded."""
    for folder in (whole, rest):
        validated = [n for steps in notes(folder / loader, "val") for step in steps for n in step["samples"]]
        assert sorted(validated) == sorted([*range(NUM_VALIDATED[loader])] * 2)
