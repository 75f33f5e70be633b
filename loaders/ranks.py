"""The rank of this process."""

import os

import torch

from dray.shards.errors import CallError


def own_rank() -> tuple[int, int]:
    """Returns (rank, number of ranks): from torch.distributed, else from RANK and WORLD_SIZE, else (0, 1)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return _from_environment("RANK", 0), _from_environment("WORLD_SIZE", 1)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal():
        raise CallError(f"environment variable {name}={text!r}: expected an integer >= 0")
    return int(text)
