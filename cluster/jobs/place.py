"""Where the record of a command is stored: beside the dataset that the command line says it makes or checks."""

from collections.abc import Mapping, Sequence
from typing import Any

from dray.cluster.cli.options import parse_storage_options
from dray.shards.layout import Layout, Location
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.store import Store
from dray.shards.storage.urls import split_version

_DATASET = {"build": "destination", "compact": "url", "index": "url", "reshard": "url", "verify": "url"}
"""Command -> its parameter that names the folder of the dataset."""


def location_of(words: Sequence[str]) -> Location | None:
    """Returns the dataset that a command line works on; None if it works on none, or cannot be parsed.

    Args:
        words: The command and its arguments, such as ("build", "pickles/", "shards/").

    Raises:
        CallError: A URL, prefix or storage option is wrong.
    """
    from dray.cluster.cli.app import command_line

    name = words[0] if words else ""
    if name not in _DATASET:
        return None
    parser = command_line().commands[name]
    with parser.make_context(name, list(words[1:]), resilient_parsing=True) as context:
        return _location(context.params, _DATASET[name])


def _location(params: Mapping[str, Any], folder: str) -> Location | None:
    url, options = params.get("into") or params.get(folder), params.get("storage_option")
    if params.get("into"):
        options = params.get("into_storage_option") or options
    if not url:
        return None
    store = Store(split_version(url)[0], parse_storage_options(options))
    return Location(store, Layout(params.get("prefix") or DEFAULT_PREFIX))
