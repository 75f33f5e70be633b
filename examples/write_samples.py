"""Write a dataset from a function and its inputs, change some, write again, and train on it.

    python examples/write_samples.py --out digits
    python examples/write_samples.py --out digits --count 1300 --workers 4     # makes 300 more, and none again
    python examples/write_samples.py --out s3://bucket/digits --address auto   # in tasks of a Ray cluster

Each input is a number, of which the function makes a noisy image of a bar and its label. The noise comes from `rng`,
which depends on the input alone: so every run, with any number of workers, makes the same bytes.
"""

import argparse
from typing import Any

import numpy as np
import torch
from torch import nn

from dray.loaders import ShardLoader
from dray.pipelines import write_samples

SIDE, CLASSES = 8, 8
VERSION = "1"  # of make_sample: change it when the function changes


def make_sample(number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns an image with a bright row, and which row it is."""
    label = number % CLASSES
    image = rng.normal(0, 0.3, (SIDE, SIDE)).astype(np.float32)
    image[label] += 1
    return {"image": image, "cls": label}


def main() -> None:
    """Write, then train."""
    arguments = parse()
    report = write_samples(
        make_sample,
        arguments.out,
        inputs=range(arguments.count),
        transform_version=VERSION,
        samples_per_shard=250,
        num_workers=arguments.workers,
        address=arguments.address,
    )
    print(report)
    print(f"accuracy {train(arguments.out):.2f}")


def train(url: str) -> float:
    """Returns the accuracy of a small network in the last epoch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    loader = ShardLoader(url, batch_size=64, parts=("image.npy", "cls"), shuffle=True)
    right = num_samples = 0
    for epoch in range(4):
        loader.set_epoch(epoch)
        right = num_samples = 0
        for batch in loader:
            labels = torch.as_tensor(batch["cls"])
            guesses = network(batch["image.npy"])
            loss = nn.functional.cross_entropy(guesses, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((guesses.argmax(1) == labels).sum())
            num_samples += len(labels)
    return right / num_samples


def parse() -> argparse.Namespace:
    """Returns the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the dataset: a path or a URL")
    parser.add_argument("--count", type=int, default=1000, help="number of inputs (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="worker processes (default: none)")
    parser.add_argument("--address", help="address of a Ray cluster; local starts one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
