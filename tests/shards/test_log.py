"""A record of the logs is created once, names its writer, and is the same for all writers despite store faults."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.errors import DamagedError, DeniedError, ExistsError, NotFoundError, StoreError
from dray.shards.layout import Layout, Location
from dray.shards.log import (
    Commit,
    Intent,
    create_commit,
    create_intent,
    new_write_id,
    now,
    numbers_in,
    read_commit,
    read_head,
    read_intent,
)
from dray.shards.parsing.records import HEADER, canonical_json, write_record
from dray.shards.storage.store import Store
from tests.conftest import Place

LAYOUT = Layout("wdshards")


@pytest.fixture
def store(place: Place) -> Store:
    """A store at a new place of each kind."""
    return Store(place.url, place.storage_options)


def a_commit(version: int = 1) -> Commit:
    """Returns a commit with a new write id."""
    return Commit(
        number=version,
        operation="build",
        version=version,
        intent=1,
        manifest="ab" * 16,
        num_samples=1,
        num_shards=1,
        num_bytes=1,
        write_id=new_write_id(),
        created=now(),
    )


def an_intent(number: int = 1) -> Intent:
    """Returns an intent of two shards with a new write id."""
    return Intent(
        number=number,
        plan="cd" * 16,
        base=0,
        first=0,
        count=2,
        shards=(0, 1),
        digests=("ef" * 16, "01" * 16),
        write_id=new_write_id(),
        created=now(),
    )


def test_a_commit_comes_back_as_it_was(store: Store) -> None:
    """It is the last version."""
    assert read_head(Location(store, LAYOUT)) is None
    commit = a_commit(1)
    assert create_commit(Location(store, LAYOUT), commit) == read_commit(Location(store, LAYOUT), 1) == commit
    assert read_head(Location(store, LAYOUT)) == commit


def test_an_intent_comes_back_as_it_was(store: Store) -> None:
    """Numbers and digests keep their order, and the intent is not a version."""
    intent = an_intent(3)
    assert create_intent(Location(store, LAYOUT), intent) == read_intent(Location(store, LAYOUT), 3) == intent
    assert (numbers_in(store, LAYOUT.intents), read_head(Location(store, LAYOUT))) == ([3], None)


DIGEST = st.text("0123456789abcdef", min_size=32, max_size=32)


@given(st.lists(st.integers(0, 10**9), unique=True), st.integers(0, 5), st.data())
@settings(max_examples=50, deadline=None)
def test_any_intent_comes_back(adopted: list[int], count: int, data: st.DataObject) -> None:
    """The intent may have no shards, many shards, or shards that are not known in advance."""
    store = Store(f"memory://{new_write_id()}")
    first = max(adopted, default=-1) + 1
    shards = tuple(data.draw(st.permutations([*adopted, *range(first, first + count)])))
    digests = tuple(data.draw(st.lists(DIGEST, min_size=len(shards), max_size=len(shards))))
    number = data.draw(st.integers(1, 10**10 - 2))
    if not shards:
        first, count = data.draw(st.integers(0, 10**17)), data.draw(st.integers(0, 9 * 10**17))
    build_id = data.draw(st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}", fullmatch=True))
    intent = replace(an_intent(number), first=first, count=count, shards=shards, digests=digests, build_id=build_id)
    create_intent(Location(store, LAYOUT), intent)
    assert read_intent(Location(store, LAYOUT), intent.number) == intent


def test_the_last_version_is_the_highest_number(store: Store) -> None:
    """Other files in the folder and logs of other prefixes are ignored."""
    for version in (1, 2, 10):
        create_commit(Location(store, LAYOUT), a_commit(version))
    for name in ("notes.txt", "0000000099.json.tmp", "99.json", "deeper/0000000099.json"):
        store.put_new(f"{LAYOUT.commits}/{name}", b"")
    create_commit(Location(store, Layout("other")), a_commit(50))
    assert numbers_in(store, LAYOUT.commits) == [1, 2, 10]
    head = read_head(Location(store, LAYOUT))
    assert head is not None
    assert head.version == 10


def test_a_commit_is_small() -> None:
    """A commit takes at most 4 KiB, whatever its numbers."""
    numbers = dict.fromkeys(
        ("intent", "num_samples", "num_shards", "num_bytes", "open_intent", "open_shard"), 2**63 - 1
    )
    records = dict.fromkeys(("number", "version", "kept_from"), 10**10 - 2)
    hold = {"a" * 64: 10**10 - 2}
    commit = replace(a_commit(), operation="a" * 32, holds="ab" * 16, hold=hold, **numbers, **records)
    assert len(write_record(commit)) <= 4096


def test_racing_writers_agree_on_one_commit(store: Store) -> None:
    """Each writer gets its own commit or that of the winner."""
    commits = [a_commit() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda commit: create_commit(Location(store, LAYOUT), commit), commits))
    assert found == [read_commit(Location(store, LAYOUT), 1)] * 4
    assert found[0] in commits


def test_a_second_commit_learns_of_the_first(store: Store) -> None:
    """The first is recognised by its write id, and nothing changes."""
    first = create_commit(Location(store, LAYOUT), a_commit())
    assert create_commit(Location(store, LAYOUT), a_commit()) == first == read_commit(Location(store, LAYOUT), 1)


class LostReply(Store):
    """Stores an object and then reports a failure."""

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        super().put_new(name, data)
        raise StoreError("no answer")


class Conflicting(Store):
    """Answers "exists" (409) a few times although the object does not exist."""

    def __init__(self, url: str, times: int) -> None:
        super().__init__(url)
        self.times = times

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.times -= 1
        if self.times >= 0:
            raise ExistsError(f"cannot write {name}: conflict")
        super().put_new(name, data)


class Denying(Store):
    """Refuses every write."""

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        raise DeniedError(f"cannot write {name}: permission denied")


def test_a_commit_whose_reply_was_lost_is_recognised_as_ours() -> None:
    """The stored commit has our write id, so the build succeeded."""
    commit = a_commit()
    assert create_commit(Location(LostReply("memory://log-lost"), LAYOUT), commit) == commit


def test_a_lost_reply_does_not_hide_a_lost_race() -> None:
    """If the stored commit is from another writer, an error is raised."""
    url = "memory://log-lost-race"
    first = create_commit(Location(Store(url), LAYOUT), a_commit())
    assert create_commit(Location(LostReply(url), LAYOUT), a_commit()) == first


def test_a_store_that_never_takes_a_commit_fails_with_its_own_error() -> None:
    """The error comes after a few attempts, and there is no version."""
    with pytest.raises(ExistsError, match="conflict"):
        create_commit(Location(Conflicting("memory://log-never", times=99), LAYOUT), a_commit())
    with pytest.raises(DeniedError, match="permission denied"):
        create_commit(Location(Denying("memory://log-never"), LAYOUT), a_commit())
    assert read_head(Location(Store("memory://log-never"), LAYOUT)) is None


def test_reading_no_record_is_not_found(store: Store) -> None:
    """A version that was never committed raises NotFoundError."""
    with pytest.raises(NotFoundError, match=r"commits/0000000007\.json"):
        read_commit(Location(store, LAYOUT), 7)


def _changed(**values: object) -> bytes:
    return json.dumps({**HEADER, **asdict(a_commit()), **values}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe\0",
        b"null",
        b"5",
        b"[1]",
        b'"text"',
        b"{}",
        b"[" * 4096,
        b'{"format": 2, "features": []}',
        _changed()[:-1],
        _changed(features=None),
        _changed(features=[1]),
        _changed(features=["b", "a"]),
        _changed(format="2"),
        _changed(version="1"),
        _changed(number=2),
        _changed(manifest=None),
        _changed(manifest=["ab"]),
        _changed(write_id={}),
        _changed(created="yesterday"),
    ],
    ids=lambda body: body[:80].decode("latin-1"),
)
def test_a_garbage_record_is_damage(body: bytes) -> None:
    """The error names the URL, and writers treat the number as used."""
    store = Store(f"memory://{new_write_id()}")
    store.put_new(LAYOUT.commit(1), body)
    for act in (
        lambda: read_commit(Location(store, LAYOUT), 1),
        lambda: create_commit(Location(store, LAYOUT), a_commit()),
    ):
        _assert_damaged(act, f"{store.url}/__dray__/wdshards/commits/0000000001.json: not a readable commit")


def _assert_damaged(act: Callable[[], object], message: str) -> None:
    with pytest.raises(DamagedError) as caught:
        act()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "format 1 was written by an older dray; rebuild it, as this one reads 2"),
        ({"format": 3}, "format 3 was written by a newer dray, and this one reads 2: upgrade dray"),
        ({"features": ["columns", "packs"]}, "unknown features 'columns', 'packs': upgrade dray"),
    ],
)
def test_a_record_of_another_version_of_dray_says_what_to_do(changes: dict[str, object], message: str) -> None:
    """This holds even if the rest of the record is unreadable."""
    store = Store(f"memory://{new_write_id()}")
    store.put_new(LAYOUT.commit(1), _changed(**changes, version="none"))
    with pytest.raises(DamagedError, match=f"commits/0000000001.json: {message}$"):
        read_commit(Location(store, LAYOUT), 1)


def test_an_unknown_field_is_ignored() -> None:
    """Fields that a reader must understand are features."""
    store = Store(f"memory://{new_write_id()}")
    store.put_new(LAYOUT.commit(1), _changed(write_id="a", created="2026-01-01T00:00:00Z", later={"a": [1]}))
    expected = replace(a_commit(), write_id="a", created="2026-01-01T00:00:00Z")
    assert read_commit(Location(store, LAYOUT), 1) == expected


def test_a_dataset_of_format_1_must_be_rebuilt() -> None:
    """Its records were in another folder; a dataset with another prefix can start beside it."""
    store = Store(f"memory://{new_write_id()}")
    store.put_new("_dray/wdshards/commits/0000000001.json", b"{}")
    with pytest.raises(DamagedError, match=r"_dray/wdshards was written by an older dray; rebuild it: build into"):
        read_head(Location(store, LAYOUT))
    assert read_head(Location(store, Layout("other"))) is None


def test_a_commit_is_no_intent() -> None:
    """A record of the wrong kind is damage."""
    store = Store("memory://log-kinds")
    store.put_new(LAYOUT.intent(1), _changed())
    with pytest.raises(DamagedError, match="not a readable intent"):
        read_intent(Location(store, LAYOUT), 1)


@given(st.dictionaries(st.text(), st.integers() | st.text()))
@settings(max_examples=50, deadline=None)
def test_canonical_json_depends_on_the_value_alone(value: dict[str, int | str]) -> None:
    """The insertion order does not matter."""
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)
    assert json.loads(canonical_json(value)) == value


def test_write_ids_are_never_the_same() -> None:
    """A write id has 128 random bits."""
    assert len({new_write_id() for _ in range(1000)}) == 1000
