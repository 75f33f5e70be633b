"""The network of `dray quickstart` (two convolutions, ten classes, 29,000 weights) and its trainer."""

import logging
import warnings

import lightning
import torch
from torch import Tensor, nn


class DigitNetwork(lightning.LightningModule):
    """A classifier of images of shape (batch, 1, 8, 8) with labels from 0 to 9."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the loss of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.layers(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the accuracy on a batch."""
        self.log("val_accuracy", self._accuracy(batch), batch_size=len(batch[1]))

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the accuracy on a batch."""
        self.log("test_accuracy", self._accuracy(batch), batch_size=len(batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Print the accuracy on val."""
        accuracy = self.trainer.callback_metrics["val_accuracy"]
        print(f"   epoch {self.current_epoch + 1:2}: val accuracy {accuracy:.1%}", flush=True)  # noqa: T201

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)

    def _accuracy(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        right: Tensor = self.layers(images).argmax(dim=1) == labels
        return right.float().mean()


def stack(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Returns a batch: images of shape (batch, 1, 8, 8), labels of shape (batch,)."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def quiet_trainer(num_epochs: int) -> lightning.Trainer:
    """Returns a trainer on the CPU that prints and writes nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch")  # tuning advice: more workers, other intervals
    return lightning.Trainer(
        max_epochs=num_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
