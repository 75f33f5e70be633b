"""Preprocess the quickstart's digits with Ray Data, write them as shards, and train on those.

    dray quickstart
    python examples/preprocess_ray_data.py --data dray-quickstart/shards --out embedded
    python examples/preprocess_ray_data.py --data dray-quickstart/shards --out embedded --gpus 1     # a GPU an actor

Each image becomes several, slightly shifted ones, and an actor pool embeds them with a network. `--data` and `--out`
may be object-storage URLs. As a job: ray job submit --working-dir examples -- python preprocess_ray_data.py ...

Every step gives the same rows for the same input: the shift of an image follows from its key. So a task that runs
again, after the loss of a worker or a node, makes the same bytes, and the shards are the same on every run.
"""

import argparse
import zlib
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.data import ActorPoolStrategy
from torch import nn

from dray.loaders import ShardLoader
from dray.pipelines import read_shards, write_shards

COPIES = {"train": 4, "val": 1}  # images that are made of each; the first one is not shifted
NUM_ACTORS = 1
SAMPLES_PER_SHARD = 1000


def shifted(row: dict[str, Any], copies: int) -> list[dict[str, Any]]:
    """Returns copies of a row with their own keys; the key is the seed."""
    chance = np.random.default_rng(zlib.crc32(row["__key__"].encode()))
    made = []
    for copy in range(copies):
        by = chance.integers(-1, 2, 2) if copy else (0, 0)
        image = np.roll(row["image.pyd"], by, axis=(-2, -1))
        made.append({"__key__": f"{row['__key__']}-{copy}", "image": image, "label.cls": row["label.cls"]})
    return made


class Embed:
    """Embeds batches of images; its network is loaded once an actor."""

    def __init__(self) -> None:
        torch.manual_seed(0)  # a real one would load weights
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).to(self.device)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch with embeddings instead of images."""
        images = torch.from_numpy(np.array(batch.pop("image"))).to(self.device)
        return batch | {"embedding": self.network(images).cpu().numpy()}


def preprocess(data: str, out: str, split: str, num_gpus: int) -> None:
    """Write a split's embeddings as a dataset."""
    rows = read_shards(f"{data}/{split}", parts=["image.pyd", "label.cls"])
    rows = rows.flat_map(partial(shifted, copies=COPIES[split]))
    # An actor takes half a CPU, which leaves the others to the tasks that read and write.
    pool = ActorPoolStrategy(size=NUM_ACTORS)
    rows = rows.map_batches(Embed, batch_size=256, compute=pool, num_cpus=0.5, num_gpus=num_gpus)
    print(write_shards(rows, f"{out}/{split}", samples_per_shard=SAMPLES_PER_SHARD))


def train(out: str, epochs: int) -> nn.Module:
    """Returns a classifier of embeddings."""
    torch.manual_seed(0)
    model = nn.LazyLinear(10)
    loader = ShardLoader(f"{out}/train", parts=["embedding.npy", "label.cls"], batch_size=64, shuffle=True)
    optimizer = None
    for _ in range(epochs):
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["embedding.npy"]), batch["label.cls"])
            optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=3e-3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, out: str) -> float:
    """Returns the share of the validation split that is classified correctly."""
    right = total = 0
    parts = ["embedding.npy", "label.cls"]
    for batch in ShardLoader(f"{out}/val", parts=parts, batch_size=64, remainder="keep"):
        right += int((model(batch["embedding.npy"]).argmax(dim=1) == batch["label.cls"]).sum())
        total += len(batch["label.cls"])
    return right / total


def main() -> None:
    """Preprocess, train, print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="URL", help="a folder with the datasets train and val")
    parser.add_argument("--out", required=True, metavar="URL", help="where the new datasets train and val go")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each actor that embeds (default: none)")
    args = parser.parse_args()
    for split in COPIES:
        preprocess(args.data, args.out, split, args.gpus)
    print(f"val_accuracy {accuracy(train(args.out, args.epochs), args.out):.3f}")


if __name__ == "__main__":
    main()
