"""Progress of long work: a bar on a terminal, a plain line every 10 s elsewhere (a job's log), or nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dray.pipelines.events import stage

LINE_EVERY_S = 10.0
WORDS: ContextVar[Callable[[str], str]] = ContextVar("WORDS", default=str)
"""Rewrites the Python keywords in a message for the caller: the command line sets it to name its options."""


@contextmanager
def shard_progress(title: str, *, num_shards: int, show: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of bytes of each stored shard. Observers are notified in any case."""
    with (
        stage(title, total=num_shards, unit="shards") as report,
        _shown_shards(title, num_shards, show=show and num_shards > 0) as draw,
    ):

        def advance(num_bytes: int) -> None:
            report(1, num_bytes)
            draw(num_bytes)

        yield advance


@contextmanager
def _shown_shards(title: str, num_shards: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(title, total=num_shards, mb=0.0)
            yield lambda num_bytes: bar.update(task, advance=1, mb=bar.tasks[0].fields["mb"] + num_bytes / 1e6)
    else:
        yield _line_writer(title, num_shards)


@contextmanager
def sample_progress(title: str, *, total: int | None, unit: str, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with the number of samples, or inputs, that are done, and the bytes stored for them.

    Args:
        title: What is done.
        total: Number of them; None if unknown.
        unit: Their name, in plural.
        show: Whether to show progress; observers are notified in any case.
    """
    with (
        stage(title, total=total, unit=unit) as report,
        _shown_samples(title, total, unit, show=show and total != 0) as draw,
    ):

        def advance(count: int, num_bytes: int) -> None:
            report(count, num_bytes)
            draw(count, num_bytes)

        yield advance


@contextmanager
def _shown_samples(title: str, total: int | None, unit: str, *, show: bool) -> Iterator[Callable[[int, int], None]]:
    if not show:
        yield lambda _count, _num_bytes: None
    elif sys.stderr.isatty():
        with _rate_bar(unit) as bar:
            yield _rate_mover(bar, bar.add_task(title, total=total, mb=0.0, rate=0.0))
    else:
        yield _rate_writer(title, total, unit)


def say(text: str, *, show: bool = True) -> None:
    """Print one plain line to standard error."""
    if show:
        print(f"dray: {WORDS.get()(text)}", file=sys.stderr, flush=True)  # noqa: T201 - a job's log is read as lines


def _bar() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    return Progress(
        *columns, TextColumn("{task.fields[mb]:,.0f} MB"), TimeElapsedColumn(), console=Console(stderr=True)
    )


def _rate_bar(unit: str) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    rate = TextColumn("{task.fields[mb]:,.0f} MB, {task.fields[rate]:,.0f}/s")
    return Progress(*columns, rate, TimeElapsedColumn(), console=Console(stderr=True))


def _rate_mover(bar: Progress, task: TaskID) -> Callable[[int, int], None]:
    started = time.monotonic()
    done = stored_bytes = 0

    def advance(count: int, num_bytes: int) -> None:
        nonlocal done, stored_bytes
        done, stored_bytes = done + count, stored_bytes + num_bytes
        rate = done / max(time.monotonic() - started, 1e-9)
        bar.update(task, completed=done, mb=stored_bytes / 1e6, rate=rate)

    return advance


def _rate_writer(title: str, total: int | None, unit: str) -> Callable[[int, int], None]:
    started = last = time.monotonic()
    done = stored_bytes = 0
    of = "" if total is None else f" of {total:,}"

    def advance(count: int, num_bytes: int) -> None:
        nonlocal last, done, stored_bytes
        done, stored_bytes = done + count, stored_bytes + num_bytes
        if (now := time.monotonic()) - last >= LINE_EVERY_S:
            last, seconds = now, now - started
            rate = done / seconds
            megabytes = f"{stored_bytes / 1e6:,.0f} MB, {stored_bytes / 1e6 / seconds:,.0f} MB/s"
            say(f"{title}: {done:,}{of} {unit}, {megabytes}, {seconds:.0f} s, {rate:,.0f} a second")

    return advance


def _line_writer(title: str, num_shards: int) -> Callable[[int], None]:
    started = last = time.monotonic()
    shards = num_bytes = 0

    def advance(shard_bytes: int) -> None:
        nonlocal last, shards, num_bytes
        shards, num_bytes = shards + 1, num_bytes + shard_bytes
        if (now := time.monotonic()) - last >= LINE_EVERY_S:
            last = now
            say(f"{title}: {shards} of {num_shards} shards, {num_bytes / 1e6:,.0f} MB, {now - started:.0f} s")

    return advance
