"""The `dray` command: the options before a command's name, and the list of commands.

Results go to standard output, progress and errors to standard error; `exits` has the exit codes.
"""

import importlib.metadata
import os
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup, TyperOption

from dray.cluster.cli.commands import SETTINGS, CommandGroup, LazyCommand
from dray.cluster.cli.exits import orderly_end
from dray.cluster.observability.json_log import json_log

COMMANDS = {
    "dray.cluster.cli.building.build": {"build": "Pack files into shards; a rerun packs only what is missing."},
    "dray.cluster.cli.building.plan": {
        "plan": "Show what `dray build` with the same arguments would do, and why; nothing is written."
    },
    "dray.cluster.cli.building.reshard": {
        "reshard": "Copy a dataset, or anyone's tars, into shards of another size, order, choice or encoding."
    },
    "dray.cluster.cli.building.index": {
        "index": "Make a dataset of the tars of an existing WebDataset, in place: nothing of a tar is moved or copied."
    },
    "dray.cluster.cli.jobs.submit": {"submit": "Run a command of dray, or a script, as a job on a Ray cluster."},
    "dray.cluster.cli.jobs.jobs": {"jobs": "List jobs; show or follow one, print its log, or stop it."},
    "dray.cluster.cli.ls": {"ls": "Show the datasets in a folder: version, size, parts, shards."},
    "dray.cluster.cli.verify": {"verify": "Check that a dataset is intact; report all damage and how to repair it."},
    "dray.cluster.cli.show": {"show": "Show one sample: its shard, and the location and value of each part."},
    "dray.cluster.cli.log": {"log": "Show the history of a dataset, newest first, and which versions are kept."},
    "dray.cluster.cli.diff": {"diff": "Show what differs between two versions: samples, shards, recipe, source."},
    "dray.cluster.cli.versions": {
        "hold": "Keep a version under a name until it is released.",
        "release": "Remove a hold; a version that nothing else keeps is deleted by the next gc.",
        "rollback": "Make a new version equal to an old one; nothing is copied or deleted.",
        "gc": "Drop old versions and delete the files that only they use; every build ends with this.",
        "compact": "Merge the small shards of many builds: a new version of the same samples in fewer tars.",
    },
    "dray.cluster.cli.checking.loadtest": {
        "loadtest": "Read a dataset as training would: throughput, first batch, requests, shuffle quality."
    },
    "dray.cluster.cli.deploy": {
        "deploy": "Print a manifest or script that runs dray with KubeRay, Slurm or Docker Compose, or its Dockerfile."
    },
    "dray.cluster.cli.checking.doctor": {
        "doctor": "Check this machine, a store and a Ray cluster: what was found, is it good, and what to do."
    },
    "dray.cluster.quickstart.command": {
        "quickstart": "Pack 1,797 handwritten digits, train on them, pack again: all in under a minute."
    },
}
"""Module -> its commands, each a function of that name -> the first sentence of its help."""

EXIT_CODES = (
    "[bold]Exit codes[/] of all commands: 0 done, or nothing to do; 1 bad data; 2 wrong call; 3 storage; 4 Ray "
    "cluster; 5 conflict with another writer; 130 interrupted; 143 terminated."
)

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, epilog=EXIT_CODES, **SETTINGS)

_COMPLETION = {"install_completion", "show_completion"}  # typer's options: the text of `common` mentions them


def main() -> None:
    """Run the command line of this process."""
    with json_log(sys.argv[1:]), orderly_end():
        command_line()(prog_name="dray")


def command_line() -> TyperGroup:
    """Returns the `dray` command with all of its commands."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)  # noqa: S101  an app with a callback is a group
    for option in group.params:
        if isinstance(option, TyperOption) and option.name in _COMPLETION:
            option.hidden = True
    for module, summaries in COMMANDS.items():
        for name, summary in summaries.items():
            group.add_command(LazyCommand(name, module, summary))
    return group


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dray {importlib.metadata.version('dray')}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[  # noqa: ARG001  its callback acts
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the full traceback of an error; so does DRAY_TRACEBACK=1.")
    ] = False,
) -> None:
    """Pack pickled samples into WebDataset shards with Ray; stream each GPU rank its share of them.

    New here? This packs real data and trains on it, in under a minute:

    [bold]dray quickstart[/]

    Install shell completion of commands and options: [bold]dray --install-completion[/]
    """
    if traceback:
        os.environ["DRAY_TRACEBACK"] = "1"
