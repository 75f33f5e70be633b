"""A Lightning model that notes what it gets, and Trainers without output."""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import lightning
import torch
from torch.utils.data import Sampler


def trainer_of(**options: Any) -> lightning.Trainer:
    """Returns a quiet Trainer on the CPU that saves no checkpoints, unless the options say otherwise."""
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0, **options},
    )  # fmt: skip


class Model(lightning.LightningModule):
    """Notes the samples of each step, by stage and epoch; fails in training at a given batch of an epoch."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: dict[str, list[tuple[int, list[int]]]] = {"train": [], "val": [], "test": [], "predict": []}
        self.fails_at = fails_at

    def note(self, stage: str, batch: Any) -> torch.Tensor:
        values = batch[0] if isinstance(batch, (list, tuple)) else batch
        values = values["tensor.pyd"] if isinstance(values, dict) else values
        self.seen[stage].append((self.current_epoch, values[:, 0].int().tolist()))
        loss: torch.Tensor = (values * self.weight).square().mean()
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.note("train", batch)
        if batch_idx == self.fails_at:
            raise ZeroDivisionError
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.note("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.note("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def epoch(self, number: int, stage: str = "train") -> list[list[int]]:
        """Returns the batches of an epoch."""
        return [batch for epoch, batch in self.seen[stage] if epoch == number]

    def samples(self, stage: str) -> list[int]:
        """Returns the samples of a stage in all epochs, sorted."""
        return sorted(number for _, batch in self.seen[stage] for number in batch)


class EpochNumbers(Sampler[int]):
    """Yields the number of the epoch, once for each of an epoch's samples."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples, self.epoch = num_samples, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return repeat(self.epoch, self.num_samples)

    def __len__(self) -> int:
        return self.num_samples
