"""Datasets that tests build, read and spoil."""

import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dray.pipelines import BuildReport, pickles_to_tars
from dray.pipelines.planning.recipe import Recipe
from dray.shards import Snapshot, Store
from tests.conftest import Inputs, Place

Part = Callable[[int], bytes]


def tensor_of(*shape: int) -> Part:
    """A pickled tensor, all elements of which are the number."""
    return lambda number: pickle.dumps(torch.full(shape, float(number)))


def npy(array: Any) -> bytes:
    """An array as numpy saves it."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def number_as_text(number: int) -> bytes:
    return json.dumps(number).encode()


def recipe_of(*suffixes: str) -> dict[str, Any]:
    """The recipe of a dataset that nothing special was done to."""
    return Recipe(suffixes=suffixes).to_json()


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
    """The URL of a dataset, `folder/out` where none is given; its samples stay in `folder/inputs`.

    Sample n is named by its number, and holds it in every part.
    """
    inputs, names = folder / "inputs", [f"s{number:04d}" for number in range(num_samples)]
    inputs.mkdir(parents=True)
    for number, name in enumerate(names):
        for suffix, part in parts.items():
            (inputs / f"{name}.{suffix}").write_bytes(part(number))
    url = url or str(folder / "out")
    pickles_to_tars(inputs, names, list(parts), url, "wdshards", min_num_shards=num_shards, progress=False, **options)
    return url


def build(inputs: Inputs, place: Place, **options: Any) -> BuildReport:
    """With the defaults of these tests: all inputs, 4 shards, no progress."""
    defaults = {"min_num_shards": 4, "progress": False, "storage_options": place.storage_options}
    names, prefix = options.pop("names", inputs.names), options.pop("prefix", "wds")
    return pickles_to_tars(inputs.folder, names, inputs.suffixes, place.url, prefix, **{**defaults, **options})


def latest(place: Place, prefix: str = "wds") -> Snapshot:
    """The last version at a place."""
    return Snapshot.open(place.url, prefix, storage_options=place.storage_options)


def store_at(place: Place) -> Store:
    return Store(place.url, place.storage_options)


def stored(where: Place | Store, folder: str = "") -> dict[str, bytes]:
    """Every object there."""
    store = store_at(where) if isinstance(where, Place) else where
    found = {info.name: store.get(info.name) for info in store.list_folder(folder)}
    for child in store.list_folders(folder):
        found |= stored(store, child)
    return found


def samples_at(url: str | Path, prefix: str = "wdshards", **options: Any) -> list[tuple[str, dict[str, bytes]]]:
    """Key and parts of each sample of a version, in order."""
    version = Snapshot.open(url, prefix, **options)
    indexes = ((shard, version.index(shard)) for shard in version.shards)
    return [
        (key, version.read_row(shard, index, row)) for shard, index in indexes for row, key in enumerate(index.keys)
    ]


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    """The rows of a Ray Data dataset, which may have objects that numpy lacks."""
    return [row for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow") for row in batch.to_pylist()]


def overwrite(store: Store, name: str, data: bytes) -> None:
    """Do what nobody should: put other bytes under a name."""
    store.delete([name])
    store.put_new(name, data)
