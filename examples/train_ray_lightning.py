"""Train on the quickstart's shards with Lightning inside Ray Train: an epoch outlives its workers.

    dray quickstart
    python examples/train_ray_lightning.py --data dray-quickstart/shards
    python examples/train_ray_lightning.py --data dray-quickstart/shards --kill-at 15     # a worker dies in mid-epoch

`--data` may be an object-storage URL: s3://bucket/shards, with the keys in the workers' environment.

Lightning's checkpoint holds the model, the optimizer and where `ShardDataModule` is. After a loss Ray Train starts the
workers again, as many as there is room for, and the epoch goes on from the last checkpoint: each step trains the same
samples whatever the number of workers.
"""

import argparse
import os
import signal
import tempfile
from typing import Any

import lightning
import ray.train
import torch
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer
from ray.train.torch import TorchTrainer
from torch import Tensor, nn

from dray.loaders import ShardDataModule
from dray.shards import Snapshot

NUM_WORKERS = (1, 2)  # at least and at most
GLOBAL_BATCH_SIZE = 64  # over all workers, however many
SAVE_EVERY = 10  # steps
CHECKPOINT = "lightning.ckpt"
METRICS = ("train_loss", "val_accuracy")

Batch = dict[str, Tensor]


class Classifier(lightning.LightningModule):
    """Tells digits 0 to 9 from images of shape (batch, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, 10)
        )

    def training_step(self, batch: Batch) -> Tensor:
        """Returns the loss of a worker's part of a batch."""
        loss = nn.functional.cross_entropy(self.layers(batch["image.pyd"]), batch["label.cls"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Logs the share of digits that are recognized, over all workers."""
        right = self.layers(batch["image.pyd"]).argmax(dim=1) == batch["label.cls"]
        self.log("val_accuracy", right.float().mean(), sync_dist=True, batch_size=len(right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Report(lightning.Callback):
    """Saves a checkpoint every few steps and at the end of each epoch, and reports it to Ray Train.

    Args:
        kill_at: Step after which rank 0 is killed; None: never.
    """

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:  # noqa: ARG002
        """Saves inside the epoch; at its end `on_train_epoch_end` does."""
        if trainer.global_step % SAVE_EVERY == 0 and not trainer.is_last_batch:
            save(trainer, {"step": trainer.global_step})
        if trainer.global_step == self.kill_at:
            die()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Saves after the validation, with its metric."""
        save(trainer, {name: float(trainer.callback_metrics[name]) for name in METRICS})


def save(trainer: lightning.Trainer, metrics: dict[str, float]) -> None:
    """Reports metrics and a checkpoint; all workers call it, rank 0 writes the file."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_checkpoint(os.path.join(folder, CHECKPOINT))
        checkpoint = ray.train.Checkpoint.from_directory(folder) if trainer.is_global_zero else None
        ray.train.report(metrics, checkpoint=checkpoint)


def die() -> None:
    """Kills rank 0, once Ray Train, which looks every 2 s, has noted the last save."""
    if ray.train.get_context().get_world_rank() == 0:
        ray.train.get_all_reported_checkpoints()
        os.kill(os.getpid(), signal.SIGKILL)


def train_on_worker(config: dict[str, Any]) -> None:
    """Trains on one Ray Train worker, from where the last checkpoint ends."""
    lightning.seed_everything(0)
    splits = {  # one version of each for all restarts, whatever is built meanwhile
        split: {"url": f"{config['data']}/{split}", "version": version} for split, version in config["versions"].items()
    }
    data = ShardDataModule(
        **splits,
        parts=("image.pyd", "label.cls"),
        batch_size=GLOBAL_BATCH_SIZE // ray.train.get_context().get_world_size(),
        shuffle=True,
    )
    checkpoint = ray.train.get_checkpoint()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices="auto",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[Report(None if checkpoint else config["kill_at"])],
        max_epochs=config["epochs"],
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
    )
    trainer = prepare_trainer(trainer)
    if checkpoint is None:
        trainer.fit(Classifier(), data)
    else:
        with checkpoint.as_directory() as folder:
            trainer.fit(Classifier(), data, ckpt_path=os.path.join(folder, CHECKPOINT))


def main() -> None:
    """Trains, prints the last metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="URL", help="a folder with the datasets train and val")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--results", metavar="URL", help="where checkpoints go (default: ~/ray_results)")
    parser.add_argument("--kill-at", type=int, metavar="STEP", help=f"a drill; a step after the first {SAVE_EVERY}")
    args = parser.parse_args()

    data, results = (url if url is None or "://" in url else os.path.abspath(url) for url in (args.data, args.results))
    versions = {split: Snapshot.open(f"{data}/{split}").version for split in ("train", "val")}
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"data": data, "versions": versions, "epochs": args.epochs, "kill_at": args.kill_at},
        scaling_config=ray.train.ScalingConfig(num_workers=NUM_WORKERS),
        run_config=ray.train.RunConfig(storage_path=results, failure_config=ray.train.FailureConfig(max_failures=3)),
    )
    metrics = trainer.fit().metrics
    print(", ".join(f"{name} {metrics[name]:.3f}" for name in METRICS))


if __name__ == "__main__":
    main()
