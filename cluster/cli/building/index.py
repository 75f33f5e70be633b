"""`dray index`: make a dataset of tars that another program wrote, in place."""

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from dray.cluster.cli.building.tasks import ResourceOptions
from dray.cluster.cli.options import (
    Address,
    AsJson,
    Quiet,
    RetentionOptions,
    StorageOptionList,
    cluster_address,
    parse_storage_options,
)
from dray.pipelines import index_tars
from dray.pipelines.indexing.changes import KeyScope
from dray.pipelines.indexing.places import find_place
from dray.pipelines.progress import WORDS
from dray.shards.snapshot import DEFAULT_PREFIX


class OnBadTar(StrEnum):
    """How to treat tars that cannot be indexed."""

    fail = "fail"
    skip = "skip"


def index(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Folder of the tars, with its sub-folders: a path or a URL such as s3://bucket/laion; or a tar.",
        ),
    ],
    tars: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TAR",
            help="Names of tars in URL, with braces as in webdataset and globs: [bold]'train-{000..099}.tar'[/], "
            "[bold]'*/*.tar'[/]; [bold]'**/*.tar'[/] are those of all folders. If URL is a tar, give more tars.",
            show_default="as in the last version, else all",
        ),
    ] = None,
    *,
    prefix: Annotated[str, typer.Option(help="Prefix of the dataset; a folder may have several.")] = DEFAULT_PREFIX,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Folder for the index, if that of the tars cannot be written to; readers then need --data-url or "
            "data_url=.",
            show_default="the folder of the tars",
        ),
    ] = None,
    unpack_to: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Unpack compressed tars (.tar.gz, .tgz, .bz2, .xz, .zst) into this folder, and index them there.",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[
        KeyScope | None,
        typer.Option(
            help="[bold]unique[/] refuses tars with equal keys; [bold]per-tar[/] puts the path of its tar before each "
            "key, for tars that count from 0 each.",
            show_default="as in the last version, else unique",
        ),
    ] = None,
    on_error: Annotated[
        OnBadTar,
        typer.Option(
            help="What to do with tars that are cut short, compressed or out of order: name them and stop, "
            "or leave them out until they change."
        ),
    ] = OnBadTar.fail,
    allow_removal: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="How many samples of the last version may go because their tars are gone: a number, or per cent.",
            show_default="10%, or 50% of fewer than 20",
        ),
    ] = None,
    allow_changed_source: Annotated[
        bool,
        typer.Option("--allow-changed-source", help="Accept tars in another place than the last version's."),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of tars that are scanned at the same time, without Ray.",
            show_default="4 on a disk, 16 on object storage",
        ),
    ] = None,
    retention: RetentionOptions,
    resources: ResourceOptions,
    address: Address = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    into_storage_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of the object store of --into or --unpack-to, as --storage-option; repeatable.",
        ),
    ] = None,
    storage_option: StorageOptionList = None,
) -> None:
    r"""Make a dataset of the tars of an existing WebDataset, in place: nothing of a tar is moved or copied.

    Each tar is read once; a rerun reads only new and changed ones. What webdataset would drop, merge or reject is
    reported. Then all of dray reads the tars: ShardLoader, the DataModules, `dray show`, `ls`, `verify` and `loadtest`.

    [bold]Examples[/]

    All tars of a folder:

    [cyan]dray index shards/[/]

    Some of them, as webdataset would take them:

    [cyan]dray index s3://lab/laion '{00000..00099}.tar' --address local[/]

    Tars of somebody else's bucket, with the index in one's own:

    [cyan]dray index s3://public/laion --storage-option skip_signature=true --into s3://lab/laion-index[/]

    Compressed tars, unpacked first:

    [cyan]dray index downloads/ '*.tar.gz' --unpack-to shards/[/]
    """
    names_tars = bool(tars) and find_place(url, None)[1] is not None
    ray_address = cluster_address(address)
    with resources.on(ray_address):
        report = index_tars(
            [url, *(tars or ())] if names_tars else url,
            None if names_tars else tars or None,
            prefix=prefix,
            into=into,
            unpack_to=unpack_to,
            keys=keys,
            on_error=on_error,
            allow_removal=allow_removal,
            allow_changed_source=allow_changed_source,
            storage_options=parse_storage_options(storage_option),
            into_storage_options=parse_storage_options(into_storage_option, "--into-storage-option") or None,
            address=ray_address,
            num_threads=threads,
            keep=retention.keep,
            grace_s=retention.rule().grace_s,
            progress=not quiet,
        )
    typer.echo(json.dumps([asdict(report)], indent=1) if as_json else WORDS.get()(str(report)))
