"""What `dray loadtest` does: read a dataset as so many ranks would, on one machine, and tell what it costs."""

import statistics
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any

import typer

from dray.cluster.cli.datasets import find_dataset
from dray.loaders import ShardLoader
from dray.pipelines.progress import say
from dray.shards.errors import CallError
from dray.shards.messages import counted
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import split_version

COMPILED = ("dray.loaders.batching.gather", "dray.shards.codecs.pickles.scan")


def load_test(
    url: str,
    *,
    prefix: str | None,
    version: str | None,
    parts: list[str] | None,
    batch_size: int,
    num_ranks: int,
    num_steps: int,
    num_workers: int,
    shuffle: bool,
    stack: bool,
    allow: Sequence[str] = (),
    allow_pickle: bool = False,
    storage_options: StorageOptions,
) -> dict[str, Any]:
    """Let every rank take its steps, one rank after the other in each step; what was measured.

    Raises:
        CallError: The dataset is smaller than one step, or with `stack` samples have different shapes.
    """
    directory, pinned = split_version(url, version)
    found = find_dataset(directory, prefix, storage_options, ("loadtest",))
    started = time.perf_counter()
    loaders = [
        ShardLoader(
            found.store.url,
            prefix=found.layout.prefix,
            version=pinned,
            parts=parts,
            missing="none",  # it measures whatever samples there are
            stack=stack,
            batch_size=batch_size,
            shuffle=shuffle,
            allow=allow,
            allow_pickle=allow_pickle,
            num_workers=num_workers,
            rank=rank,
            num_ranks=num_ranks,
            storage_options=storage_options,
        )
        for rank in range(num_ranks)
    ]
    most = len(loaders[0])
    if not most:
        raise CallError(f"{url}: fewer samples than one step of {batch_size} on {counted(num_ranks, 'rank')}")
    if most < num_steps:
        say(f"an epoch has only {counted(most, 'step')} of {counted(batch_size * num_ranks, 'sample')}: all are taken")
    if missing := [name for name in COMPILED if find_spec(name) is None]:
        say(f"{', '.join(missing)}: not compiled when dray was installed, for want of a C compiler; loading is slower")
    seconds: list[float] = []
    first_batch = 0.0
    for taken in _steps(loaders, min(most, num_steps)):
        seconds.append(taken)
        first_batch = first_batch or time.perf_counter() - started
    counts = _counts(loaders)
    running = seconds[1:] or seconds  # the first step is the start
    num_bytes, batch = counts.pop("bytes") / len(seconds), batch_size * num_ranks
    snapshot = loaders[0].snapshot
    return {
        "version": snapshot.version,
        "ranks": num_ranks,
        "batch_size": batch_size,
        "steps": len(seconds),
        "samples_per_s": len(running) * batch / sum(running),
        "mb_per_s": len(running) * num_bytes / 1e6 / sum(running) if num_bytes else None,
        "slowest_step_s": max(running),
        "first_batch_s": first_batch,
        **counts,
        "shards_in_a_global_batch": _spread(loaders[0], min(len(seconds), 20)),
        "shards_in_a_random_batch": _random_spread([shard.num_samples for shard in snapshot.shards], batch),
        "shards": len(snapshot.shards),
    }


def _counts(loaders: list[ShardLoader]) -> dict[str, Any]:
    """What all ranks read so far; of loaders with workers, which count in their own processes, only what they tell."""
    stats = [loader.stats() for loader in loaders]
    total = {name: sum(stat.get(name, 0) for stat in stats) for name in ("bytes", "bytes_read", "requests", "retries")}
    read = total.pop("bytes_read")
    return {**total, "bytes_read_per_byte": read / total["bytes"] if read and total["bytes"] else None}


def _steps(loaders: list[ShardLoader], num_steps: int) -> Iterator[float]:
    """The seconds of each step, over all ranks."""
    batches = [iter(loader) for loader in loaders]
    for _ in range(num_steps):
        started = time.perf_counter()
        for of_rank in batches:
            next(of_rank)
        yield time.perf_counter() - started


def _spread(loader: ShardLoader, num_steps: int) -> float:
    """The mean number of distinct shards in a global batch."""
    epoch = loader.state_dict()["epoch"]
    counts = [
        len({sample["shard"] for rank in range(loader.num_ranks) for sample in loader.locate(epoch, step, rank)})
        for step in islice(range(len(loader)), num_steps)
    ]
    return statistics.mean(counts)


def _random_spread(sizes: Sequence[int], batch: int) -> float:
    """The number of shards that so many samples, drawn at random from all, are expected to come from."""
    total = sum(sizes)
    return sum(1 - (1 - size / total) ** min(batch, total) for size in sizes)


def print_result(found: dict[str, Any]) -> None:
    """As a person reads it."""
    typer.echo(
        f"version {found['version']}, {counted(found['ranks'], 'rank')} x {found['batch_size']}, "
        f"{counted(found['steps'], 'step')}"
    )
    mb_per_s = "" if found["mb_per_s"] is None else f", {found['mb_per_s']:,.1f} MB/s"
    typer.echo(f"  throughput     {found['samples_per_s']:,.0f} samples/s{mb_per_s} over all ranks")
    typer.echo(f"  slowest step   {1000 * found['slowest_step_s']:,.1f} ms, the first left out")
    typer.echo(f"  first batch    {found['first_batch_s']:.2f} s after the start, of all ranks")
    if found["bytes_read_per_byte"] is not None:
        typer.echo(
            f"  read           {found['bytes_read_per_byte']:.3f} bytes a byte, "
            f"{counted(found['requests'], 'request')}, {counted(found['retries'], 'retry', 'retries')}"
        )
    typer.echo(
        f"  shuffle        {found['shards_in_a_global_batch']:.1f} of {counted(found['shards'], 'shard')} in a global "
        f"batch; drawn at random {found['shards_in_a_random_batch']:.1f}"
    )
