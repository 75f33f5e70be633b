"""What every contestant is given: the samples, and how they are to be loaded."""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

BATCH = 32
PICKLED, TRANSCODED = "tensor.pyd", "tensor.npy"  # the parts of dray's datasets
UNITS = {"kB": 1_000, "MB": 1_000_000, "B": 1}

Epoch = Callable[[], Iterable[torch.Tensor]]  # batches of one epoch, a row a sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One line of the table: these samples, loaded in this way.

    Attributes:
        folder: Where the samples lie in every form.
        num_samples: A multiple of `2 * BATCH`, so that two workers have whole batches too.
        num_floats: Of a sample, a float32 tensor.
        num_workers: Processes that load besides the one that would train; 0: none.
        shuffle: Whether each epoch has another order.
    """

    folder: str
    num_samples: int
    num_floats: int
    num_workers: int = 0
    shuffle: bool = False

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """The task that `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """For the way to another interpreter."""
        return json.dumps(asdict(self))

    def path(self, name: str) -> Path:
        """A folder of one contestant or several."""
        return Path(self.folder) / name

    def samples(self) -> NDArray[np.float32]:
        """All of them, mapped, (num_samples, num_floats): what every form was made of."""
        return _mapped(self.path("samples.bin"), self.num_samples, self.num_floats)

    def tensor(self, number: int) -> torch.Tensor:
        """One sample."""
        return torch.from_numpy(np.array(self.samples()[number]))

    def write_samples(self) -> None:
        """Random numbers, but the first and the last of a sample tell which one it is: see `loading.runner`."""
        with self.path("samples.bin").open("wb") as file:
            for number in range(self.num_samples):
                values = np.random.default_rng(number).random(self.num_floats, np.float32)
                values[0], values[-1] = number, -number
                file.write(values.tobytes())


@lru_cache(1)  # to map the file takes longer than to read a small sample
def _mapped(path: Path, num_samples: int, num_floats: int) -> NDArray[np.float32]:
    return np.asarray(np.memmap(path, np.float32, "r", shape=(num_samples, num_floats)))


def parse_bytes(text: str) -> int:
    """`4kB` is 4,000."""
    for unit, factor in UNITS.items():
        if text.endswith(unit) and text.removesuffix(unit).isdigit():
            return int(text.removesuffix(unit)) * factor
    raise argparse.ArgumentTypeError(f"expected a size like 4kB or 2MB, found {text!r}")
