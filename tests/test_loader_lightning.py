"""`ShardLoader` under Lightning's Trainer with DDP: stopped mid-epoch, resumed on another number of processes."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dray.pipelines import pickles_to_tars

NUM_SAMPLES, GLOBAL_BATCH = 103, 12
STEPS = NUM_SAMPLES // GLOBAL_BATCH  # the remainder is dropped

PROGRAM = """
import json, sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dray.loaders import ShardLoader

url, folder, checkpoint = sys.argv[1], Path(sys.argv[2]), sys.argv[5]
devices, max_steps = int(sys.argv[3]), int(sys.argv[4])
GLOBAL_BATCH = 12


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, number):
        values = batch["tensor.pyd"]
        note = {"epoch": self.current_epoch, "batch": number, "last": self.trainer.is_last_batch,
                "step": self.global_step, "samples": values[:, 0].int().tolist()}
        with (folder / f"rank{self.global_rank}.jsonl").open("a") as log:
            print(json.dumps(note), file=log)
        return self.layer(values[:, :1]).square().mean()

    def validation_step(self, batch, number):
        with (folder / f"val{self.global_rank}.jsonl").open("a") as log:
            print(json.dumps({"samples": batch["tensor.pyd"][:, 0].int().tolist()}), file=log)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(lightning.LightningDataModule):
    def train_dataloader(self):
        return ShardLoader(url, batch_size=GLOBAL_BATCH // devices, shuffle=True, seed=5)

    def val_dataloader(self):
        return ShardLoader(url, batch_size=4, remainder="keep", limit=10)


folder.mkdir(parents=True, exist_ok=True)
trainer = lightning.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2, max_steps=max_steps,
    accumulate_grad_batches=3, num_sanity_val_steps=0, logger=False, enable_progress_bar=False,
    enable_model_summary=False, default_root_dir=folder,
    callbacks=[ModelCheckpoint(folder, filename="at-{step}", every_n_train_steps=1, save_top_k=-1)],
)
trainer.fit(Model(), Data(), ckpt_path=checkpoint or None)
"""


def run(url: Path, folder: Path, devices: int, *, max_steps: int = -1, checkpoint: Path | None = None) -> None:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(folder.parent / "program.py"), url, folder, devices, max_steps, checkpoint or ""]
    done = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def notes(folder: Path, what: str = "rank") -> list[list[dict[str, object]]]:
    """What each rank noted, step by step."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob(f"{what}*.jsonl"))
    ]


def samples(ranks: Sequence[Sequence[dict[str, object]]], epoch: int) -> list[int]:
    """All that was trained on in an epoch."""
    found: list[int] = []
    for steps in ranks:
        for step in steps:
            if step["epoch"] == epoch:
                found += step["samples"]  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors that know their number, in uneven shards."""
    folder = tmp_path_factory.mktemp("lightning")
    (folder / "pickles").mkdir()
    names = [f"s{number:03d}" for number in range(NUM_SAMPLES)]
    for number, name in enumerate(names):
        (folder / "pickles" / f"{name}.tensor.pyd").write_bytes(pickle.dumps(torch.full((3,), float(number))))
    pickles_to_tars(
        folder / "pickles", names, "tensor.pyd", folder / "out", "wdshards", min_num_shards=7, progress=False
    )
    return folder / "out"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.mark.parametrize("devices", [1, 3])
def test_a_mid_epoch_checkpoint_goes_on_with_another_number_of_processes(
    shards: Path, place: Path, devices: int
) -> None:
    """Two processes stop after 3 of 8 batches; the rest of the epoch is exact, and so is its end and the next epoch."""
    run(shards, place / "whole", 2)
    run(shards, place / "first", 2, max_steps=1)
    (checkpoint,) = (place / "first").glob("at-*.ckpt")
    run(shards, place / "rest", devices, checkpoint=checkpoint)
    whole, first, rest = (notes(place / name) for name in ("whole", "first", "rest"))
    assert [len(steps) for steps in first] == [3, 3]
    assert sorted(samples(first, 0) + samples(rest, 0)) == sorted(samples(whole, 0))
    assert len(set(samples(whole, 0))) == STEPS * GLOBAL_BATCH
    assert sorted(samples(rest, 1)) == sorted(samples(whole, 1)) != sorted(samples(whole, 0))
    for steps in rest:
        assert [(step["epoch"], step["batch"], step["last"]) for step in steps] == [
            *((0, batch, batch == STEPS - 1) for batch in range(3, STEPS)),
            *((1, batch, batch == STEPS - 1) for batch in range(STEPS)),
        ]
    assert [step["step"] for step in rest[0]] == [step["step"] for step in whole[0]][3:]


def test_validation_of_uneven_data_reads_each_sample_once(shards: Path, place: Path) -> None:
    """10 samples on 3 processes of 4: no rank waits for another, none is padded."""
    run(shards, place / "uneven", 3, max_steps=3)
    epochs = notes(place / "uneven", "val")
    found = [sample for steps in epochs for step in steps for sample in step["samples"]]  # type: ignore[attr-defined]
    assert sorted(found) == list(range(10))
