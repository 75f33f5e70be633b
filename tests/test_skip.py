"""`on_error="skip"`: bad samples are replaced, the same on every rank and worker, counted and listed."""

import json
import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dray.loaders import ShardLoader
from dray.pipelines import pickles_to_tars
from dray.shards import Snapshot
from dray.shards.errors import CallError, DamagedError, RefusedError

NUM_SAMPLES = 60
BAD = (7, 8, 31)


class Foreign:
    """Not on the safe list."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """60 samples in 6 shards, of which three cannot be read: two damaged, one refused."""
    (tmp_path / "inputs").mkdir()
    names = [f"s{number:02d}" for number in range(NUM_SAMPLES)]
    for number, name in enumerate(names):
        value = Foreign() if number == BAD[2] else torch.full((4,), float(number))
        (tmp_path / "inputs" / f"{name}.x.pyd").write_bytes(pickle.dumps(value))
    url = tmp_path / "out"
    pickles_to_tars(tmp_path / "inputs", names, "x.pyd", url, "wdshards", min_num_shards=6, progress=False)
    body = bytearray((url / "wdshards-000000.tar").read_bytes())
    for number in BAD[:2]:
        place = body.index(np.full(4, number, np.float32).tobytes())
        body[place] ^= 1
    (url / "wdshards-000000.tar").write_bytes(body)
    return str(url)


def numbers(loader: ShardLoader) -> list[list[int]]:
    return [batch["x.pyd"][:, 0].long().tolist() for batch in loader]


def open_loader(url: str, bad_samples: Path, **options: Any) -> ShardLoader:
    arguments: dict[str, Any] = {"batch_size": 4, "remainder": "keep", "on_error": "skip"}
    return ShardLoader(url, bad_samples=bad_samples, **arguments | options)


@pytest.mark.parametrize("shuffle", [False, True])
def test_good_samples_take_the_place_of_bad_ones(url: str, tmp_path: Path, shuffle: bool) -> None:
    """All others come as ever; each bad one is counted and listed with its shard and key."""
    listing = tmp_path / "bad.jsonl"
    loader = open_loader(url, listing, shuffle=shuffle)
    with pytest.warns(UserWarning, match=r"replaced and listed in .*bad\.jsonl"):
        found = [number for batch in numbers(loader) for number in batch]
    assert len(found) == NUM_SAMPLES
    assert set(found) == set(range(NUM_SAMPLES)) - set(BAD)
    assert loader.stats()["skipped"] == len(BAD)
    entries = [json.loads(line) for line in listing.read_text().splitlines()]
    assert len(entries) == len(BAD)
    assert {number for number in BAD for entry in entries if f"s{number:02d}" in entry["error"]} == set(BAD)
    assert all("wdshards-00000" in entry["error"] and entry["epoch"] == 0 for entry in entries)


@pytest.mark.filterwarnings("ignore:samples that cannot be read are replaced")  # also in the workers
def test_all_ranks_and_workers_replace_them_alike(url: str, tmp_path: Path) -> None:
    """Law 8 holds: a global batch of 12 whoever makes it, and steps stay equal."""
    listing = tmp_path / "bad.jsonl"
    options: dict[str, Any] = {"shuffle": True, "seed": 4}
    whole = numbers(open_loader(url, listing, batch_size=12, **options))
    for num_ranks in (2, 3):
        options["batch_size"], options["num_ranks"] = 12 // num_ranks, num_ranks
        ranks = [numbers(open_loader(url, listing, rank=rank, **options)) for rank in range(num_ranks)]
        assert [list(chain.from_iterable(step)) for step in zip(*ranks, strict=True)] == whole
    listing.unlink()
    with_workers = open_loader(url, listing, batch_size=12, num_workers=2, shuffle=True, seed=4)
    assert numbers(with_workers) == whole
    assert with_workers.stats()["skipped"] == len(BAD)
    assert len(listing.read_text().splitlines()) == len(BAD)


def test_without_it_they_are_errors(url: str, tmp_path: Path) -> None:
    """In their turn: the batches before them come."""
    loader = ShardLoader(url, batch_size=4)
    found = []
    with pytest.raises(DamagedError, match=r"wdshards-000000\.tar: part 'x\.pyd' of key 's07'"):
        found.extend(batch["x.pyd"][:, 0].tolist() for batch in loader)
    assert found == [[0, 1, 2, 3]]
    with pytest.raises(RefusedError, match=r"wdshards-000003\.tar', key 's31'.*Foreign"):
        list(ShardLoader(url, batch_size=1, rank=31, num_ranks=60))


def test_where_nothing_can_be_read_it_gives_up(tmp_path: Path, url: str) -> None:
    """A loader that finds no good sample says what is wrong with the one that it wanted."""
    loader = open_loader(url, tmp_path / "bad.jsonl", transform=None, parts="x.pyd", limit=1)
    for path in Path(url).glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DamagedError, match="key 's00'"):
        list(loader)


@pytest.mark.filterwarnings("ignore:samples that cannot be read are replaced")
def test_a_rank_without_a_sample_needs_a_good_one_for_its_form(tmp_path: Path, url: str) -> None:
    """In the last step of `keep`, where sample 0 is bad: all ranks end alike."""
    path = Path(url, "wdshards-000000.tar")
    body = bytearray(path.read_bytes())
    snapshot = Snapshot.open(url)
    body[int(snapshot.index(snapshot.shards[0]).offsets[0, 0])] ^= 1
    path.write_bytes(body)
    with pytest.raises(DamagedError, match="key 's00'"):
        next(iter(ShardLoader(url, batch_size=1)))
    options: Any = {"batch_size": 8, "num_ranks": 2, "limit": 17}
    steps = [len(list(open_loader(url, tmp_path / "bad.jsonl", rank=rank, **options))) for rank in range(2)]
    assert steps == [2, 2]


def test_a_place_for_the_list_is_looked_for_at_once(url: str, tmp_path: Path) -> None:
    """Not at the first bad sample, in the middle of the night."""
    with pytest.raises(CallError, match="its folder does not exist"):
        open_loader(url, tmp_path / "nowhere" / "bad.jsonl")
