"""Reading from object storage: how many bytes and requests it takes, and what each fault of the way ends in."""

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dray.cluster.seaweed import SeaweedServer
from dray.loaders import ShardLoader, batches
from dray.loaders import loader as loader_module
from dray.loaders.catalog import Catalog
from dray.loaders.fetch import Run
from dray.loaders.ranges import RangeReader
from dray.loaders.rows import ATTEMPTS
from dray.pipelines import pickles_to_tars
from dray.shards import DamagedError, NotFoundError, Snapshot, Store, StoreError
from tests.chaos import Action, Chaos

SUFFIX, NUM_SAMPLES, NUM_BYTES, NUM_RANKS, BATCH = "bin", 256, 100_000, 8, 4
TAR, INDEX = r"\.tar$", "/index/"


@pytest.fixture(scope="module")
def packed(s3: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of one shard of samples of 100 kB, each of bytes of its own."""
    folder, url = tmp_path_factory.mktemp("inputs"), s3.url(f"remote/{uuid.uuid4().hex}")
    names = [f"s{number:04d}" for number in range(NUM_SAMPLES)]
    for number, name in enumerate(names):
        Path(folder, f"{name}.{SUFFIX}").write_bytes(np.random.default_rng(number).bytes(NUM_BYTES))
    pickles_to_tars(
        folder, names, SUFFIX, url, "wdshards", min_num_shards=1, storage_options=s3.storage_options, address="none",
        progress=False,
    )  # fmt: skip
    return url


@pytest.fixture
def chaos(s3: SeaweedServer) -> Iterator[Chaos]:
    """A proxy without rules before the S3 server."""
    with Chaos(int(s3.endpoint.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def options(s3: SeaweedServer, chaos: Chaos) -> dict[str, Any]:
    """The way through the proxy, for a client that fails at once."""
    return s3.storage_options | {"endpoint": chaos.endpoint, "retry_config": {"max_retries": 0}}


@pytest.fixture
def reader(packed: str, options: dict[str, Any], chaos: Chaos) -> RangeReader:
    """Of the shard; the log is empty."""
    found = RangeReader(Catalog(Snapshot.open(packed, storage_options=options)))
    chaos.clear()
    return found


def open_loader(url: str, options: dict[str, Any], **kwargs: Any) -> ShardLoader:
    arguments: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "remainder": "keep", "collate": list}
    return ShardLoader(url, storage_options=options, with_keys=True, **arguments | kwargs)


def keys_of(batches: Iterator[Any] | ShardLoader) -> list[str]:
    return [row["__key__"] for batch in batches for row in batch]


def read_rows(reader: RangeReader, runs: list[Run]) -> list[str]:
    """The keys of all samples of some runs, read at once."""
    samples = [(first + number) % NUM_SAMPLES for first, count in runs for number in range(count)]
    found = reader.read(np.array(samples), [run for run in runs for _ in range(run[1])])
    return [found.key(number) for number in range(len(found))]


def sent(chaos: Chaos) -> int:
    return sum(asked.sent for asked in chaos.log)


# How much is asked


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_ranks_of_one_shard_read_little_more_than_they_get(
    packed: str, options: dict[str, Any], chaos: Chaos, shuffle: bool
) -> None:
    """All 8 together fetch at most 1.05 times the parts' bytes, indexes included, and their stats say what was sent."""
    loaders = [
        open_loader(packed, options, rank=rank, num_ranks=NUM_RANKS, shuffle=shuffle) for rank in range(NUM_RANKS)
    ]
    chaos.clear()
    keys = Counter(key for loader in loaders for key in keys_of(loader))
    assert len(keys) == NUM_SAMPLES
    assert set(keys.values()) == {1}
    assert sent(chaos) <= 1.05 * NUM_SAMPLES * NUM_BYTES
    stats = [loader.stats() for loader in loaders]
    assert sum(stat["bytes"] for stat in stats) == NUM_SAMPLES * NUM_BYTES
    assert sum(stat["bytes_read"] for stat in stats) == sent(chaos)
    assert sum(stat["requests"] for stat in stats) == len(chaos.log)


def test_a_step_in_order_is_one_request(packed: str, options: dict[str, Any], chaos: Chaos) -> None:
    """Each rank reads the neighbours that it takes in a step together, and nothing of another rank's."""
    loader = open_loader(packed, options, rank=1, num_ranks=2, shuffle=False)
    chaos.clear()
    assert len(keys_of(loader)) == NUM_SAMPLES // 2
    tars = [asked for asked in chaos.log if asked.range]
    assert len(tars) == NUM_SAMPLES // 2 // BATCH
    assert sum(asked.sent for asked in tars) <= (NUM_BYTES + 1024) * NUM_SAMPLES // 2


def test_the_index_is_read_once_by_all_threads(packed: str, options: dict[str, Any], chaos: Chaos) -> None:
    """The first runs of many lanes are fetched at the same time, and need the same index."""
    loader = open_loader(packed, options)
    chaos.clear()
    chaos.rule("latency", path=INDEX, seconds=0.2)
    keys_of(loader)
    assert sum(INDEX in asked.path for asked in chaos.log) == 1


def test_a_run_is_fetched_once_whatever_is_expected_meanwhile(reader: RangeReader, chaos: Chaos) -> None:
    """Expected again and again and read sample by sample; then it is forgotten."""
    runs = [(0, 4), (8, 4), (16, 4)]
    for number in range(4):
        reader.expect(run for run in runs for _ in range(4 - number))
        reader.read(np.array([first + number for first, _ in runs]), runs)
    assert len(chaos.log) == 1 + len(runs)  # the index
    assert not reader._runs


def test_memory_is_bounded(packed: str, options: dict[str, Any], chaos: Chaos) -> None:
    """Of runs to come, and of runs that were begun and are expected no more, a reader holds what it may."""
    reader = RangeReader(Catalog(Snapshot.open(packed, storage_options=options)), ahead_bytes=10 * NUM_BYTES)
    runs = [(first, 2) for first in range(0, 100, 4)]
    reader.expect(runs)
    assert list(reader._runs) == runs[:4]  # headers count as well
    for run in runs:
        reader.expect([run])
        reader.read(np.array(run[:1]), [run])
    reader.expect([])
    assert list(reader._runs) == runs[-4:]


def test_a_run_goes_over_the_end_of_the_epoch(reader: RangeReader) -> None:
    """From the last sample to the first, beside one that follows it: each sample is where it should be."""
    assert read_rows(reader, [(254, 3), (1, 2)]) == ["s0254", "s0255", "s0000", "s0001", "s0002"]


def test_a_resume_reads_no_more_than_a_start(
    packed: str, options: dict[str, Any], chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its first batch alone, from 90 % of the epoch on: as many requests, as many bytes."""
    monkeypatch.setattr(batches, "LOOK_AHEAD", 0)
    monkeypatch.setattr(loader_module, "PREFETCH", 1)
    counts = []
    for steps in (0, NUM_SAMPLES * 9 // 10 // BATCH):
        loader = open_loader(packed, options)
        loader.load_state_dict(loader.state_dict() | {"consumed": steps * BATCH, "steps": steps})
        chaos.clear()
        next(iter(loader))
        counts.append((sum(asked.sent > 0 for asked in chaos.log), sent(chaos)))
    assert counts[1][0] <= counts[0][0]
    assert counts[1][1] <= counts[0][1]


# What faults end in


@pytest.mark.parametrize(("fault", "at"), [("status", 0), ("lost_reply", 0), ("reset_body", 1000)])
def test_a_passing_fault_costs_no_sample(reader: RangeReader, chaos: Chaos, fault: Action, at: int) -> None:
    """The request is made again, and the samples are the right ones."""
    rule = chaos.rule(fault, path=TAR, times=1, code=503, at=at)
    assert read_rows(reader, [(0, 4)]) == ["s0000", "s0001", "s0002", "s0003"]
    assert rule.hits == 1


def test_a_lasting_fault_names_the_shard(reader: RangeReader, chaos: Chaos, packed: str) -> None:
    """After so many attempts; and once it is over the same reader goes on."""
    rule = chaos.rule("status", method="GET", path=TAR, code=503)
    with pytest.raises(StoreError, match=rf"{packed}/wdshards-000000\.tar.*'s0004' to 's0007'"):
        read_rows(reader, [(4, 4)])
    assert rule.hits == ATTEMPTS
    chaos.clear()
    assert read_rows(reader, [(4, 4)]) == ["s0004", "s0005", "s0006", "s0007"]


def test_a_lasting_fault_is_raised_by_the_loader(packed: str, options: dict[str, Any], chaos: Chaos) -> None:
    """A shard that cannot be read ends the epoch with an error, not early; the next try gives every sample."""
    loader = open_loader(packed, options)
    chaos.rule("status", path=TAR, code=503, after=40)
    with pytest.raises(StoreError, match=r"wdshards-000000\.tar"):
        keys_of(loader)
    chaos.clear()
    loader.set_epoch(0)
    assert len(set(keys_of(loader))) == NUM_SAMPLES


def test_a_flipped_byte_is_named(reader: RangeReader, chaos: Chaos) -> None:
    """Shard, key, suffix and offset; nothing of its run is handed on."""
    chaos.rule("flip", path=TAR, at=NUM_BYTES + 5000)
    with pytest.raises(DamagedError, match=r"wdshards-000000\.tar: part 'bin' of key 's0009' at offset \d+"):
        read_rows(reader, [(8, 4)])


def test_a_short_answer_is_an_error_that_names_the_shard(reader: RangeReader, chaos: Chaos) -> None:
    """As if the object ended there: never fewer samples."""
    chaos.rule("short_length", path=TAR, at=NUM_BYTES)
    with pytest.raises(DamagedError, match=r"wdshards-000000\.tar.*'s0000' to 's0003'"):
        read_rows(reader, [(0, 4)])


@pytest.mark.parametrize(("size", "message"), [(0, "cannot read"), (5 * NUM_BYTES, "was cut short or replaced")])
def test_a_shard_that_was_cut_or_deleted_is_named(packed: str, s3: SeaweedServer, size: int, message: str) -> None:
    """In a copy of the dataset of which a shard is half or gone."""
    url, name = s3.url(f"remote/{uuid.uuid4().hex}"), "wdshards-000000.tar"
    source, copy = Store(packed, s3.storage_options), Store(url, s3.storage_options)
    for folder in ("_dray/wdshards/commits", "_dray/wdshards/manifests", "_dray/wdshards/index"):
        for info in source.list_folder(folder):
            copy.put_new(info.name, source.get(info.name))
    if size:
        copy.put_new(name, source.get(name)[:size])
    reader = RangeReader(Catalog(Snapshot.open(url, storage_options=s3.storage_options)))
    expected = DamagedError if size else NotFoundError
    with pytest.raises(expected, match=rf"{message}.*'s0003' to 's0006'"):
        read_rows(reader, [(3, 4)])
