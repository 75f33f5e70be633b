"""Train on the quickstart's shards with Lightning on two Ray Train workers.

    dray quickstart
    python examples/train_ray.py --data dray-quickstart/shards

`--data` may be an object-storage URL: s3://bucket/shards, with the keys in the workers' environment. As a job on a
cluster: ray job submit --working-dir examples -- python train_ray.py --data s3://bucket/shards --results s3://bucket/runs
"""

import argparse
import os
from typing import Any

import lightning
import ray.train
import torch
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer
from torch import Tensor, nn
from webdataset.filters import batched, shuffle

from dray.loaders import Split, WebDataModule

NUM_WORKERS = 2
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
        images, labels = batch
        right = self.layers(images).argmax(dim=1) == labels
        self.log("val_accuracy", right.float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch of samples, each a tuple of the parts asked for: an image and a label."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def train_on_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs: its rank's share of each batch comes from its own DataModule."""
    batch = batched(GLOBAL_BATCH_SIZE // ray.train.get_context().get_world_size(), collation_fn=collate)
    splits = (Split.train, Split.val)
    data = WebDataModule(
        None,  # the shards' snapshot tells how many samples there are
        ("image.pyd", "label.cls"),
        {split: f"{config['data']}/{split.name}" for split in splits},
        GLOBAL_BATCH_SIZE,
        pipeline_wds={Split.train: shuffle(1000)},
        pipeline_prebatch_wld=dict.fromkeys(splits, batch),
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices="auto",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[RayTrainReportCallback()],  # metrics and a checkpoint go to Ray after each epoch
        max_epochs=config["epochs"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    prepare_trainer(trainer).fit(Classifier(), data)


def main() -> None:
    """Train, print the last epoch's metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="URL", help="a folder with the datasets train and val")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--results", metavar="URL", help="where checkpoints go (default: ~/ray_results)")
    args = parser.parse_args()

    data, results = (url if url is None or "://" in url else os.path.abspath(url) for url in (args.data, args.results))
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"data": data, "epochs": args.epochs},
        scaling_config=ray.train.ScalingConfig(num_workers=NUM_WORKERS, use_gpu=False),
        run_config=ray.train.RunConfig(storage_path=results),
    )
    metrics = trainer.fit().metrics
    print(", ".join(f"{name} {metrics[name]:.3f}" for name in ("train_loss", "val_accuracy")))


if __name__ == "__main__":
    main()
