"""What `dray ls --left-out` prints: the inputs that a version does not hold, each with the reason."""

import json
from typing import Any

import typer

from dray.cluster.cli.datasets import find_datasets
from dray.cluster.cli.group import BUILD_OPTIONS, in_words
from dray.shards import Snapshot
from dray.shards.messages import counted
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import split_version
from dray.shards.versions import read_version

_FIELDS = ("name", "fate", "stage", "file", "error")


def list_left_out(
    url: str, *, prefix: str | None, version: str | None, as_json: bool, storage_options: StorageOptions
) -> None:
    """Print what one version of each dataset under a URL leaves out.

    Raises:
        NotFoundError: There is no such dataset or version.
    """
    directory, pinned = split_version(url, version)
    found = find_datasets(directory, prefix, storage_options)
    snapshots = [Snapshot.load(store, layout, read_version(store, layout, pinned)) for store, layout in found]
    if as_json:
        typer.echo(json.dumps([_facts(snapshot) for snapshot in snapshots], indent=1))
        return
    for snapshot in snapshots:
        inputs = _inputs(snapshot)
        what = f"{snapshot.store.url} {snapshot.layout.prefix} version {snapshot.version}"
        typer.echo(f"{what}: {counted(len(inputs), 'input is', 'inputs are')} left out")
        for entry in inputs:
            reason = in_words(" ".join(entry["error"].split()), BUILD_OPTIONS)
            typer.echo(f"  {entry['name']}  {entry['fate']}: {reason}")


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "url": snapshot.store.url,
        "prefix": snapshot.layout.prefix,
        "version": snapshot.version,
        "left_out": _inputs(snapshot),
    }


def _inputs(snapshot: Snapshot) -> list[dict[str, str]]:
    """Returns name, fate, stage, file and error of each input, by name."""
    table = snapshot.left_out()
    return [] if table is None else table.select(_FIELDS).to_pylist()
