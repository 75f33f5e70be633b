"""`dray quickstart`: the command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dray.cluster.quickstart.quickstart import run_quickstart


class StoreKind(StrEnum):
    """Where the quickstart keeps its files."""

    disk = "disk"
    s3 = "s3"


def quickstart(
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Folder for all files; created if missing, never removed.")
    ] = Path("dray-quickstart"),
    store: Annotated[
        StoreKind, typer.Option(help="[bold]s3[/] stores the files on an S3 server that runs during the quickstart.")
    ] = StoreKind.disk,
) -> None:
    r"""Pack 1,797 handwritten digits, train on them, pack again: all in under a minute.

    Needs [bold]pip install 'dray\[quickstart]'[/], and no network.

    [bold]Examples[/]

    [cyan]dray quickstart[/]

    The same on object storage:

    [cyan]dray quickstart --dir /tmp/digits --store s3[/]
    """
    run_quickstart(directory, store.value)
