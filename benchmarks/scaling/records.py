"""The records of a version of many shards, what a process holds of it, and the order of its epochs."""

import json
import time
from pathlib import Path

import numpy as np
from measured import Measured, Stopwatch

from dray.loaders.order.cursor import Cursor
from dray.loaders.order.permutation import choose_block
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Layout, Location
from dray.shards.log import Commit, Intent, new_write_id, now, read_commit
from dray.shards.manifest import Accounting, Manifest, Shard, TableChunk
from dray.shards.parsing.records import write_record
from dray.shards.parts import PartForms
from dray.shards.reading.catalog import Catalog
from dray.shards.snapshot import Snapshot
from dray.shards.storage.store import Store

PREFIX, SUFFIX = "train", "tensor.pyd"
SHARD_SAMPLES, SHARD_BYTES = 2_661, 268_400_000
BATCH, LANES, ROUNDS = 8_192, 16_000, 20


def record_steps(num_shards: int, folder: Path) -> list[Measured]:
    """Write the records of a version into a folder."""
    location = _location(folder)
    store, layout = location.store, location.layout
    shards = tuple(_shard(number) for number in range(num_shards))
    watch = Stopwatch()
    watch.step("nothing: the process with its shards")
    intent = write_record(_intent(shards))
    watch.step(f"write the intent: {len(intent) / num_shards:.0f} bytes a shard")
    body = _manifest(shards).to_bytes()
    watch.step(f"write the manifest: {len(body) / num_shards:.0f} bytes a shard")
    commit = _commit(body, num_shards)
    store.put_new(layout.manifest(1, commit.manifest), body)
    store.put_new(layout.commit(1), write_record(commit))
    watch.step(f"write the commit: {len(write_record(commit))} bytes")
    return watch.steps


def open_steps(folder: Path) -> list[Measured]:
    """Open the version as each process of a rank does."""
    location = _location(folder)
    watch = Stopwatch()
    watch.step("nothing: the interpreter with dray")
    catalog = Catalog(Snapshot.load(location, read_commit(location, 1)))
    watch.step(f"open the version of {len(catalog):,} samples")
    return watch.steps


def order_lines(num_samples: int, stored_bytes: int) -> list[str]:
    """Returns how fast steps of an epoch are located, at places all over it, and how large its cursor is."""
    block = choose_block(num_samples, LANES, stored_bytes)
    cursor = Cursor(
        dataset=digest_of(b""),
        version=1,
        num_samples=num_samples,
        shuffle=True,
        seed=1,
        epoch=0,
        lanes=LANES,
        block=block,
        consumed=num_samples // 2,
        steps=num_samples // 2 // LANES,
    )
    order = cursor.order()
    firsts = np.random.default_rng(0).integers(0, num_samples - BATCH, ROUNDS).tolist()
    order.at(np.arange(BATCH))
    started = time.perf_counter()
    for first in firsts:
        order.at(np.arange(first, first + BATCH))
    seconds = (time.perf_counter() - started) / ROUNDS
    return [
        f"{BATCH:,} positions anywhere in an epoch of {num_samples:,}: {seconds * 1e3:.2f} ms, "
        f"{seconds / BATCH * 1e9:.0f} ns each",
        f"cursor: {len(json.dumps(cursor.to_dict()))} bytes",
    ]


def index_bytes(num_samples: int, sample_bytes: int) -> float:
    """Returns the bytes of the index of a shard for each of its samples, of one part and a key of 21 letters."""
    stored = -(-sample_bytes // 512) * 512 + 512
    offsets = (np.arange(num_samples, dtype=np.uint64) * np.uint64(stored) + np.uint64(512)).reshape(-1, 1)
    index = ShardIndex(
        suffixes=(SUFFIX,),
        keys=[f"{number % 1000:03d}/sample-{number:010d}" for number in range(num_samples)],
        offsets=offsets,
        sizes=np.full_like(offsets, sample_bytes),
        xxh3_64=np.ones_like(offsets),
        shard_bytes=num_samples * stored + 1024,
    )
    return len(index.to_bytes()) / num_samples


def _location(folder: Path) -> Location:
    return Location(Store(folder), Layout(PREFIX))


def _shard(number: int) -> Shard:
    digests = [digest_of(f"{what} {number}".encode()) for what in ("sources", "index")]
    return Shard(
        number=number, num_bytes=SHARD_BYTES, num_samples=SHARD_SAMPLES, digest=digests[0], index_digest=digests[1]
    )


def _intent(shards: tuple[Shard, ...]) -> Intent:
    return Intent(
        number=1,
        plan=shards[0].digest,
        base=0,
        first=0,
        count=len(shards),
        shards=tuple(shard.number for shard in shards),
        digests=tuple(shard.digest for shard in shards),
        write_id=new_write_id(),
        created=now(),
    )


def _manifest(shards: tuple[Shard, ...]) -> Manifest:
    num_samples = len(shards) * SHARD_SAMPLES
    sizes = [1_000_000] * (num_samples // 1_000_000) + [num_samples % 1_000_000] * (num_samples % 1_000_000 > 0)
    recipe = {"suffixes": [SUFFIX], "transform": None, "num_shards": None, "shuffle_seed": None}
    return Manifest(
        prefix=PREFIX,
        source_url="s3://bucket/inputs",
        recipe=recipe | {"shard_bytes": 256 << 20, "shard_samples": 100_000},
        intent=1,
        num_samples=num_samples,
        accounting=Accounting(inputs=num_samples, packed=num_samples),
        parts=(PartForms(name=SUFFIX, forms={SUFFIX: num_samples}),),
        shards=shards,
        sources=tuple(
            TableChunk(intent=1, digest=digest_of(b"%d" % number), num_rows=rows) for number, rows in enumerate(sizes)
        ),
    )


def _commit(body: bytes, num_shards: int) -> Commit:
    return Commit(
        number=1,
        operation="build",
        version=1,
        intent=1,
        manifest=digest_of(body),
        num_samples=num_shards * SHARD_SAMPLES,
        num_shards=num_shards,
        num_bytes=num_shards * SHARD_BYTES,
        write_id=new_write_id(),
        created=now(),
    )
