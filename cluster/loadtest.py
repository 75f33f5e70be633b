"""What `dray loadtest` does: read a dataset as so many ranks would, on one machine, and tell what it costs."""

import statistics
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import typer

from dray.loaders import ShardLoader
from dray.loaders.batches import KEY
from dray.pipelines.progress import say
from dray.shards.client import StorageOptions
from dray.shards.errors import CallError


def load_test(
    url: str,
    *,
    prefix: str,
    version: str | None,
    parts: list[str] | None,
    batch_size: int,
    num_ranks: int,
    num_steps: int,
    num_workers: int,
    shuffle: bool,
    storage_options: StorageOptions,
) -> dict[str, Any]:
    """Let every rank take its steps, one rank after the other in each step; what was measured.

    Raises:
        CallError: The dataset is smaller than one step.
    """
    started = time.perf_counter()
    loaders = [
        ShardLoader(
            url,
            prefix=prefix,
            version=version,
            parts=parts,
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=num_workers,
            rank=rank,
            num_ranks=num_ranks,
            with_keys=True,
            storage_options=storage_options,
            transform=_only_key,
        )
        for rank in range(num_ranks)
    ]
    most = len(loaders[0])
    if not most:
        raise CallError(f"{url}: fewer samples than one step of {batch_size} on {num_ranks} ranks")
    if most < num_steps:
        say(f"an epoch has {most} steps of {batch_size * num_ranks} samples: so many are taken")
    seconds: list[float] = []
    first_batch = 0.0
    for taken in _steps(loaders, min(most, num_steps)):
        seconds.append(taken)
        first_batch = first_batch or time.perf_counter() - started
    stats = [loader.stats() for loader in loaders]
    delivered, read = (sum(stat[name] for stat in stats) for name in ("bytes", "bytes_read"))
    return {
        "version": loaders[0].snapshot.version,
        "ranks": num_ranks,
        "batch_size": batch_size,
        "steps": len(seconds),
        "samples_per_s": len(seconds) * batch_size * num_ranks / sum(seconds),
        "mb_per_s": delivered / 1e6 / sum(seconds),
        "first_batch_s": first_batch,
        "bytes_read_per_byte": read / delivered if read and delivered else None,
        "requests": sum(stat["requests"] for stat in stats),
        "shards_in_a_global_batch": _spread(loaders[0], min(len(seconds), 20)),
        "shards": len(loaders[0].snapshot.shards),
    }


def _only_key(sample: dict[str, Any]) -> dict[str, Any]:
    return {KEY: sample[KEY]}


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


def print_result(found: dict[str, Any]) -> None:
    """As a person reads it."""
    typer.echo(f"version {found['version']}, {found['ranks']} ranks x {found['batch_size']}, {found['steps']} steps")
    typer.echo(
        f"  throughput     {found['samples_per_s']:,.0f} samples/s, {found['mb_per_s']:,.1f} MB/s over all ranks"
    )
    typer.echo(f"  first batch    {found['first_batch_s']:.2f} s after the start, of all ranks")
    if found["bytes_read_per_byte"] is not None:
        typer.echo(f"  read           {found['bytes_read_per_byte']:.3f} bytes a byte, {found['requests']:,} requests")
    typer.echo(
        f"  shuffle        {found['shards_in_a_global_batch']:.1f} of {found['shards']} shards in a global batch"
    )
