"""Train on the quickstart's shards under Ray Train: an epoch outlives its workers, and goes on with more or fewer.

    dray quickstart
    python examples/train_ray.py --data dray-quickstart/shards
    python examples/train_ray.py --data dray-quickstart/shards --kill-at 15     # a drill: a worker dies in mid-epoch

`--data` may be an object-storage URL: s3://bucket/shards, with the keys in the workers' environment. As a job on a
cluster: ray job submit --working-dir examples -- python train_ray.py --data s3://bucket/shards --results s3://bucket/runs

A checkpoint holds the model and the loader's cursor, some 300 bytes that are the same on every rank. After a loss Ray
Train starts the workers again from the last one: two of them, or one where a node is gone, and again two when a node
has come. Each step trains the same samples whatever their number. It waits RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S
(60 s) for a lost node before it starts with fewer, and looks for a new one every `elastic_resize_monitor_interval_s`.
"""

import argparse
import os
import signal
import tempfile
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from dray.loaders import ShardLoader
from dray.shards import Snapshot

PARTS = ("image.pyd", "label.cls")
NUM_WORKERS = (1, 2)  # at least and at most
GLOBAL_BATCH_SIZE = 64  # over all workers, however many
SAVE_EVERY = 10  # steps


def train_on_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs: its rank's share of each batch, from where the last checkpoint ends."""
    torch.manual_seed(0)
    loader = open_loader(config, "train", shuffle=True)
    model = prepare_model(network())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            saved = torch.load(os.path.join(folder, "state.pt"))
        bare(model).load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    for epoch in range(loader.state_dict()["epoch"], config["epochs"]):  # the first of them may be a rest
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["image.pyd"]), batch["label.cls"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step = loader.state_dict()["steps"]
            if step == len(loader):
                save(model, optimizer, loader, {"train_loss": loss.item(), "val_accuracy": accuracy(model, config)})
            elif step % SAVE_EVERY == 0:
                save(model, optimizer, loader, {"train_loss": loss.item()})
            if not checkpoint and (epoch, step) == (0, config["kill_at"]):
                die()


def open_loader(config: dict[str, Any], split: str, **options: Any) -> ShardLoader:
    """This rank's batches of a split, all of one version: restarts must not see what is built meanwhile."""
    return ShardLoader(
        f"{config['data']}/{split}",
        parts=PARTS,
        batch_size=GLOBAL_BATCH_SIZE // ray.train.get_context().get_world_size(),
        version=config["versions"][split],
        **options,
    )


def network() -> nn.Module:
    """Tells digits 0 to 9 from images of shape (batch, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 4 * 4, 10)
    )


def bare(model: nn.Module) -> nn.Module:
    """The model without DDP, which `prepare_model` puts around it on more than one worker only."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def save(model: nn.Module, optimizer: torch.optim.Optimizer, loader: ShardLoader, metrics: dict[str, float]) -> None:
    """Report metrics; rank 0 saves for all."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            state = {"model": bare(model).state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "loader": loader.state_dict()}, os.path.join(folder, "state.pt"))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


@torch.no_grad()
def accuracy(model: nn.Module, config: dict[str, Any]) -> float:
    """Return the share of the validation split that is classified correctly; each of its samples counts once."""
    counts = torch.zeros(2)
    for batch in open_loader(config, "val", remainder="keep"):
        right = bare(model)(batch["image.pyd"]).argmax(dim=1) == batch["label.cls"]
        counts += torch.tensor([float(right.sum()), float(len(right))])
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
    return float(counts[0] / counts[1])


def die() -> None:
    """The drill: rank 0 is killed, once Ray Train, which looks every 2 s, has noted the last save."""
    if ray.train.get_context().get_world_rank() == 0:
        ray.train.get_all_reported_checkpoints()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train, print the last metrics."""
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
    print(", ".join(f"{name} {metrics[name]:.3f}" for name in ("train_loss", "val_accuracy")))


if __name__ == "__main__":
    main()
