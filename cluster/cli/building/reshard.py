"""`dray reshard`: copy a dataset, or anyone's tars, into shards of another size, order, choice or encoding."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from dray.cluster.cli.building.request import parse_encode, read_names
from dray.cluster.cli.building.tasks import ResourceOptions
from dray.cluster.cli.options import (
    Address,
    AllowList,
    AllowPickle,
    AsJson,
    DataOptions,
    Quiet,
    RetentionOptions,
    StorageOptionList,
    cluster_address,
    parse_size,
    parse_storage_options,
)
from dray.pipelines.progress import WORDS
from dray.pipelines.resharding.choose import Choice, PartLimits, Predicate
from dray.pipelines.resharding.keys import UniqueKeys
from dray.pipelines.resharding.plan import Shape
from dray.pipelines.resharding.reshard import CopySpec, survey
from dray.pipelines.resharding.reshard import reshard as make_copy
from dray.pipelines.resharding.source import open_source
from dray.shards.errors import CallError
from dray.shards.layout import Layout, Location, check_suffixes
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.store import Store


def reshard(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE_URL",
            help="Folder of a dataset or of tars, or tars of a disk as in 'train-{000..099}.tar'; they are only read.",
        ),
    ],
    url: Annotated[str, typer.Argument(metavar="OUT_URL", help="Folder of the copy.")],
    data: DataOptions,
    retention: RetentionOptions,
    tasks: ResourceOptions,
    *,
    source_prefix: Annotated[
        str, typer.Option(help="Prefix of the source, or of the tars in a folder.")
    ] = DEFAULT_PREFIX,
    prefix: Annotated[str, typer.Option(help="Prefix of the copy.")] = DEFAULT_PREFIX,
    version: Annotated[
        str | None,
        typer.Option(
            help="Version of the source: a number, or the name of a hold; the same as ?version=7 in SOURCE_URL.",
            show_default="the last",
        ),
    ] = None,
    samples_per_shard: Annotated[
        int | None, typer.Option(help="Number of samples in a shard.", show_default="by size")
    ] = None,
    shard_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Maximum size of a shard, such as 512Mi or 1G.", show_default="256Mi"),
    ] = None,
    shards: Annotated[int | None, typer.Option(help="Number of shards.", show_default="by size")] = None,
    shuffle_seed: Annotated[
        int | None,
        typer.Option(
            help="Shuffle the samples over all shards, by a hash of the key.", show_default="the order of the source"
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="SUFFIX", help="Copy only this part of each sample; repeatable.", show_default="all"),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Copy only the samples whose keys are in this file, one a line; - is stdin."),
    ] = None,
    key_glob: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Copy only samples with such a key, as in 'train/*'.")
    ] = None,
    has: Annotated[
        list[str] | None,
        typer.Option(metavar="SUFFIX", help="Copy only samples that have this part; repeatable."),
    ] = None,
    min_bytes: Annotated[
        list[str] | None,
        typer.Option(metavar="SUFFIX=SIZE", help="Copy only samples whose part has at least this size; repeatable."),
    ] = None,
    max_bytes: Annotated[
        list[str] | None,
        typer.Option(metavar="SUFFIX=SIZE", help="Copy only samples whose part has at most this size; repeatable."),
    ] = None,
    unique_keys: Annotated[
        UniqueKeys | None,
        typer.Option(
            help="For tars in which samples share a key: [bold]prefix[/] puts the name of its tar before each key, "
            "[bold]join[/] makes one sample of those that share a key.",
            show_default="an error",
        ),
    ] = None,
    encode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SUFFIX=]FORMAT",
            help="Encode pickled parts: [bold]tensor.pyd=npy[/] (or safetensors, json), or [bold]auto[/].",
        ),
    ] = None,
    allow: AllowList = None,
    allow_pickle: AllowPickle = False,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be copied.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    source_storage_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of the object store of SOURCE_URL; repeatable.",
            show_default="those of --storage-option",
        ),
    ] = None,
    storage_option: StorageOptionList = None,
) -> None:
    r"""Copy a dataset, or anyone's tars, into shards of another size, order, choice or encoding.

    The source is only read. A rerun writes nothing if nothing changed; after a failure it copies only what is missing.

    [bold]Examples[/]

    Larger shards, shuffled:

    [cyan]dray reshard s3://lab/digits s3://lab/digits-1g --shard-bytes 1G --shuffle-seed 0[/]

    The images of at least 10 kB, with their labels:

    [cyan]dray reshard shards/ images/ --part jpg --part cls --min-bytes jpg=10k[/]

    Pickled tensors as `.npy`:

    [cyan]dray reshard shards/ encoded/ --encode auto[/]

    Tars of another program, each of which numbers its samples from 0:

    [cyan]dray reshard downloads/ shards/ --unique-keys prefix[/]
    """
    options = parse_storage_options(storage_option)
    of_source = parse_storage_options(source_storage_option, "--source-storage-option")
    spec = CopySpec(
        source=open_source(
            source,
            source_prefix,
            version,
            storage_options=of_source or options,
            data_url=data.data_url,
            data_storage_options=data.storage_options,
            show=not quiet,
        ),
        location=Location(Store(url, options), Layout(prefix)),
        shape=Shape.of(
            samples_per_shard,
            None if shard_bytes is None else parse_size("--shard-bytes", shard_bytes),
            shards,
            shuffle_seed,
        ),
        choice=Choice.of(
            None if keys is None else read_names(keys, "--keys"),
            parse_limits(key_glob, has or (), min_bytes, max_bytes),
        ),
        parts=check_suffixes(part) if part else None,
        unique_keys=unique_keys,
        encode=parse_encode(encode),
        allow=tuple(allow or ()),
        allow_pickle=allow_pickle,
        address=cluster_address(address),
        progress=not quiet,
    )
    if dry_run:
        work = survey(spec)
        typer.echo(json.dumps([work.facts()], indent=1) if as_json else WORDS.get()(str(work)))
        return
    with tasks.on(spec.address):
        report = make_copy(spec, retention=retention.rule())
    typer.echo(json.dumps([asdict(report)], indent=1) if as_json else WORDS.get()(str(report)))


def parse_limits(
    key_glob: str | None, has: list[str] | tuple[str, ...], least: list[str] | None, most: list[str] | None
) -> Predicate | None:
    """Returns the predicate of the options; None if none is given."""
    limits = PartLimits(
        key_glob=key_glob,
        has=tuple(has),
        min_bytes=_sizes("--min-bytes", least),
        max_bytes=_sizes("--max-bytes", most),
    )
    return limits if key_glob is not None or limits.suffixes else None


def _sizes(option: str, pairs: list[str] | None) -> Mapping[str, int]:
    sizes: dict[str, int] = {}
    for pair in pairs or ():
        suffix, equals, size = pair.rpartition("=")
        if not equals or suffix in sizes:
            raise CallError(f"{option} {pair}: expected SUFFIX=SIZE such as jpg=10k, each suffix once")
        sizes[suffix] = parse_size(option, size)
    return sizes
