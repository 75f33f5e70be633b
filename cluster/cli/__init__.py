"""The `dray` command: `app` registers the commands; each is in a file of its own, beside what it prints."""

from dray.cluster.cli.app import main

__all__ = ["main"]
