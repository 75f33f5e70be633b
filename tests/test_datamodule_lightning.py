"""`WebDataModule` under Lightning's Trainer with DDP: stopped mid-epoch, resumed on another number of processes."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from webdataset import batched

from dray.loaders import Split, WebDataModule
from dray.pipelines import pickles_to_tars
from tests.test_loader_lightning import notes, run, samples

NUM_SAMPLES, GLOBAL_BATCH = 103, 12
STEPS = 9  # the last one of 7 samples

PROGRAM = """
import json, sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from webdataset import batched

from dray.loaders import Split, WebDataModule

url, folder, checkpoint = sys.argv[1], Path(sys.argv[2]), sys.argv[5]
devices, max_steps = int(sys.argv[3]), int(sys.argv[4])
GLOBAL_BATCH = 12


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, values, number):
        note = {"epoch": self.current_epoch, "batch": number, "last": self.trainer.is_last_batch,
                "step": self.global_step, "samples": values[:, 0].int().tolist()}
        with (folder / f"rank{self.global_rank}.jsonl").open("a") as log:
            print(json.dumps(note), file=log)
        return self.layer(values[:, :1]).square().mean()

    def validation_step(self, values, number):
        with (folder / f"val{self.global_rank}.jsonl").open("a") as log:
            print(json.dumps({"samples": values[:, 0].int().tolist()}), file=log)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def untuple(source):
    return (sample for (sample,) in source)


def main():
    folder.mkdir(parents=True, exist_ok=True)
    splits = (Split.train, Split.val)
    data = WebDataModule(
        None, "tensor.pyd", dict.fromkeys(splits, url), GLOBAL_BATCH,
        pipeline_wds=dict.fromkeys(splits, untuple),
        pipeline_prebatch_wld=dict.fromkeys(splits, batched(GLOBAL_BATCH // devices, collation_fn=torch.stack)),
        kwargs_wds={Split.train: {"shardshuffle": True, "seed": 5}},
        kwargs_wld={Split.train: {"num_workers": 2}},
    )
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2,
        max_steps=max_steps, accumulate_grad_batches=3, num_sanity_val_steps=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, filename="at-{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    trainer.fit(Model(), data, ckpt_path=checkpoint or None)


if __name__ == "__main__":
    main()
"""


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


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program and two runs of two processes: one over both epochs, one that stops early."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "program.py").write_text(PROGRAM)
    run(shards, folder / "whole", 2)
    run(shards, folder / "first", 2, max_steps=1)
    return folder


def test_uneven_data_train_and_validate_each_sample_once(runs: Path) -> None:
    """103 samples in batches of 12 on two processes: no rank waits, and every batch is as long as it can be."""
    ranks = notes(runs / "whole")
    for epoch in (0, 1):
        assert sorted(samples(ranks, epoch)) == list(range(NUM_SAMPLES))
    assert [[len(step["samples"]) for step in steps[:STEPS]] for steps in ranks] == [[6] * 8 + [3], [6] * 8 + [4]]  # type: ignore[arg-type]
    validated = [sample for steps in notes(runs / "whole", "val") for step in steps for sample in step["samples"]]  # type: ignore[attr-defined]
    assert sorted(validated) == sorted([*range(NUM_SAMPLES)] * 2)


@pytest.mark.parametrize("devices", [1, 3])
def test_a_mid_epoch_checkpoint_goes_on_with_another_number_of_processes(
    shards: Path, runs: Path, devices: int
) -> None:
    """Two processes stop after 3 of 9 batches; the rest of the epoch is exact, and so is its end and the next epoch."""
    (checkpoint,) = (runs / "first").glob("at-*.ckpt")
    run(shards, runs / f"rest{devices}", devices, checkpoint=checkpoint)
    before, first, rest = (notes(runs / name) for name in ("whole", "first", f"rest{devices}"))
    assert [len(steps) for steps in first] == [3, 3]
    assert sorted(samples(first, 0) + samples(rest, 0)) == list(range(NUM_SAMPLES))
    assert sorted(samples(rest, 1)) == list(range(NUM_SAMPLES))
    for steps in rest:
        assert [(step["epoch"], step["batch"], step["last"]) for step in steps] == [
            *((0, batch, batch == STEPS - 1) for batch in range(3, STEPS)),
            *((1, batch, batch == STEPS - 1) for batch in range(STEPS)),
        ]
    assert [step["step"] for step in rest[0]] == [step["step"] for step in before[0]][3:]
    for number in range(STEPS):  # of the second epoch: the same global batches
        of_step = [sorted(n for steps in ranks for n in steps[number - STEPS]["samples"]) for ranks in (before, rest)]  # type: ignore[attr-defined]
        assert of_step[0] == of_step[1]


class Model(lightning.LightningModule):
    """Notes what it is trained on, and fails at a step if it is told to."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.seen: list[list[int]] = []
        self.fails_at = fails_at

    def training_step(self, values: torch.Tensor, number: int) -> torch.Tensor:
        self.seen.append(values[:, 0].int().tolist())
        if number == self.fails_at:
            raise ValueError("a step that fails")
        loss: torch.Tensor = self.layer(values).square().mean()
        return loss

    def validation_step(self, values: torch.Tensor, number: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(data: WebDataModule, model: Model) -> list[list[int]]:
    """The batches of one epoch, by a Trainer of its own."""
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    return model.seen


def module(shards: Path, num_workers: int) -> WebDataModule:
    splits = (Split.train, Split.val)
    return WebDataModule(
        None, "tensor.pyd", dict.fromkeys(splits, str(shards)), GLOBAL_BATCH,
        pipeline_wds=dict.fromkeys(splits, untuple),
        pipeline_prebatch_wld=dict.fromkeys(splits, batched(GLOBAL_BATCH, collation_fn=torch.stack)),
        kwargs_wds={Split.train: {"shardshuffle": True}},
        kwargs_wld={split: {"num_workers": num_workers} for split in splits},
    )  # fmt: skip


def untuple(source: Any) -> Any:
    return (sample for (sample,) in source)


def test_another_fit_takes_the_next_epoch_whether_or_not_the_last_one_failed(shards: Path) -> None:
    """In its own order, as one fit of several epochs would; and no worker outlives a fit, either way."""
    data, plain = module(shards, 2), module(shards, 0)
    plain.setup("fit")
    loader = plain.train_dataloader()
    epochs = [[batch[:, 0].int().tolist() for batch in loader] for _ in range(3)]
    assert fit(data, Model()) == epochs[0]
    assert not multiprocessing.active_children()
    broken = Model(fails_at=4)
    with pytest.raises(ValueError, match="a step that fails"):
        fit(data, broken)
    assert broken.seen == epochs[1][:5]
    assert not multiprocessing.active_children()
    assert fit(data, Model()) == epochs[2]
