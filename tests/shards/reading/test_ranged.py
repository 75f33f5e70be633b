"""Reading from object storage: the number of bytes and requests, and the result of each network fault."""

# Long: requests, bytes and faults are counted on the same datasets behind the same proxy.

import re
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import ShardLoader, shard_loader
from dray.loaders.order.cursor import Cursor
from dray.loaders.order.passes import Pass
from dray.loaders.order.shares import Remainder, Rest
from dray.shards import DamagedError, NotFoundError, Snapshot, Store, StoreError
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.node_cache import BlockStore, Kept
from dray.shards.reading.ranged import RangeReader
from dray.shards.reading.rows import ATTEMPTS
from dray.shards.reading.samples import Run
from tests.support import datasets
from tests.support.chaos import Action, Chaos

SUFFIX, NUM_SAMPLES, NUM_BYTES, NUM_RANKS, BATCH = "bin", 256, 100_000, 8, 4
NUM_SHORT, SHORT_BYTES = 1600, 24 << 10  # a dataset with several samples in each run
TAR, INDEX = r"\.tar$", "/index/"


def pack(s3: SeaweedServer, folder: Path, num_samples: int, num_bytes: int, seed: int = 0) -> str:
    """Returns the URL of one shard of samples with different bytes."""
    parts = {SUFFIX: lambda number: np.random.default_rng([seed, number]).bytes(num_bytes)}
    url, options = s3.url(f"remote/{uuid.uuid4().hex}"), s3.storage_options
    return datasets.pack(folder, num_samples, 1, url, parts=parts, storage_options=options, address="none")


@pytest.fixture(scope="module")
def packed(s3: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of one shard of samples of 100 kB with one sample in each run."""
    return pack(s3, tmp_path_factory.mktemp("inputs"), NUM_SAMPLES, NUM_BYTES)


@pytest.fixture(scope="module")
def short(s3: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of one shard of samples of 24 kB with several samples in each run."""
    return pack(s3, tmp_path_factory.mktemp("inputs"), NUM_SHORT, SHORT_BYTES)


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty temporary folder, so that no block store of another test is found."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def options(s3: SeaweedServer, chaos: Chaos) -> dict[str, Any]:
    """Options for the proxy and for a client that does not retry."""
    return s3.storage_options | {"endpoint": chaos.endpoint, "retry_config": {"max_retries": 0}}


@pytest.fixture
def reader(packed: str, options: dict[str, Any], chaos: Chaos) -> RangeReader:
    """A reader of the shard; the log of the proxy is empty."""
    found = RangeReader(Catalog(Snapshot.open(packed, storage_options=options)))
    chaos.clear()
    return found


def open_loader(url: str, options: dict[str, Any], **kwargs: Any) -> ShardLoader:
    arguments: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "remainder": "keep", "collate": list}
    return ShardLoader(url, storage_options=options, with_keys=True, **arguments | kwargs)


def keys_of(batches: Iterator[Any] | ShardLoader) -> list[str]:
    return [row["__key__"] for batch in batches for row in batch]


def read_rows(reader: RangeReader, runs: list[Run]) -> list[str]:
    """Returns the keys of all samples of the runs, read at once."""
    samples = [(first + number) % NUM_SAMPLES for first, count in runs for number in range(count)]
    found = reader.read(np.array(samples), [run for run in runs for _ in range(run[1])])
    return [found.key(number) for number in range(len(found))]


def sent(chaos: Chaos) -> int:
    return sum(asked.sent for asked in chaos.log)


# What the processes of a node share


@pytest.mark.parametrize(("counts", "is_kept"), [([1, 1], False), ([4, 4], True), ([1, 4], True)])
def test_only_runs_of_several_samples_are_kept_for_others(
    packed: str, options: dict[str, Any], tmp_path: Path, counts: list[int], *, is_kept: bool
) -> None:
    """Workers share the samples of a run; only one worker reads a run of one sample."""
    blocks = BlockStore(tmp_path / "blocks", 64 << 20, Kept.RUNS)
    reader = RangeReader(Catalog(Snapshot.open(packed, storage_options=options)), blocks=blocks)
    runs = list(zip(accumulate(counts, initial=8), counts, strict=False))
    assert read_rows(reader, runs) == [f"s{number:04d}" for number in range(8, 8 + sum(counts))]
    cells = [path for path in blocks.folder.glob("*") if path.stat().st_blocks * 512 > NUM_BYTES]
    assert bool(cells) == is_kept


# Bytes and requests


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_ranks_of_one_shard_read_little_more_than_they_get(
    packed: str, options: dict[str, Any], chaos: Chaos, shuffle: bool
) -> None:
    """All 8 together fetch at most 1.05 times the bytes of the parts, indexes included, and their stats agree."""
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
    """Each rank reads the samples of a step in one request, and none of another rank."""
    loader = open_loader(packed, options, rank=1, num_ranks=2, shuffle=False)
    chaos.clear()
    assert len(keys_of(loader)) == NUM_SAMPLES // 2
    tars = [asked for asked in chaos.log if asked.range]
    assert len(tars) == NUM_SAMPLES // 2 // BATCH
    assert sum(asked.sent for asked in tars) <= (NUM_BYTES + 1024) * NUM_SAMPLES // 2


def test_the_index_is_read_once_by_all_threads(packed: str, options: dict[str, Any], chaos: Chaos) -> None:
    """The first runs of many lanes are fetched concurrently and need the same index."""
    loader = open_loader(packed, options)
    chaos.clear()
    chaos.rule("latency", path=INDEX, seconds=0.2)
    keys_of(loader)
    assert sum(INDEX in asked.path for asked in chaos.log) == 1


def test_a_run_is_fetched_once_whatever_is_expected_meanwhile(reader: RangeReader, chaos: Chaos) -> None:
    """A run that is expected repeatedly and read sample by sample is fetched once, then dropped."""
    runs = [(0, 4), (8, 4), (16, 4)]
    reader.expect(runs)
    reader.read(np.array([100]), [(100, 1)])
    for number in range(4):
        reader.expect(run for run in runs for _ in range(4 - number))
        reader.read(np.array([first + number for first, _ in runs]), runs)
    assert len(chaos.log) == 2 + len(runs)  # the index and the first sample
    assert not reader._runs


def test_what_was_read_before_its_run_is_not_read_again(reader: RangeReader, chaos: Chaos) -> None:
    """The first samples are fetched alone, then the rest of their runs."""
    runs = [(0, 4), (8, 4)]
    for number in range(4):
        reader.expect(runs)
        reader.read(np.array([first + number for first, _ in runs]), runs)
    tars = [asked for asked in chaos.log if asked.range]
    assert len(tars) == 2 * len(runs)
    assert sum(asked.sent for asked in tars) <= 8 * (NUM_BYTES + 1024)
    assert not reader._runs


def test_nothing_is_fetched_ahead_of_the_first_batch(reader: RangeReader, chaos: Chaos) -> None:
    """Prefetching would only delay the first batch."""
    reader.expect([(0, 4), (8, 4), (16, 4)])
    reader.read(np.array([1, 9]), [(0, 4), (8, 4)])
    assert sent(chaos) <= 3 * NUM_BYTES  # includes the index
    assert len(chaos.log) == 3


def test_memory_is_bounded(packed: str, options: dict[str, Any], chaos: Chaos) -> None:
    """Prefetched runs, and started runs that are no longer expected, stay within `ahead_bytes` each."""
    reader = RangeReader(Catalog(Snapshot.open(packed, storage_options=options)), ahead_bytes=10 * NUM_BYTES)
    runs = [(first, 2) for first in range(0, 100, 4)]
    reader.expect(runs)
    for run in runs:
        reader.read(np.array(run[:1]), [run])
        assert reader._ahead <= 10 * NUM_BYTES
    assert list(reader._runs) == runs  # started and still expected
    reader.expect([])
    assert list(reader._runs) == runs[-4:]


def test_memory_of_a_pass_is_one_run_a_lane_and_what_is_ahead(
    short: str, options: dict[str, Any], chaos: Chaos
) -> None:
    """The bound holds at every step of a pass with several samples in each run."""
    start, ahead_bytes = open_loader(short, options).state_dict(), 1 << 20
    cursor = Cursor.from_dict(start)
    rest = Rest(num_samples=NUM_SHORT, consumed=0, batch=BATCH, num_ranks=1, remainder=Remainder.KEEP)
    reader = RangeReader(Catalog(Snapshot.open(short, storage_options=options)), ahead_bytes=ahead_bytes)
    steps = list(Pass(cursor, rest, 0).steps())
    for number, step in enumerate(steps):
        reader.expect(run for expected in steps[number : number + 32] for run in expected.runs)
        reader.read(step.samples, step.runs)
        assert sum(map(reader._size, reader._runs)) <= cursor.lanes * reader._size((0, cursor.block)) + ahead_bytes
    assert not reader._runs


def test_a_pass_that_was_left_takes_no_room_of_the_next(packed: str, options: dict[str, Any], chaos: Chaos) -> None:
    """Its prefetched runs are dropped when other runs are expected, and those are prefetched."""
    reader = RangeReader(Catalog(Snapshot.open(packed, storage_options=options)), ahead_bytes=10 * NUM_BYTES)
    for start in (0, 100):
        runs = [(first, 2) for first in range(start, start + 100, 4)]
        reader.expect(runs)
        for _ in range(2):
            reader.read(np.array([200]), [(200, 1)])
        assert list(reader._runs) == runs[:4]


def test_a_run_goes_over_the_end_of_the_epoch(reader: RangeReader) -> None:
    """A run that wraps around and the run after it return the right samples."""
    assert read_rows(reader, [(254, 3), (1, 2)]) == ["s0254", "s0255", "s0000", "s0001", "s0002"]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("dataset", ["packed", "short"])
def test_a_resume_reads_no_more_than_a_start(
    request: pytest.FixtureRequest, options: dict[str, Any], chaos: Chaos, monkeypatch: pytest.MonkeyPatch,
    dataset: str, shuffle: bool,
) -> None:  # fmt: skip
    """The first batch at 90 % of the epoch takes no more requests and bytes than at its start, also inside runs."""
    monkeypatch.setattr(shard_loader, "GROUPS_AHEAD", 1)
    url, counts = request.getfixturevalue(dataset), []
    for part in (0, 0.9):
        loader = open_loader(url, options, shuffle=shuffle)
        state = loader.state_dict()
        assert (state["block"] > 1) == (dataset == "short")
        steps = int(len(loader) * part)
        loader.load_state_dict(state | {"consumed": steps * BATCH, "steps": steps})
        chaos.clear()
        next(iter(loader))
        counts.append((len(chaos.log), sent(chaos)))
    assert counts[1][0] <= counts[0][0] <= BATCH + 1
    assert counts[1][1] <= counts[0][1]


# What the processes of a node share


@pytest.mark.parametrize(
    ("num_workers", "shuffle"),
    [
        (2, True),
        pytest.param(4, True, marks=pytest.mark.heavy),
        pytest.param(4, False, marks=pytest.mark.heavy),
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_read_little_more_than_they_get(
    short: str, options: dict[str, Any], chaos: Chaos, num_workers: int, shuffle: bool
) -> None:
    """Workers share runs, fetch each run and the index once, and their stats agree."""
    loader = open_loader(short, options, num_workers=num_workers, shuffle=shuffle)
    chaos.clear()
    assert len(set(keys_of(loader))) == NUM_SHORT
    assert sent(chaos) <= 1.05 * NUM_SHORT * SHORT_BYTES
    assert sum(INDEX in asked.path for asked in chaos.log) == 1
    stats = loader.stats()
    assert (stats["samples"], stats["requests"], stats["bytes_read"]) == (NUM_SHORT, len(chaos.log), sent(chaos))


def test_the_ranks_of_a_node_read_each_index_once(short: str, options: dict[str, Any], chaos: Chaos) -> None:
    """Nothing else is read twice either, and nothing is stored that is not shared."""
    loaders = [open_loader(short, options, batch_size=1, rank=rank, num_ranks=NUM_RANKS) for rank in range(NUM_RANKS)]
    assert loaders[0].state_dict()["block"] > 1
    chaos.clear()
    keys = Counter(key for loader in loaders for key in keys_of(loader))
    assert set(keys.values()) == {1}
    assert len(keys) == NUM_SHORT
    assert sum(INDEX in asked.path for asked in chaos.log) == 1
    assert sent(chaos) <= 1.05 * NUM_SHORT * SHORT_BYTES
    stats = [loader.stats() for loader in loaders]
    assert sum(stat["bytes_read"] for stat in stats) == sent(chaos)
    assert sum(stat["requests"] for stat in stats) == len(chaos.log)


@pytest.mark.parametrize("dataset", ["packed", "short"])
def test_a_cache_serves_later_epochs_and_restarts(
    request: pytest.FixtureRequest, options: dict[str, Any], chaos: Chaos, tmp_path: Path, dataset: str
) -> None:
    """Another epoch, seed, order or batch size reads everything from the disk."""
    url, cache = request.getfixturevalue(dataset), tmp_path / "cache"
    loader = open_loader(url, options, cache_dir=cache)
    first = keys_of(loader)
    chaos.clear()
    assert Counter(keys_of(loader)) == Counter(first)
    assert not chaos.log
    for arguments in ({"seed": 1}, {"shuffle": False}, {"batch_size": 3}):
        other = open_loader(url, options, cache_dir=cache, **arguments)
        chaos.clear()
        assert Counter(keys_of(other)) == Counter(first)
        assert not chaos.log
        assert other.stats()["cache_hits"] == len(first)
        assert other.stats()["requests"] == other.stats()["bytes_read"] == 0


def test_two_jobs_read_everything_once(short: str, options: dict[str, Any], chaos: Chaos, tmp_path: Path) -> None:
    """Two concurrent loaders with one cache fetch everything once."""
    loaders = [open_loader(short, options, cache_dir=tmp_path / "cache") for _ in range(2)]
    found: list[list[str]] = []
    chaos.clear()
    threads = [threading.Thread(target=lambda loader=loader: found.append(keys_of(loader))) for loader in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(set(found[0])) == NUM_SHORT
    assert sent(chaos) <= 1.05 * NUM_SHORT * SHORT_BYTES


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: bytes(len(data)), bytes.swapcase])
def test_a_spoiled_cache_is_not_believed(
    packed: str, options: dict[str, Any], tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    """Truncated, zeroed or changed files, indexes included, are fetched again, and every byte is correct."""
    expected = [row[SUFFIX] for batch in open_loader(packed, options, limit=64) for row in batch]
    arguments = {"cache_dir": tmp_path / "cache", "limit": 64}
    keys_of(open_loader(packed, options, **arguments))
    for path in (tmp_path / "cache" / "dray-blocks").glob("*.*"):
        path.write_bytes(spoil(path.read_bytes()))
    for _ in range(2):
        loader = open_loader(packed, options, **arguments)
        assert [row[SUFFIX] for batch in loader for row in batch] == expected
    assert loader.stats()["requests"] == 0


def test_shards_of_one_name_do_not_mix(
    packed: str, s3: SeaweedServer, options: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two datasets with equal keys and sizes but different bytes share one cache."""
    other = pack(s3, tmp_path_factory.mktemp("inputs"), 16, NUM_BYTES, seed=1)
    for url, seed in ((packed, 0), (other, 1)):
        loader = open_loader(url, options, cache_dir=tmp_path / "cache", shuffle=False, limit=16)
        rows = [row for batch in loader for row in batch]
        for row in rows:
            assert row[SUFFIX] == np.random.default_rng([seed, int(row["__key__"][1:])]).bytes(NUM_BYTES)


def test_a_cache_too_small_costs_only_requests(packed: str, options: dict[str, Any], tmp_path: Path) -> None:
    """With a cache of 10 MB for 25 MB, every epoch still has every sample."""
    loader = open_loader(packed, options, cache_dir=tmp_path / "cache", cache_bytes=10_000_000)
    for _ in range(2):
        assert len(set(keys_of(loader))) == NUM_SAMPLES
    files = (tmp_path / "cache" / "dray-blocks").iterdir()
    assert sum(path.stat().st_blocks * 512 for path in files) <= 10_100_000


def test_without_a_place_for_it_there_is_no_cache(packed: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The loader warns once and returns every sample."""
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="goes on without this cache") as warned:
        assert len(set(keys_of(open_loader(packed, options, cache_dir=tmp_path / "file")))) == NUM_SAMPLES
    assert len(warned) == 1


# Faults


@pytest.mark.parametrize(("fault", "at"), [("status", 0), ("lost_reply", 0), ("reset_body", 1000)])
def test_a_passing_fault_costs_no_sample(reader: RangeReader, chaos: Chaos, fault: Action, at: int) -> None:
    """The request is retried, and the samples are correct."""
    rule = chaos.rule(fault, path=TAR, times=1, code=503, at=at)
    assert read_rows(reader, [(0, 4)]) == ["s0000", "s0001", "s0002", "s0003"]
    assert rule.hits == 1
    assert reader.stats.retries == 1


def test_a_lasting_fault_names_the_shard(reader: RangeReader, chaos: Chaos, packed: str) -> None:
    """The error comes after all attempts; the same reader works again after the fault."""
    rule = chaos.rule("status", method="GET", path=TAR, code=503)
    with pytest.raises(StoreError, match=rf"{packed}/wdshards-000000\.tar.*'s0004' to 's0007'"):
        read_rows(reader, [(4, 4)])
    assert rule.hits == ATTEMPTS
    chaos.clear()
    assert read_rows(reader, [(4, 4)]) == ["s0004", "s0005", "s0006", "s0007"]


def test_a_lasting_fault_is_raised_by_the_loader(packed: str, options: dict[str, Any], chaos: Chaos) -> None:
    """An unreadable shard raises an error instead of ending the epoch; the next attempt returns every sample."""
    loader = open_loader(packed, options)
    chaos.rule("status", path=TAR, code=503, after=40)
    with pytest.raises(StoreError, match=r"wdshards-000000\.tar"):
        keys_of(loader)
    chaos.clear()
    loader.set_epoch(0)
    assert len(set(keys_of(loader))) == NUM_SAMPLES


def test_a_byte_that_was_flipped_on_the_way_is_read_again(reader: RangeReader, chaos: Chaos) -> None:
    """A sample that does not match its checksum is requested once more, alone."""
    rule = chaos.rule("flip", path=TAR, at=NUM_BYTES + 5000, times=1)
    assert read_rows(reader, [(8, 4)]) == ["s0008", "s0009", "s0010", "s0011"]
    assert rule.hits == 1


def test_a_short_answer_is_an_error_that_names_the_shard(reader: RangeReader, chaos: Chaos) -> None:
    """A truncated object raises an error; samples are never left out."""
    chaos.rule("short_length", path=TAR, at=NUM_BYTES // 2)
    with pytest.raises(DamagedError, match=r"wdshards-000000\.tar.*'s0000'"):
        read_rows(reader, [(0, 4)])


def changed_copy(url: str, s3: SeaweedServer, change: Callable[[bytearray], bytes | None]) -> RangeReader:
    """Returns a reader of a copy of a dataset with a changed or deleted shard."""
    source, copy = Store(url, s3.storage_options), Store(s3.url(f"remote/{uuid.uuid4().hex}"), s3.storage_options)
    for folder in ("__dray__/wdshards/commits", "__dray__/wdshards/manifests", "__dray__/wdshards/index"):
        for info in source.list_folder(folder):
            copy.put_new(info.name, source.get(info.name))
    changed = change(bytearray(source.get("wdshards-000000.tar")))
    if changed is not None:
        copy.put_new("wdshards-000000.tar", changed)
    return RangeReader(Catalog(Snapshot.open(copy.url, storage_options=s3.storage_options)))


def flipped(tar: bytearray) -> bytes:
    tar[9 * (NUM_BYTES + 864) + 5000] ^= 1  # a member takes 100,864 bytes: this byte belongs to s0009
    return bytes(tar)


@pytest.mark.parametrize(
    ("change", "bad", "message"),
    [
        (flipped, ["s0009"], r"tar at offset \d+, key '(s\d+)', suffix 'bin': not the bytes"),
        (lambda tar: bytes(tar[: 10 * (NUM_BYTES + 864)]), ["s0010", "s0011"], r"was cut short.*'(s\d+)'"),
    ],
)
def test_damage_spoils_only_its_own_sample(
    packed: str, s3: SeaweedServer, change: Callable[[bytearray], bytes], bad: list[str], message: str
) -> None:
    """The other samples of a prefetched run can be read; each read of a damaged one names it."""
    reader, run = changed_copy(packed, s3, change), (8, 4)
    reader.expect([run])
    reader.read(np.array([0]), [(0, 1)])
    reader.expect([run])
    found = []
    for number in (9, 10, 11, 8, 9, 11):
        try:
            found.append(reader.read(np.array([number]), [run]).key(0))
        except DamagedError as exc:
            found.append(re.sub(rf".*{message}.*", r"damaged \1", str(exc)))
    expected = [f"s{number:04d}" for number in (9, 10, 11, 8, 9, 11)]
    assert found == [f"damaged {key}" if key in bad else key for key in expected]


def test_damage_is_named_in_a_step(packed: str, s3: SeaweedServer) -> None:
    """The error names shard, key, part and offset of the first damaged sample; the step can be read without it."""
    reader, run = changed_copy(packed, s3, flipped), (8, 4)
    with pytest.raises(DamagedError, match=r"wdshards-000000\.tar at offset \d+, key 's0009', suffix 'bin'"):
        reader.read(np.arange(8, 12), [run] * 4)
    assert len(reader.read(np.array([8, 10, 11]), [run] * 3)) == 3


def test_a_shard_that_was_deleted_is_named(packed: str, s3: SeaweedServer) -> None:
    """The error names the shard and the first requested key."""
    with pytest.raises(NotFoundError, match=r"cannot read.*wdshards-000000\.tar.*key 's0003'"):
        read_rows(changed_copy(packed, s3, lambda _: None), [(3, 4)])
