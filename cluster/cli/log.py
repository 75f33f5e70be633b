"""`dray log`: print the commits of a dataset, newest first, and the state of each version."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import typer

from dray.cluster.cli.options import AsJson, DatasetOptions
from dray.pipelines.versions.holds import history
from dray.shards.layout import Location
from dray.shards.log import Commit, Operation
from dray.shards.versions import read_holds

_HEADINGS = ("number", "when", "what", "version", "samples", "shards", "MB", "state")
_RIGHT_ALIGNED = {"number", "version", "samples", "shards", "MB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One commit of the log.

    Attributes:
        number: Number of the commit.
        created: Time of the commit: UTC, ISO 8601.
        operation: What was done, such as "build" or "hold".
        detail: What it was done to, such as "3 as paper"; may be empty.
        version: The last version after the commit.
        makes_version: Whether the commit made that version.
        num_samples: Number of samples in that version.
        num_shards: Number of its shards.
        num_bytes: Size of its tars in bytes.
        state: State of the version that the commit made: "last", "kept", "held" or "dropped"; None if it made none.
        held_as: Names under which that version is held.
    """

    number: int
    created: str
    operation: str
    detail: str
    version: int
    makes_version: bool
    num_samples: int
    num_shards: int
    num_bytes: int
    state: str | None
    held_as: tuple[str, ...]


def log(dataset: DatasetOptions, *, as_json: AsJson = False) -> None:
    """Show the history of a dataset, newest first, and which versions are kept.

    A version is the [bold]last[/], [bold]kept[/], [bold]held as NAME[/], or [bold]dropped[/]. Holds, releases and gcs
    have numbers as well, but make no version.

    [bold]Examples[/]

    [cyan]dray log shards/train[/]

    [cyan]dray log s3://lab/digits/train --json[/]
    """
    logs = [(found, _entries(found)) for found in dataset.find_all()]
    if as_json:
        facts = [
            {"url": found.url, "prefix": found.prefix, **asdict(entry)}
            for found, log_entries in logs
            for entry in log_entries
        ]
        typer.echo(json.dumps(facts, indent=1))
        return
    for found, log_entries in logs:
        typer.echo(str(found))
        for line in _lines([_HEADINGS, *map(_row, log_entries)]):
            typer.echo(line)


def _entries(location: Location) -> list[Entry]:
    """Returns the log, newest first."""
    commits = history(location)
    names = defaultdict[int, list[str]](list)
    for name, version in sorted(read_holds(location, commits[-1]).items()):
        names[version].append(name)
    return [_entry(commits, place, names[commits[place].number]) for place in range(len(commits) - 1, -1, -1)]


def _entry(commits: Sequence[Commit], place: int, held_as: Sequence[str]) -> Entry:
    commit, head = commits[place], commits[-1]
    return Entry(
        number=commit.number,
        created=commit.created,
        operation=commit.operation,
        detail=_detail(commits, place),
        version=commit.version,
        makes_version=commit.makes_version,
        num_samples=commit.num_samples,
        num_shards=commit.num_shards,
        num_bytes=commit.num_bytes,
        state=_state(commit.number, head, is_held=bool(held_as)) if commit.makes_version else None,
        held_as=tuple(held_as) if commit.makes_version else (),
    )


def _state(version: int, head: Commit, *, is_held: bool) -> str:
    if version == head.version:
        return "last"
    if version >= head.kept_from:
        return "kept"
    return "held" if is_held else "dropped"


def _detail(commits: Sequence[Commit], place: int) -> str:
    """Returns what a commit was done to, from its difference to the commit before."""
    if place == 0:
        return ""
    commit, before = commits[place], commits[place - 1]
    if commit.hold:
        return ", ".join(f"{version} as {name}" for name, version in sorted(commit.hold.items()))
    if commit.operation == Operation.ROLLBACK:
        same = [old.number for old in commits[:place] if old.makes_version and _content(old) == _content(commit)]
        return f"to {same[-1]}" if same else ""
    if commit.operation == Operation.GC and commit.kept_from != before.kept_from:
        return f"of versions before {commit.kept_from}"
    return ""


def _content(commit: Commit) -> tuple[int, str]:
    return commit.intent, commit.manifest


def _row(entry: Entry) -> tuple[str, ...]:
    what = f"{entry.operation} {entry.detail}".rstrip()
    if not entry.makes_version:
        return (str(entry.number), entry.created, what, "", "", "", "", "")
    states = [] if entry.state == "held" else [entry.state or ""]
    return (
        str(entry.number),
        entry.created,
        what,
        str(entry.version),
        f"{entry.num_samples:,}",
        f"{entry.num_shards:,}",
        f"{entry.num_bytes / 1e6:,.1f}",
        ", ".join([*states, *(f"held as {name}" for name in entry.held_as)]),
    )


def _lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns the rows in aligned columns; lines are not cut at the width of the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if heading in _RIGHT_ALIGNED else cell.ljust(width)
            for cell, width, heading in zip(row, widths, _HEADINGS, strict=True)
        ).rstrip()
        for row in rows
    ]
