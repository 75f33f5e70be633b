"""Planning simulated sources, step by step: the time of each step, and the memory of the process meanwhile."""

import numpy as np
from measured import Measured, Stopwatch
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.building.tables import source_table, table_chunks
from dray.pipelines.inputs.scan import scan
from dray.pipelines.inputs.sources import Sources, check_sample_names, find_sources
from dray.pipelines.planning.plan import Last, Plan, plan, plan_digest
from dray.pipelines.planning.recipe import Recipe
from dray.shards.manifest import Shard
from dray.shards.storage.store import Store

SUFFIX = "tensor.pyd"
SAMPLE_BYTES = 100_000
NUM_FOLDERS = 1000


def plan_steps(num_samples: int, partitions: int = 1) -> list[Measured]:
    """Plan a first build, make its table, plan a build without changes and one with a changed sample in a thousand.

    Args:
        num_samples: Number of samples, of one file each.
        partitions: Number of partitions by the hash of the key; only the samples of the first are planned.
    """
    watch = Stopwatch()
    watch.step("nothing: the interpreter with dray")
    names = [name for name in map(name_of, range(num_samples)) if is_in_first(name, partitions)]
    sources = simulated(names)
    watch.step("names and fingerprints")
    check_sample_names(names)
    watch.step("check the names")
    recipe = Recipe(suffixes=(SUFFIX,))
    first = plan(sources, recipe)
    plan_digest(first.slots)
    watch.step(f"plan a first build: {len(first.shards):,} shards")
    last = _committed(sources, recipe, first)
    watch.step("make the table of sources")
    num_bytes = sum(len(body) for _, body in table_chunks(last.table))
    watch.step(f"compress it: {num_bytes / len(names):.1f} bytes a sample")
    del first
    if plan(sources, recipe, last).has_work:
        raise SystemExit("a build without changes has work")
    watch.step("plan a build without changes")
    sources.stamps[::1000] += 1
    plan(sources, recipe, last)
    watch.step("plan after 1 sample of 1,000 changed")
    return watch.steps


def scan_steps(num_samples: int) -> list[Measured]:
    """Scan samples on object storage, here in the memory of this process."""
    store = Store("memory://scale/inputs")
    for number in range(num_samples):
        store.put_new(f"{name_of(number)}.{SUFFIX}", b"")
    watch = Stopwatch()
    watch.step("nothing: the process with the objects")
    found = scan(store, (SUFFIX,))
    watch.step("scan the inputs")
    sources = find_sources(store, found.names, (SUFFIX,), found.prints)
    watch.step("fingerprints")
    watch.step(f"nothing: what a build keeps of {len(sources):,} samples")
    return watch.steps


def name_of(number: int) -> str:
    """Returns the name of a sample, in one of many folders."""
    return f"{number % NUM_FOLDERS:03d}/sample-{number:010d}"


def is_in_first(name: str, partitions: int) -> bool:
    """Returns whether a name is in the first of some partitions by the hash of the key."""
    return partitions == 1 or xxh3_64_intdigest(name.encode()) % partitions == 0


def simulated(names: list[str]) -> Sources:
    """Returns sources of about `SAMPLE_BYTES` with any fingerprints."""
    random = np.random.default_rng(0)
    shape = (len(names), 1)
    return Sources(
        url="s3://bucket/inputs",
        names=names,
        suffixes=(SUFFIX,),
        sizes=random.integers(SAMPLE_BYTES * 9 // 10, SAMPLE_BYTES * 11 // 10, shape),
        stamps=random.integers(0, 1 << 62, shape),
    )


def _committed(sources: Sources, recipe: Recipe, first: Plan) -> Last:
    """Returns the version that a first build makes, as a later plan needs it."""
    shards = [
        Shard(
            number=number,
            num_bytes=shard.num_bytes,
            num_samples=len(shard.rows),
            digest=shard.digest,
            index_digest=shard.digest,
        )
        for number, shard in enumerate(first.shards)
    ]
    return Last(
        recipe=recipe.to_json(),
        source_url=sources.url,
        shards=shards,
        whole=frozenset(range(len(shards))),
        table=source_table(sources, sources.stamps[::-1].astype(np.uint64), _places(sources, first)),
    )


def _places(sources: Sources, first: Plan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    numbers, rows = np.empty((2, len(sources)), np.int64)
    for number, shard in enumerate(first.shards):
        numbers[shard.rows], rows[shard.rows] = number, np.arange(len(shard.rows))
    return numbers, rows
