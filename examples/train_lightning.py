"""Train on the quickstart's shards with Lightning, on one or two processes.

    dray quickstart
    python examples/train_lightning.py --data dray-quickstart/shards
    python examples/train_lightning.py --data dray-quickstart/shards --devices 2

`--data` may be an object-storage URL: s3://bucket/shards, with the keys in the environment (AWS_ACCESS_KEY_ID, ...).
With `--checkpoint-dir DIR` a rerun goes on from the last epoch that was saved there.
"""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from webdataset.filters import batched, shuffle

from dray.loaders import Split, WebDataModule

GLOBAL_BATCH_SIZE = 64


class Classifier(lightning.LightningModule):
    """Tells digits 0 to 9 from images of shape (batch, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, 10)
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a rank's part of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Note the share of digits told right, over all ranks."""
        self.log("val_accuracy", self.accuracy(batch), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Note the share of digits told right, over all ranks."""
        self.log("test_accuracy", self.accuracy(batch), sync_dist=True)

    def accuracy(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The share of a batch's digits told right."""
        images, labels = batch
        return (self.layers(images).argmax(dim=1) == labels).float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch of samples, each a tuple of the parts asked for: an image and a label."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def data_module(data: str, num_ranks: int) -> WebDataModule:
    """Batches for every rank: together they are GLOBAL_BATCH_SIZE samples a step."""
    batch = batched(GLOBAL_BATCH_SIZE // num_ranks, collation_fn=collate)
    return WebDataModule(
        None,  # the shards' snapshot tells how many samples there are
        ("image.pyd", "label.cls"),
        {split: f"{data}/{split.name}" for split in Split},
        GLOBAL_BATCH_SIZE,
        pipeline_wds={Split.train: shuffle(1000)},
        pipeline_prebatch_wld=dict.fromkeys(Split, batch),
    )


def main() -> None:
    """Train, test, print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="URL", help="a folder with the datasets train, val and test")
    parser.add_argument("--devices", type=int, default=1, help="processes to train on (default: 1)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="save each epoch there, go on from the last")
    args = parser.parse_args()

    lightning.seed_everything(0)
    folder = args.checkpoint_dir
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        max_epochs=args.epochs,
        callbacks=[ModelCheckpoint(folder, save_last=True)] if folder else None,
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
