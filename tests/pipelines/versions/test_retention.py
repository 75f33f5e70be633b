"""Which versions and intents a commit keeps: the arithmetic as tables, and the commit that follows from it."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import DAY_S, Retention, retain
from dray.shards import CallError, Store
from dray.shards.layout import Layout, Location
from dray.shards.log import Commit, Intent, create_commit, create_intent, new_write_id, now, read_head
from dray.shards.manifest import Accounting, Manifest, Shard
from tests.conftest import Place
from tests.support.datasets import store_at

NOW, GRACE_S = 1000.0, 100.0
OLD, EDGE, YOUNG = NOW - 500, NOW - GRACE_S, NOW - GRACE_S + 1  # the grace ends at the edge
LAYOUT = Layout("wds")


@pytest.mark.parametrize(
    ("keep", "times", "first"),
    [
        (1, [OLD], 1),
        (2, [OLD, OLD], 1),
        (2, [OLD, OLD, OLD], 2),
        (1, [OLD, OLD, OLD], 3),
        (1, [OLD, EDGE], 2),
        (1, [OLD, YOUNG], 1),  # superseded a moment ago
        (1, [OLD, OLD, YOUNG], 2),
        (1, [OLD, OLD, YOUNG, YOUNG], 2),
        (1, [OLD, YOUNG, YOUNG, YOUNG], 1),
        (3, [OLD, OLD, YOUNG, YOUNG], 2),
        (2, [OLD, OLD, OLD, YOUNG], 3),
        (9, [OLD, OLD, OLD], 1),
    ],
)
def test_the_first_version_that_is_kept(keep: int, times: list[float], first: int) -> None:
    """The last `keep` ones, and those superseded less than the grace ago."""
    versions = list(enumerate(times, 1))
    assert Retention(keep=keep, grace_s=GRACE_S).first_kept(versions, NOW) == first


def test_versions_keep_their_numbers_where_numbers_have_gaps() -> None:
    """Holds and gcs take numbers, too."""
    retention = Retention(keep=1, grace_s=GRACE_S)
    assert retention.first_kept([(3, OLD), (7, OLD), (9, OLD)], NOW) == 9
    assert retention.first_kept([(3, OLD), (7, OLD), (9, YOUNG)], NOW) == 7


def intent(number: int, first: int, count: int, created: str | None = None) -> Intent:
    return Intent(
        number=number,
        plan="",
        base=0,
        first=first,
        count=count,
        shards=tuple(range(first, first + count)),
        digests=("",) * count,
        write_id=new_write_id(),
        created=created or now(),
    )


@pytest.mark.parametrize(
    ("alive", "first_open"),
    [
        ([OLD], (2, 3)),
        ([YOUNG], (1, 0)),
        ([EDGE], (2, 3)),
        ([OLD, YOUNG], (2, 3)),
        ([OLD, OLD], (3, 5)),
        ([YOUNG, OLD], (1, 0)),
        ([OLD, OLD, OLD], (4, 5)),  # the third reserved nothing
        ([OLD, OLD, YOUNG], (3, 5)),
    ],
)
def test_the_first_intent_that_stays_open(alive: list[float], first_open: tuple[int, int]) -> None:
    """Its number and its first shard; where all are closed, those that come next."""
    intents = [intent(1, 0, 3), intent(2, 3, 2), intent(3, 5, 0)]
    retention = Retention(grace_s=GRACE_S)
    assert retention.first_open(list(zip(intents, alive, strict=False)), NOW) == first_open


@pytest.mark.parametrize("values", [{"keep": 0}, {"grace_s": -1}])
def test_a_rule_that_would_drop_the_last_version_is_refused(values: dict[str, int]) -> None:
    """At least one version, and no negative grace."""
    with pytest.raises(CallError):
        Retention(**values)


def commit_of(number: int, **values: int) -> Commit:
    commit = Commit(
        number=number,
        operation="build",
        version=number,
        intent=number,
        manifest="",
        num_samples=0,
        num_shards=0,
        num_bytes=0,
        write_id=new_write_id(),
        created=now(),
    )
    return replace(commit, **values)


@pytest.mark.parametrize(
    ("age_s", "shard_age_s", "open_intent"), [(10, None, 1), (2 * DAY_S, None, 2), (2 * DAY_S, 10, 1)]
)
def test_a_build_of_days_is_alive_while_it_stores_shards(
    tmp_path: Path, age_s: float, shard_age_s: float | None, open_intent: int
) -> None:
    """An intent is closed when neither it nor a shard under its numbers is younger than the grace."""
    store, present = Store(tmp_path), time.time()
    create_intent(
        Location(store, LAYOUT), intent(1, 0, 2, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(present - age_s)))
    )
    if shard_age_s is not None:
        store.put_new(LAYOUT.shard(1), b"a shard")
        os.utime(tmp_path / LAYOUT.shard(1), (present - shard_age_s,) * 2)
    kept = retain(Location(store, LAYOUT), commit_of(1), Retention())
    assert (kept.open_intent, kept.open_shard) == (open_intent, 0 if open_intent == 1 else 2)


@pytest.mark.parametrize(("number", "open_intent"), [(3, 2), (4, 1), (700_000, 1), (4 + 10**12, 2)])
def test_any_shard_under_reserved_numbers_keeps_an_intent_open(tmp_path: Path, number: int, open_intent: int) -> None:
    """Also if the intent does not name the shards to come."""
    store, created = Store(tmp_path), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 2 * DAY_S))
    create_intent(Location(store, LAYOUT), replace(intent(1, 4, 0, created), count=10**12, build_id="job"))
    store.put_new(LAYOUT.shard(number), b"a shard")
    kept = retain(Location(store, LAYOUT), commit_of(1), Retention())
    assert (kept.open_intent, kept.open_shard) == (open_intent, 4 if open_intent == 1 else 4 + 10**12)


def manifest_of(intent_number: int, *shards: int) -> Manifest:
    entries = tuple(
        Shard(number=number, num_bytes=1, num_samples=1, digest=f"{number}", index_digest="") for number in shards
    )
    return Manifest(
        prefix="wds",
        source_url="",
        recipe={},
        intent=intent_number,
        num_samples=len(shards),
        accounting=Accounting(inputs=len(shards), packed=len(shards)),
        parts=(),
        shards=entries,
        sources=(),
    )


@pytest.mark.parametrize(
    ("intent_number", "shards", "may_be_committed"),
    [
        (3, (0, 1, 10), True),
        (4, (10, 11), True),
        (3, (0, 1), True),  # the base's shards stay, whatever their numbers
        (2, (0, 10), False),  # a gc closed the intent
        (3, (0, 9), False),  # a gc may have deleted a shard that this build adopted
    ],
)
def test_a_build_never_commits_what_a_gc_gave_up(
    place: Place, intent_number: int, shards: tuple[int, ...], may_be_committed: bool
) -> None:
    """Its intent must be open still, and each of its shards of the base or of an open intent."""
    store = store_at(place)
    base = commit_version(Location(store, LAYOUT), manifest_of(1, 0, 1), None, retention=None)
    assert base is not None
    gc = replace(commit_of(2, version=1, open_intent=3, open_shard=10), operation="gc", manifest=base.commit.manifest)
    create_commit(Location(store, LAYOUT), replace(gc, intent=1))
    made = commit_version(Location(store, LAYOUT), manifest_of(intent_number, *shards), base, retention=None)
    assert (made is not None) == may_be_committed
    assert read_head(Location(store, LAYOUT)) == (made.commit if made else replace(gc, intent=1))


@pytest.mark.parametrize("has_base", [False, True])
def test_a_build_never_commits_over_a_version_that_it_did_not_see(place: Place, *, has_base: bool) -> None:
    """It plans again from there."""
    store = store_at(place)
    first = commit_version(Location(store, LAYOUT), manifest_of(1, 0), None, retention=None)
    other = commit_version(Location(store, LAYOUT), manifest_of(2, 1), first, retention=None)
    base = first if has_base else None
    assert commit_version(Location(store, LAYOUT), manifest_of(3, 2), base, retention=None) is None
    assert other is not None
    assert read_head(Location(store, LAYOUT)) == other.commit
