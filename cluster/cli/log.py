"""What `dray log` prints: everything that was done to a dataset, the newest first, and what became of each version."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import typer

from dray.cluster.cli.datasets import find_datasets, without_version
from dray.pipelines.versions.holds import history
from dray.shards.layout import Layout
from dray.shards.log import Commit, Operation
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.versions import read_holds

_HEADINGS = ("number", "when", "what", "version", "samples", "shards", "MB", "state")
_TO_THE_RIGHT = {"number", "version", "samples", "shards", "MB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One commit of the log.

    Attributes:
        number: Of the commit.
        created: UTC, ISO 8601.
        operation: What was done.
        detail: To what, in words; may be empty.
        version: The last version since then.
        makes_version: Whether it is this commit's own.
        num_samples: Of that version, as the two after it.
        num_shards: Its shards.
        num_bytes: Of its tars.
        state: Of the version that it makes: "last", "kept", "held" or "dropped"; None where it makes none.
        held_as: The names that the version that it makes is held under.
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


def print_log(url: str, *, prefix: str | None, as_json: bool, storage_options: StorageOptions) -> None:
    """A line a commit, or all of them as JSON.

    Raises:
        NotFoundError: There is no such dataset.
    """
    logs = [(found, _entries(*found)) for found in find_datasets(without_version(url), prefix, storage_options)]
    if as_json:
        facts = [
            {"url": found.store.url, "prefix": found.layout.prefix, **asdict(entry)}
            for found, log in logs
            for entry in log
        ]
        typer.echo(json.dumps(facts, indent=1))
        return
    for found, log in logs:
        typer.echo(str(found))
        for line in _lines([_HEADINGS, *map(_row, log)]):
            typer.echo(line)


def _entries(store: Store, layout: Layout) -> list[Entry]:
    """The log, newest first."""
    commits = history(store, layout)
    names = defaultdict[int, list[str]](list)
    for name, version in sorted(read_holds(store, layout, commits[-1]).items()):
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
    """What a commit did, by what it changed."""
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
    """Columns, as wide as they need to be: no line is cut at the width of a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if heading in _TO_THE_RIGHT else cell.ljust(width)
            for cell, width, heading in zip(row, widths, _HEADINGS, strict=True)
        ).rstrip()
        for row in rows
    ]
