"""`on_error="skip"`: bad samples are replaced, the same on every rank and worker, counted and listed."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dray.loaders import ShardLoader
from dray.loaders.batching.skipping import NEAR, PARTS, Skipper
from dray.loaders.order.cursor import Cursor
from dray.pipelines import pickles_to_tars
from dray.shards import Snapshot, Store
from dray.shards.errors import CallError, DamagedError, NotFoundError, RefusedError
from dray.shards.layout import Location
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.ranged import RangeReader
from tests.support.faults import FaultyStore

NUM_SAMPLES = 60
BAD = (7, 8, 31)


class Foreign:
    """A class that is not on the safe list."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Returns a dataset of 60 samples in 6 shards; three cannot be read: two damaged, one refused."""
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
    """All others are unchanged; each bad one is counted and listed with its shard and key."""
    listing = tmp_path / "bad.jsonl"
    loader = open_loader(url, listing, shuffle=shuffle)
    with pytest.warns(UserWarning, match=r"replaced and listed in .*bad\.jsonl"):
        found = [number for batch in numbers(loader) for number in batch]
    assert len(found) == NUM_SAMPLES
    assert set(found) == set(range(NUM_SAMPLES)) - set(BAD)
    assert loader.stats()["skipped"] == len(BAD)
    entries = [json.loads(line) for line in listing.read_text().splitlines()]
    assert len(entries) == len(BAD)
    assert {entry["key"] for entry in entries} == {f"s{number:02d}" for number in BAD}
    assert all("wdshards-00000" in entry["url"] and entry["epoch"] == 0 for entry in entries)


@pytest.mark.filterwarnings("ignore:samples that cannot be read are replaced")  # also in the workers
def test_all_ranks_and_workers_agree_on_replacements(url: str, tmp_path: Path) -> None:
    """Law 8 holds: a global batch of 12 is the same however it is made, and steps stay equal."""
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


@pytest.mark.filterwarnings("ignore:samples that cannot be read are replaced")
@pytest.mark.parametrize("lost", ["wdshards-000004.tar", "__dray__/wdshards/index/000004.arrow"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lost_shard_or_index_costs_its_samples_alone(url: str, tmp_path: Path, lost: str, num_workers: int) -> None:
    """All ten are replaced, counted and listed, equally on any number of ranks."""
    Path(url, lost).unlink()
    listing, gone = tmp_path / "bad.jsonl", {*BAD, *range(40, 50)}
    options: dict[str, Any] = {"shuffle": True, "seed": 4, "num_workers": num_workers}
    loader = open_loader(url, listing, batch_size=12, **options)
    whole = numbers(loader)
    assert [len(step) for step in whole] == [12] * 5
    assert {number for step in whole for number in step} == set(range(NUM_SAMPLES)) - gone
    assert loader.stats()["skipped"] == len(gone)
    assert sum(lost in json.loads(line)["error"] for line in listing.read_text().splitlines()) == 10
    ranks = [numbers(open_loader(url, listing, batch_size=4, rank=r, num_ranks=3, **options)) for r in range(3)]
    assert [list(chain.from_iterable(step)) for step in zip(*ranks, strict=True)] == whole


@pytest.mark.filterwarnings("ignore:samples that cannot be read are replaced")
@pytest.mark.parametrize("lost", ["wdshards-000004.tar", "__dray__/wdshards/index/000004.arrow"])
def test_a_store_is_not_asked_again_and_again_for_what_is_lost(url: str, tmp_path: Path, lost: str) -> None:
    """Its samples fail at once; samples of other shards in the same fetch are read; epochs equal those from a disk."""
    Path(url, lost).unlink()
    store = Store(f"memory://{tmp_path.name}-{lost}")
    for path in Path(url).rglob("*.*"):
        store.put_new(str(path.relative_to(url)), path.read_bytes())
    counted = FaultyStore(store.url)
    snapshot = Snapshot.open(store.url)
    reader = RangeReader(Catalog(replace(snapshot, location=Location(counted, snapshot.layout))))
    run = (35, 10)  # starts with five samples of the shard before
    reader.expect([run, (55, 1)])
    reader.read(np.array([55]), [(55, 1)])
    assert len(reader.read(np.array([35, 39]), [run, run])) == 2
    asked = len(counted.calls)
    for number in range(40, 45):
        with pytest.raises(NotFoundError, match=lost):
            reader.read(np.array([number]), [run])
    assert len(counted.calls) == asked
    epochs = [numbers(open_loader(place, tmp_path / "bad.jsonl", shuffle=True)) for place in (url, store.url)]
    assert epochs[0] == epochs[1]


def test_a_dataset_that_is_gone_is_an_error_all_the_same(url: str, tmp_path: Path) -> None:
    """As after its version was dropped."""
    loader = open_loader(url, tmp_path / "bad.jsonl")
    for path in Path(url).glob("*.tar"):
        path.unlink()
    with pytest.raises(NotFoundError, match=r"the shard is missing: was its version dropped\?"):
        list(loader)
    assert not (tmp_path / "bad.jsonl").exists()


@pytest.mark.filterwarnings("ignore:samples that cannot be read are replaced")
def test_bad_samples_are_found_by_halves(tmp_path: Path) -> None:
    """Good ones are read together: two bad ones among 256 cost about 35 reads."""
    reads: list[int] = []

    def read(positions: NDArray[np.int64]) -> None:
        reads.append(len(positions))
        if {9, 200} & set(positions.tolist()):
            raise DamagedError("bad")

    cursor = Cursor(dataset="", version=1, num_samples=999, shuffle=True, seed=0, epoch=0, lanes=9, block=1)
    found = Skipper(str(tmp_path / "bad.jsonl")).replaced(np.arange(256), cursor, read)
    assert {position: other for position, other in enumerate(found.tolist()) if other != position} == {9: 18, 200: 209}
    assert len(reads) <= 2 * (2 * 8 + 1) + 2


@pytest.mark.filterwarnings("ignore:samples that cannot be read are replaced")
@pytest.mark.parametrize("distance", [9, 18, 1, NEAR - 1, 4096 // PARTS, 4096 * (PARTS - 1) // PARTS])
def test_a_lone_good_sample_is_found_near_by_and_far_away(tmp_path: Path, distance: int) -> None:
    """It is sought by strides of its lane, among its neighbours, and at even distances over the whole epoch."""

    def only(good: int) -> Callable[[NDArray[np.int64]], None]:
        def read(positions: NDArray[np.int64]) -> None:
            if positions.tolist() != [good]:
                raise DamagedError("bad")

        return read

    skipper = Skipper(str(tmp_path / "bad.jsonl"))
    cursor = Cursor(dataset="", version=1, num_samples=4096, shuffle=True, seed=0, epoch=0, lanes=9, block=1)
    good = (300 + distance) % 4096
    assert skipper.replaced(np.array([300]), cursor, only(good)).tolist() == [good]
    if distance not in (9, 18):  # those are strides of a lane
        assert skipper.first_readable(4096, only(distance)) == distance


def test_without_it_they_are_errors(url: str, tmp_path: Path) -> None:
    """They are raised in their turn, after the batches before them."""
    loader = ShardLoader(url, batch_size=4)
    found = []
    with pytest.raises(DamagedError, match=r"wdshards-000000\.tar at offset \d+, key 's07', suffix 'x\.pyd'"):
        found.extend(batch["x.pyd"][:, 0].tolist() for batch in loader)
    assert found == [[0, 1, 2, 3]]
    with pytest.raises(RefusedError, match=r"wdshards-000003\.tar, key 's31'.*Foreign"):
        list(ShardLoader(url, batch_size=1, rank=31, num_ranks=60))


def test_where_nothing_can_be_read_it_gives_up(tmp_path: Path, url: str) -> None:
    """A loader that finds no good sample raises the error of the one that it wanted."""
    loader = open_loader(url, tmp_path / "bad.jsonl", transform=None, parts="x.pyd", limit=1)
    for path in Path(url).glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DamagedError, match="key 's00'"):
        list(loader)


@pytest.mark.filterwarnings("ignore:samples that cannot be read are replaced")
def test_a_rank_without_a_sample_needs_a_good_one_for_its_form(tmp_path: Path, url: str) -> None:
    """In the last step of `keep`, with sample 0 or its whole shard bad, all ranks end together."""
    path = Path(url, "wdshards-000000.tar")
    body = bytearray(path.read_bytes())
    snapshot = Snapshot.open(url)
    body[int(snapshot.index(snapshot.shards[0]).offsets[0, 0])] ^= 1
    path.write_bytes(body)
    with pytest.raises(DamagedError, match="key 's00'"):
        next(iter(ShardLoader(url, batch_size=1)))
    options: Any = {"batch_size": 8, "num_ranks": 2, "limit": 17}
    for spoil in (lambda: None, path.unlink):
        spoil()
        steps = [len(list(open_loader(url, tmp_path / "bad.jsonl", rank=rank, **options))) for rank in range(2)]
        assert steps == [2, 2]


def test_a_place_for_the_list_is_looked_for_at_once(url: str, tmp_path: Path) -> None:
    """The error is raised at once, not at the first bad sample."""
    with pytest.raises(CallError, match="its folder does not exist"):
        open_loader(url, tmp_path / "nowhere" / "bad.jsonl")
