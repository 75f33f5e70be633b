"""Resources of `ShardLoader`: little for a dataset of any size, and no more after many epochs than after a few."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Layout, Location
from dray.shards.log import Commit, create_commit, new_write_id, now, put_content
from dray.shards.manifest import Accounting, Manifest, Shard, TableChunk
from dray.shards.parts import PartForms
from dray.shards.storage.store import Store
from tests.support.datasets import number_as_text, pack, recipe_of, tensor_of

NUM_SHARDS, PER_SHARD = 10_000, 10_000
PART_BYTES, STRIDE = 4096, 4096 + 512


def run(program: str, *args: object, timeout_s: float = 120) -> Any:
    """Runs a program in a process of its own; returns the last line of its output, read as JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # so that threads do not scatter it
    command = [sys.executable, "-c", program, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real snapshot of 100 M samples of 4 kB, whose shards are all links to one sparse tar of zeros."""
    folder, layout = tmp_path_factory.mktemp("huge"), Layout("wdshards")
    (folder / layout.index(0)).parent.mkdir(parents=True)
    tar, index = folder / "tar", folder / "index"
    with tar.open("wb") as file:
        file.truncate(PER_SHARD * STRIDE + 1024)
    body = ShardIndex(
        keys=[f"s{number:07d}" for number in range(PER_SHARD)],
        suffixes=("bin",),
        offsets=(np.arange(PER_SHARD, dtype=np.uint64) * STRIDE + 512).reshape(-1, 1),
        sizes=np.full((PER_SHARD, 1), PART_BYTES, np.uint64),
        xxh3_64=np.full((PER_SHARD, 1), xxh3_64_intdigest(bytes(PART_BYTES)), np.uint64),
        shard_bytes=tar.stat().st_size,
    ).to_bytes()
    index.write_bytes(body)
    for number in range(NUM_SHARDS):
        (folder / layout.shard(number)).hardlink_to(tar)
        (folder / layout.index(number)).hardlink_to(index)
    commit_shards(folder, layout, tar.stat().st_size, digest_of(body))
    return folder


def commit_shards(folder: Path, layout: Layout, shard_bytes: int, index_digest: str) -> None:
    """Commit version 1 of a dataset whose shards exist already."""
    store, num_samples = Store(folder), NUM_SHARDS * PER_SHARD
    shards = tuple(
        Shard(
            number=number, num_bytes=shard_bytes, num_samples=PER_SHARD, digest="ab" * 16, index_digest=index_digest
        )
        for number in range(NUM_SHARDS)
    )  # fmt: skip
    manifest = Manifest(
        prefix="wdshards",
        source_url="file:///in",
        recipe=recipe_of("bin"),
        intent=1,
        num_samples=num_samples,
        accounting=Accounting(inputs=num_samples, packed=num_samples),
        parts=(PartForms(name="bin", forms={"bin": num_samples}),),
        shards=shards,
        sources=tuple(TableChunk(intent=1, digest="cd" * 16, num_rows=1_000_000) for _ in range(num_samples // 10**6)),
    ).to_bytes()
    put_content(store, layout.manifest(1, digest_of(manifest)), manifest)
    commit = Commit(
        number=1, operation="build", version=1, intent=1, manifest=digest_of(manifest), write_id=new_write_id(),
        created=now(), num_samples=num_samples, num_shards=NUM_SHARDS, num_bytes=NUM_SHARDS * shard_bytes,
    )  # fmt: skip
    create_commit(Location(store, layout), commit)


OPEN = """
import json, resource, sys, time
from itertools import islice
from dray.loaders import ShardLoader

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def num_read():
    return int(open("/proc/self/io").readline().split()[1])

before, read, started = used(), num_read(), time.perf_counter()
loader = ShardLoader(sys.argv[1], batch_size=64, shuffle=True, rank=3, num_ranks=16, with_keys=True)
opened = {"opened_s": time.perf_counter() - started, "opened_mb_read": (num_read() - read) / 1e6}
if sys.argv[2] != "0":
    loader.load_state_dict({**loader.state_dict(), "consumed": int(sys.argv[2]) * 1024, "steps": int(sys.argv[2])})
read, started = num_read(), time.perf_counter()
batches = iter(loader)
assert {len(part) for part in next(batches)["bin"]} == {4096}
first = {"first_batch_s": time.perf_counter() - started, "first_batch_mb_read": (num_read() - read) / 1e6}
grown = {"grown_mib": used() - before}
assert len(list(islice(batches, 100))) == 100
print(json.dumps({**opened, **first, **grown, "steps": len(loader), "grown_mib_after_100_steps": used() - before}))
"""


@pytest.mark.parametrize("step", [0, 90_000])
def test_a_hundred_million_samples_take_little(huge: Path, step: int) -> None:
    """In 10,000 shards: opening reads the manifest and one index, the first batch the indexes of its lanes' shards."""
    manifest, index = 2.5, 0.45  # MB
    found = run(OPEN, huge, step)
    assert found["steps"] == 100_000_000 // 1024
    assert found["grown_mib"] < 200
    assert found["opened_mb_read"] < manifest + 3 * index
    assert found["first_batch_mb_read"] < (64 + 20) * index  # its batches look ahead


SOAK = """
import gc, json, os, sys
from itertools import islice
from pathlib import Path
from dray.loaders import ShardLoader

url, num_workers, batch_size, num_batches = sys.argv[1], *map(int, sys.argv[2:])

def measure():
    for batch in loader:  # a whole epoch, after which no worker is sending anything
        pass
    del batch
    gc.collect()
    children = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    of = [Path("/proc", process) for process in [str(os.getpid()), *children]]
    return {
        "mib": sum(int((process / "statm").read_text().split()[1]) for process in of) * os.sysconf("SC_PAGESIZE") >> 20,
        "files": sum(len(list((process / "fd").iterdir())) for process in of),
        "threads": sum(len(list((process / "task").iterdir())) for process in of),
        "processes": len(of),
    }

loader = ShardLoader(url, batch_size=batch_size, shuffle=True, num_workers=num_workers, remainder="keep")
taken, seen = 0, []
while taken < num_batches:
    batches = loader if taken % 7 else islice(loader, 50)  # some epochs are left in the middle
    for batch in batches:
        taken += 1
    loader.state_dict()
    if len(seen) == 0 and taken > num_batches // 5:
        seen.append(measure())
    del batch, batches
seen.append(measure())
print(json.dumps({"taken": taken, "epochs": loader.state_dict()["epoch"], "warm": seen[0], "end": seen[1]}))
"""


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("num_workers", "batch_size", "num_batches"), [(0, 1, 200_000), (2, 10, 5_000)])
def test_many_batches_take_no_more_than_a_few(
    tmp_path: Path, num_workers: int, batch_size: int, num_batches: int
) -> None:
    """In all processes, memory, files and threads do not grow per epoch after the first fifth of the batches."""
    url = pack(tmp_path, 1001, 7, parts={"x.pyd": tensor_of(16), "cls": number_as_text})
    found = run(SOAK, url, num_workers, batch_size, num_batches, timeout_s=550)
    assert found["taken"] >= num_batches
    assert found["epochs"] > 40
    grown = {name: found["end"][name] - found["warm"][name] for name in found["end"]}
    assert grown["mib"] < 16
    assert grown["processes"] == 0
    assert grown["threads"] <= 4  # workers start theirs when they first send
    assert grown["files"] <= 8  # each buffer has one
