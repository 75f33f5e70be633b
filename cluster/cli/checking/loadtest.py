"""`dray loadtest`: read a dataset on one machine as many ranks would, and print what it costs."""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Annotated, Any

import typer

from dray.cluster.cli.options import AllowList, AllowPickle, DataOptions, VersionOptions
from dray.cluster.doctor.machine import COMPILED
from dray.loaders import ShardLoader
from dray.pipelines.progress import say
from dray.shards.errors import CallError
from dray.shards.messages import counted

MAX_SPREAD_STEPS = 20  # whose shards are counted


def loadtest(
    dataset: VersionOptions,
    data: DataOptions,
    *,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="SUFFIX", help="Part to read; repeatable.", show_default="all parts"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of samples per step of one rank.")] = 32,
    ranks: Annotated[int, typer.Option(min=1, help="Number of training processes to simulate.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps; at most one epoch is read.")] = 100,
    workers: Annotated[
        int, typer.Option(min=0, help="Number of loader processes per rank; their reads are not counted.")
    ] = 0,
    shuffle: Annotated[bool, typer.Option(help="Read in a shuffled order, as for training.")] = True,
    stack: Annotated[bool, typer.Option(help="Stack each part to one tensor instead of a list of values.")] = True,
    allow: AllowList = None,
    allow_pickle: AllowPickle = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object.")] = False,
) -> None:
    """Read a dataset as training would: throughput, first batch, requests, shuffle quality.

    All ranks run in this process, one after the other in each step: the result is what this machine's cores and network
    can deliver.

    [bold]Results[/]

    [bold]throughput[/]: training that takes more samples per second than this will wait for data.

    [bold]slowest step[/]: if it is far above the mean, the store or this machine stalls now and then.

    [bold]first batch[/]: what each start and each resume costs: opening the dataset, indexes, the first blocks.

    [bold]read[/]: bytes fetched from object storage per byte needed; above 1.1: small samples, or parts not read.

    [bold]shuffle[/]: shards in a global batch, compared with a random draw; more samples per step bring more.

    [bold]Examples[/]

    [cyan]dray loadtest dray-quickstart/shards/train --batch-size 8 --ranks 4[/]

    [cyan]dray loadtest s3://lab/digits/train --batch-size 64 --ranks 8 --steps 200 --json[/]
    """
    started = time.perf_counter()
    found = dataset.find_one("loadtest")
    if missing := [name for name in COMPILED if find_spec(name) is None]:
        say(
            f"{', '.join(missing)}: not compiled when dray was installed, as no C compiler was found; loading is slower"
        )
    loaders = [
        ShardLoader(
            found.store.url,
            prefix=found.layout.prefix,
            version=dataset.pinned,
            parts=part,
            missing="none",  # samples that lack a part are read as well
            stack=stack,
            batch_size=batch_size,
            shuffle=shuffle,
            allow=allow or (),
            allow_pickle=allow_pickle,
            num_workers=workers,
            rank=rank,
            num_ranks=ranks,
            storage_options=dataset.storage_options,
            data_url=data.data_url,
            data_storage_options=data.storage_options,
        )
        for rank in range(ranks)
    ]
    result = _measure(loaders, batch_size, steps, started)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _print_result(result)


def _measure(loaders: Sequence[ShardLoader], batch_size: int, max_steps: int, started: float) -> dict[str, Any]:
    """Returns the measurements of an epoch or `max_steps` steps, whichever is less.

    Args:
        loaders: The loader of each rank.
        batch_size: Number of samples per step of one rank.
        max_steps: Maximum number of steps.
        started: When the loaders were made: seconds of `time.perf_counter`.

    Raises:
        CallError: The dataset is smaller than one step.
    """
    snapshot, global_batch = loaders[0].snapshot, batch_size * len(loaders)
    num_steps = _num_steps(loaders[0], global_batch, max_steps)
    seconds: list[float] = []
    first_batch = 0.0
    for taken in _steps(loaders, num_steps):
        seconds.append(taken)
        first_batch = first_batch or time.perf_counter() - started
    counts = _counts(loaders)
    running = seconds[1:] or seconds  # the first step includes the start
    num_bytes = counts.pop("bytes") / num_steps
    return {
        "version": snapshot.version,
        "ranks": len(loaders),
        "batch_size": batch_size,
        "steps": num_steps,
        "samples_per_s": len(running) * global_batch / sum(running),
        "mb_per_s": len(running) * num_bytes / 1e6 / sum(running) if num_bytes else None,
        "slowest_step_s": max(running),
        "first_batch_s": first_batch,
        **counts,
        "shards_in_a_global_batch": _spread(loaders[0], min(num_steps, MAX_SPREAD_STEPS)),
        "shards_in_a_random_batch": _random_spread([shard.num_samples for shard in snapshot.shards], global_batch),
        "shards": len(snapshot.shards),
    }


def _num_steps(loader: ShardLoader, global_batch: int, max_steps: int) -> int:
    """Returns the number of steps to take; prints a message if an epoch has fewer than `max_steps`."""
    batch = counted(global_batch, "sample")
    if not len(loader):
        raise CallError(f"{loader.snapshot.store.url}: fewer samples than one step of {batch}: lower batch_size")
    if len(loader) < max_steps:
        say(f"an epoch has only {counted(len(loader), 'step')} of {batch}: all are taken")
    return min(len(loader), max_steps)


def _counts(loaders: Sequence[ShardLoader]) -> dict[str, Any]:
    """Returns what all ranks have read, as far as their loaders count it."""
    stats = [loader.stats() for loader in loaders]
    total = {name: sum(stat.get(name, 0) for stat in stats) for name in ("bytes", "bytes_read", "requests", "retries")}
    read = total.pop("bytes_read")
    return {**total, "bytes_read_per_byte": read / total["bytes"] if read and total["bytes"] else None}


def _steps(loaders: Sequence[ShardLoader], num_steps: int) -> Iterator[float]:
    """Yields the seconds of each step of all ranks."""
    batches = [iter(loader) for loader in loaders]
    for _ in range(num_steps):
        started = time.perf_counter()
        for rank_batches in batches:
            next(rank_batches)
        yield time.perf_counter() - started


def _spread(loader: ShardLoader, num_steps: int) -> float:
    """Returns the mean number of distinct shards in a global batch."""
    epoch = loader.state_dict()["epoch"]
    counts = [
        len({sample["shard"] for rank in range(loader.num_ranks) for sample in loader.locate(epoch, step, rank)})
        for step in islice(range(len(loader)), num_steps)
    ]
    return statistics.mean(counts)


def _random_spread(sizes: Sequence[int], batch: int) -> float:
    """Returns the expected number of distinct shards of `batch` samples drawn at random from all."""
    total = sum(sizes)
    return sum(1 - (1 - size / total) ** min(batch, total) for size in sizes)


def _print_result(found: dict[str, Any]) -> None:
    typer.echo(
        f"version {found['version']}, {counted(found['ranks'], 'rank')} x {found['batch_size']}, "
        f"{counted(found['steps'], 'step')}"
    )
    mb_per_s = "" if found["mb_per_s"] is None else f", {found['mb_per_s']:,.1f} MB/s"
    typer.echo(f"  throughput     {found['samples_per_s']:,.0f} samples/s{mb_per_s} over all ranks")
    typer.echo(f"  slowest step   {1000 * found['slowest_step_s']:,.1f} ms, without the first step")
    typer.echo(f"  first batch    {found['first_batch_s']:.2f} s after the start, for all ranks")
    if found["bytes_read_per_byte"] is not None:
        typer.echo(
            f"  read           {found['bytes_read_per_byte']:.3f} bytes per byte needed, "
            f"{counted(found['requests'], 'request')}, {counted(found['retries'], 'retry', 'retries')}"
        )
    typer.echo(
        f"  shuffle        {found['shards_in_a_global_batch']:.1f} of {counted(found['shards'], 'shard')} in a global "
        f"batch; a random draw has {found['shards_in_a_random_batch']:.1f}"
    )
