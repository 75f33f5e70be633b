"""Announcing a version whose shards are not known beforehand.

Its intent reserves a range of numbers. A `build_id` finds the intent again after a failure, so that a rerun adopts what
is stored.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dray.pipelines.versions.attempts import stored_sizes
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.version import Writing
from dray.shards.errors import CallError
from dray.shards.index import digest_of
from dray.shards.layout import Location
from dray.shards.log import (
    BUILD_ID,
    Intent,
    create_intent,
    new_write_id,
    now,
    numbers_in,
    read_head,
    read_intent,
)
from dray.shards.manifest import Kind
from dray.shards.parsing.records import canonical_json
from dray.shards.snapshot import Snapshot

RESERVED = 1_000_000  # numbers that an intent reserves where the number of shards is not known


def open_written(location: Location) -> Snapshot | None:
    """Returns the last version of a dataset that programs write; None if there is none.

    Raises:
        CallError: The dataset is of another kind; says what to do.
    """
    head = read_head(location)
    if head is None:
        return None
    last = Snapshot.load(location, head)
    if last.manifest.kind != Kind.WRITTEN:
        how = "indexes tars that dray did not write" if last.manifest.kind == Kind.INDEXED else "was made by a build"
        raise CallError(f"{last.name} {how}, so nothing is written there: choose another url or prefix")
    return last


def announce_writing(
    location: Location,
    recipe: Mapping[str, Any],
    base: Snapshot | None,
    *,
    build_id: str | None = None,
    count: int | Callable[[], int] = RESERVED,
    retention: Retention | None = None,
    progress: bool = True,
) -> Writing:
    """Returns a version that is announced: under the open intent with this `build_id`, or a new one.

    Args:
        location: Where the dataset is.
        recipe: What decides the bytes. An intent is found again only with an equal one.
        base: The last version.
        build_id: Name by which a rerun finds what this run stored; None: it is not found again.
        count: Number of shard numbers to reserve, or a function that determines it, called if there is no such intent.
        retention: Which versions the commit keeps; None: all.
        progress: Whether to show progress on standard error.

    Raises:
        CallError: `build_id` is not a name, or was used with another recipe, or for an earlier version.
    """
    if build_id is not None and not (isinstance(build_id, str) and BUILD_ID.fullmatch(build_id)):
        raise CallError(f"build_id={build_id!r:.80}: expected up to 128 letters, digits and _ . : -")
    plan = digest_of(canonical_json(recipe))
    log = _open_intents(location, base)
    intent = _known(log, build_id)
    reserved = count if isinstance(count, int) else 0 if intent else count()
    while intent is None:
        wanted = _next_intent(location, log, base, plan, build_id, reserved)
        standing = create_intent(location, wanted)
        log.append(standing)
        intent = standing if standing.write_id == wanted.write_id else _known([standing], build_id)
    _check_same(location, intent, plan, base)
    return Writing(
        location=location,
        base=base,
        intent=intent,
        retention=retention,
        progress=progress,
        started=time.monotonic(),
    )


def _open_intents(location: Location, base: Snapshot | None) -> list[Intent]:
    """Returns the intents that may still be committed, or the last one."""
    numbers = numbers_in(location.store, location.layout.intents)
    first = base.commit.open_intent if base else 1
    return [read_intent(location, number) for number in [n for n in numbers if n >= first] or numbers[-1:]]


def _known(log: Sequence[Intent], build_id: str | None) -> Intent | None:
    return next((intent for intent in log if build_id is not None and intent.build_id == build_id), None)


def _next_intent(
    location: Location, log: Sequence[Intent], base: Snapshot | None, plan: str, build_id: str | None, count: int
) -> Intent:
    stored = (location.layout.shard_number(name) for name in stored_sizes(location))
    taken = [number for number in stored if number is not None]
    return Intent(
        number=log[-1].number + 1 if log else 1,
        plan=plan,
        base=base.version if base else 0,
        first=max([*taken, *(intent.numbers.stop - 1 for intent in log), -1]) + 1,
        count=count,
        shards=(),
        digests=(),
        build_id=build_id,
        write_id=new_write_id(),
        created=now(),
    )


def _check_same(location: Location, intent: Intent, plan: str, base: Snapshot | None) -> None:
    if intent.plan != plan:
        raise CallError(f"build_id={intent.build_id!r} was used at {location} with other arguments: choose another one")
    if base is not None and intent.number < base.manifest.intent:
        raise CallError(
            f"build_id={intent.build_id!r} was used at {location} before version {base.version} was made: "
            "choose another one"
        )
