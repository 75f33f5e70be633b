"""Datasets that tests train on: sample n is named by its number, and holds it in every part."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dray.pipelines import pickles_to_tars

Part = Callable[[int], bytes]


def tensor_of(*shape: int) -> Part:
    """A pickled tensor, all elements of which are the number."""
    return lambda number: pickle.dumps(torch.full(shape, float(number)))


def number_as_text(number: int) -> bytes:
    return json.dumps(number).encode()


PARTS: Mapping[str, Part] = {"x.pyd": tensor_of(2), "cls": number_as_text, "txt": b"note %d".__mod__}


def pack(
    folder: Path,
    num_samples: int,
    num_shards: int = 3,
    url: str | None = None,
    *,
    parts: Mapping[str, Part] = PARTS,
    **options: Any,
) -> str:
    """The URL of a dataset, `folder/out` where none is given; its samples stay in `folder/inputs`."""
    inputs, names = folder / "inputs", [f"s{number:04d}" for number in range(num_samples)]
    inputs.mkdir(parents=True)
    for number, name in enumerate(names):
        for suffix, part in parts.items():
            (inputs / f"{name}.{suffix}").write_bytes(part(number))
    url = url or str(folder / "out")
    pickles_to_tars(inputs, names, list(parts), url, "wdshards", min_num_shards=num_shards, progress=False, **options)
    return url
