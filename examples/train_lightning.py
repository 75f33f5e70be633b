"""Train on the quickstart's shards with Lightning, on one or two processes.

    dray quickstart
    python examples/train_lightning.py --data dray-quickstart/shards
    python examples/train_lightning.py --data dray-quickstart/shards --devices 2

`--data` may be an object-storage URL: s3://bucket/shards, with the keys in the environment (AWS_ACCESS_KEY_ID, ...).
With `--checkpoint-dir DIR` a rerun goes on from the last step that was saved there.
"""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from dray.loaders import ShardDataModule

GLOBAL_BATCH_SIZE = 64
SAVE_EVERY = 10  # steps

Batch = dict[str, Tensor]


class Classifier(lightning.LightningModule):
    """Tells digits 0 to 9 from images of shape (batch, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, 10)
        )

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of a rank's part of a batch."""
        loss = nn.functional.cross_entropy(self.layers(batch["image.pyd"]), batch["label.cls"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Log the share of digits classified correctly, over all ranks."""
        self.log("val_accuracy", self.accuracy(batch), sync_dist=True)

    def test_step(self, batch: Batch) -> None:
        """Log the share of digits classified correctly, over all ranks."""
        self.log("test_accuracy", self.accuracy(batch), sync_dist=True)

    def accuracy(self, batch: Batch) -> Tensor:
        """Return the share of a batch's digits classified correctly."""
        return (self.layers(batch["image.pyd"]).argmax(dim=1) == batch["label.cls"]).float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def data_module(data: str, num_ranks: int) -> ShardDataModule:
    """Batches for every rank: together they are GLOBAL_BATCH_SIZE samples a step."""
    return ShardDataModule(
        f"{data}/train",
        f"{data}/val",
        f"{data}/test",
        parts=("image.pyd", "label.cls"),
        batch_size=GLOBAL_BATCH_SIZE // num_ranks,
        shuffle=True,
    )


def main() -> None:
    """Train, test, print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="URL", help="a folder with the datasets train, val and test")
    parser.add_argument("--devices", type=int, default=1, help="processes to train on (default: 1)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="save there, go on from the last")
    args = parser.parse_args()

    lightning.seed_everything(0)
    folder = args.checkpoint_dir
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        max_epochs=args.epochs,
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=SAVE_EVERY)] if folder else None,
        enable_checkpointing=folder is not None,
        logger=False,
    )
    model, data = Classifier(), data_module(args.data, args.devices)
    trainer.fit(model, data, ckpt_path=folder / "last.ckpt" if folder and (folder / "last.ckpt").exists() else None)
    metrics = dict(trainer.callback_metrics) | trainer.test(model, data, verbose=False)[0]
    if trainer.is_global_zero:
        print(", ".join(f"{name} {float(value):.3f}" for name, value in sorted(metrics.items())))


if __name__ == "__main__":
    main()
