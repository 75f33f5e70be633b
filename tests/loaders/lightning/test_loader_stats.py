"""`LoaderStats`: the loader's counts in the entries of a Trainer's logger."""

import csv
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from webdataset import batched

from dray.loaders import LoaderStats, ShardLoader, Split, WebDataModule
from tests.support.datasets import pack, tensor_of

NUM_SAMPLES, BATCH = 48, 4
STEPS = 12


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        values = batch["x.pyd"] if isinstance(batch, dict) else batch
        loss = self.layer(values).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sample n is a tensor of n."""
    return pack(tmp_path_factory.mktemp("stats"), NUM_SAMPLES, parts={"x.pyd": tensor_of(2)})


def fit(folder: Path, loader: Any, **options: Any) -> list[dict[str, float]]:
    """Trains two epochs; returns the entries of the callback, which are at the steps of the loss."""
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=CSVLogger(folder), callbacks=[LoaderStats()], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        **{"log_every_n_steps": 5, **options},
    )  # fmt: skip
    trainer.fit(Model(), loader, DataLoader(torch.ones(4, 2), batch_size=BATCH))  # type: ignore[arg-type]
    with Path(str(trainer.log_dir), "metrics.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    found = [row for row in rows if any(name.startswith("data/") for name in row)]
    assert not found or [row["step"] for row in found] == [row["step"] for row in rows if "loss" in row]
    return found


def test_entries_come_with_the_trainers_own(url: str, tmp_path: Path) -> None:
    """Every 5 of 24 steps, each over the steps since the one before."""
    found = fit(tmp_path, ShardLoader(url, batch_size=BATCH, shuffle=True))
    assert [row["step"] for row in found] == [4, 9, 14, 19]
    for row in found:
        assert row["data/samples_per_s"] > 0
        assert row["data/bytes_per_s"] >= 0  # they are read ahead, all of a small epoch at once
        assert 0 < row["data/wait_share"] < 1
        assert row["data/wait_s_per_step"] > 0
        assert row["data/skipped"] == row["data/requests"] == 0


def test_an_accumulated_step_is_one_step(url: str, tmp_path: Path) -> None:
    """24 batches are 8 steps of 3: entries at the 4th and the 8th."""
    found = fit(tmp_path, ShardLoader(url, batch_size=BATCH), accumulate_grad_batches=3, log_every_n_steps=4)
    assert [row["step"] for row in found] == [3, 7]


def test_with_workers_it_is_the_same(url: str, tmp_path: Path) -> None:
    """Workers send their counts with each batch."""
    found = fit(tmp_path, ShardLoader(url, batch_size=BATCH, num_workers=1))
    assert [row["step"] for row in found] == [4, 9, 14, 19]
    for row in found:
        assert row["data/samples_per_s"] > 0
        assert row["data/wait_s_per_step"] >= 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_of_a_datamodule_has_stats(url: str, num_workers: int) -> None:
    """They count what this process or its worker has read."""
    data = WebDataModule(
        None, "x.pyd", {Split.test: url}, BATCH, kwargs_wld={Split.test: {"num_workers": num_workers}},
        pipeline_prebatch_wld={Split.test: batched(BATCH, collation_fn=list)},
    )  # fmt: skip
    data.setup("test")
    loader = data.test_dataloader()
    assert len(list(loader)) == NUM_SAMPLES // BATCH
    stats = loader.stats()
    assert stats["samples"] == NUM_SAMPLES
    assert stats["bytes"] > 0
    assert stats["wait_s"] > 0


def test_a_loader_without_stats_is_warned_of_once(tmp_path: Path) -> None:
    """The warning names its class; training goes on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fit(tmp_path, DataLoader(torch.ones(48, 2), batch_size=BATCH)) == []  # type: ignore[arg-type]
    messages = [str(warning.message) for warning in caught if "LoaderStats" in str(warning.message)]
    assert messages == ["LoaderStats: DataLoader has no stats(), so nothing is logged"]
