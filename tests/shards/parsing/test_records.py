"""Forged manifests, commits and intents are refused by name."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest

from dray.shards.errors import DamagedError
from dray.shards.index import digest_of
from dray.shards.layout import Layout, Location
from dray.shards.log import Commit, Intent, new_write_id, now, read_commit, read_intent
from dray.shards.manifest import Accounting, Manifest, Shard, TableChunk
from dray.shards.parsing.records import HEADER, read_record
from dray.shards.parts import PartForms
from dray.shards.storage.store import Store
from dray.shards.versions import Holds, read_holds
from tests.support.datasets import recipe_of

LAYOUT, DIGEST = Layout("wdshards"), "ab" * 16
SHARD = Shard(number=0, num_bytes=4096, num_samples=2, digest=DIGEST, index_digest=DIGEST, parts={"cls": 2})
MANIFEST = Manifest(
    prefix="wdshards",
    source_url="file:///in",
    recipe={**recipe_of("cls"), "encode": {"cls": "json"}, "allow": ["a.B"], "allow_pickle": True, "later": [{}]},
    intent=1,
    num_samples=4,
    accounting=Accounting(inputs=5, packed=4, skipped=1),
    parts=(PartForms(name="cls", forms={"cls": 4, "cls.json": 0}),),
    shards=(SHARD, replace(SHARD, number=1, parts=None)),
    sources=(TableChunk(intent=1, digest=DIGEST, num_rows=4),),
    left_out=TableChunk(intent=1, digest=DIGEST, num_rows=1),
)
COMMIT = Commit(
    number=7, operation="build", version=7, intent=1, manifest=DIGEST, num_samples=4, num_shards=2, num_bytes=8192,
    kept_from=5, holds=DIGEST, hold={"best": 3}, open_intent=1, open_shard=0, write_id=new_write_id(), created=now(),
)  # fmt: skip
INTENT = Intent(
    number=3, plan=DIGEST, base=0, first=10, count=2, shards=(4, 10, 11), digests=(DIGEST,) * 3, created=now(),
    build_id="job-7", write_id=new_write_id(),
)  # fmt: skip

NO_NUMBERS = [None, "1", 1.0, True, -1, 10**30, [1], {}, float("nan")]
NO_TEXTS = [None, 1, ["a"], "\ud800"]
NO_DIGESTS = [*NO_TEXTS, "", "../../../../etc/passwd", "AB" * 16, DIGEST + "\n"]


def with_values(record: Any, changes: Mapping[str, object]) -> bytes:
    """Returns the JSON of a record with values replaced at paths such as `shards/0/number`; `...` removes a value."""
    values = json.loads(json.dumps({**HEADER, **asdict(record)}))
    for path, value in changes.items():
        *parents, last = [int(step) if step.isdecimal() else step for step in path.split("/")]
        place = values
        for step in parents:
            place = place[step]
        place[last] = value
        if value is ...:
            del place[last]
    return json.dumps(values).encode()


def numbers_of(*paths: str) -> dict[str, list[Any]]:
    return dict.fromkeys(paths, NO_NUMBERS)


HOSTILE_HEADER: Mapping[str, list[Any]] = {
    "format": [None, "2", [2], True, -1],
    "features": [None, "a", {}, [1], [["a"]], ["b", "a"], ["a", "a"], ["\ud800"]],
}
HOSTILE_MANIFEST: Mapping[str, list[Any]] = {
    **numbers_of("intent", *(f"accounting/{name}" for name in ("inputs", "packed", "empty", "skipped", "quarantined"))),
    **numbers_of("parts/0/forms/cls", "num_samples"),
    **numbers_of("shards/0/number", "shards/0/num_bytes", "shards/0/num_samples", "shards/0/parts/cls"),
    **numbers_of("sources/0/num_rows", "sources/0/intent", "left_out/num_rows"),
    **dict.fromkeys(("prefix", "source_url"), NO_TEXTS),
    **dict.fromkeys(("shards/0/digest", "shards/1/index_digest", "sources/0/digest", "left_out/digest"), NO_DIGESTS),
    **HOSTILE_HEADER,
    "kind": [*NO_TEXTS, "", "other"],
    "base": [1, "", "s3://bucket/tars"],
    "num_samples": [*NO_NUMBERS, 3, 5],
    "parts": [None, [], {}, "", [None], [{"name": "cls"}], [{"name": "cls", "forms": {"cls": 4}}] * 2],
    "parts/0/name": NO_TEXTS,
    "parts/0/dtype": ["<f4", "|O8", "x", 1],
    "parts/0/shape": [[2], [-1], 3, ["2"]],
    "parts/0/forms": [None, [], {}, {"CLS": 4}, {"cls": 3}, {"cls": 4, "other": 1}],
    "shards": [None, [], {}, "", [None], [[]]],
    "shards/0/name": [1, "", "other.tar"],
    "shards/0/etag": [1, "other"],
    "shards/0/mtime": [-1, "1", 1.5, 7],
    "sources": [None, [], {}],
    "samples": [1, [], {}, [{"intent": 1, "digest": DIGEST, "num_rows": 3}]],
    "left_out": [None, [], 0, {}],
    "accounting": [None, {}, {"inputs": 5}],
    "shards/1/number": [0, 10**18],
    "recipe": [None, {}, [], "x"],
    "recipe/suffixes": [None, [], "cls", [1], ["a/b"], ["x", "X"], [".."], [["x"]]],
    "recipe/transform": [1, [], False],
    "recipe/num_shards": ["1", 0, -1, True, 1.0],
    "recipe/shard_bytes": [None, 0, True, "1"],
    "recipe/shard_samples": [None, 0, 1.5],
    "recipe/shuffle_seed": ["1", 1.0, False],
    "recipe/encode": [None, 1, ["json"], {"cls": 1}],
    "recipe/allow": [None, "a", [1]],
    "recipe/allow_pickle": [None, 1],
    "recipe/later": [float("inf"), float("nan"), {"a": ["\ud800"]}],
}
INDEXED = replace(
    MANIFEST, kind="indexed", base="s3://bucket/tars", source_url="", recipe={},
    accounting=Accounting(inputs=0, packed=0),
    shards=(replace(SHARD, name="a/0.tar", etag="e", mtime=1), replace(SHARD, number=1, name="b.tar")),
    sources=None, samples=MANIFEST.sources, left_out=None,
)  # fmt: skip
HOSTILE_INDEXED: Mapping[str, list[Any]] = {
    "base": [1, "", "tars", "/tars", "file:///a/../b", "ftp://bucket/tars", "s3://bucket/tars/", "s3://user@bucket/x"],
    "shards/0/name": [1, "", "/etc/passwd", "../x.tar", "a/../x.tar", "a//x.tar", "x\n.tar"],
    "shards/0/etag": [1, "\ud800"],
    "shards/0/mtime": NO_NUMBERS[1:],
    "shards/0/num_bytes": [*NO_NUMBERS, 1023, 2**40 + 1],
    "samples": [None, [], {}],
    "accounting/inputs": [1],
}
# The tar of a shard has room for its samples and is at most 4 GiB; every count agrees with the others.
IMPOSSIBLE_COUNTS = [
    {"shards/0/num_samples": 10**10, "accounting/packed": 10**10 + 2, "num_samples": 10**10 + 2},
    {"shards/0/num_samples": 2**63 - 1},
    {"shards/0/num_samples": 7, "accounting/packed": 9, "accounting/inputs": 10, "sources/0/num_rows": 9},
    {"shards/0/num_samples": 0, "accounting/packed": 2, "accounting/inputs": 3, "sources/0/num_rows": 2},
    {"shards/0/num_bytes": 2**32 + 512},
    {"sources/0/num_rows": 3},
    {"left_out/num_rows": 2},
]
HOSTILE_HOLDS = [None, [], {"": 3}, {"a/b": 3}, {"\x1b[2J": 3}, {"best": 8}, {"best": 0}]
HOSTILE_COMMIT: Mapping[str, list[Any]] = {
    **HOSTILE_HEADER,
    **numbers_of("number", "version", "intent", "num_samples", "num_shards", "num_bytes", "kept_from"),
    **numbers_of("open_intent", "open_shard", "hold/best"),
    "number": [*NO_NUMBERS, 6, 8],
    "version": [*NO_NUMBERS, 0, 8],
    "kept_from": [*NO_NUMBERS, 0, 8],
    "hold": HOSTILE_HOLDS,
    "holds": [value for value in NO_DIGESTS if value is not None],
    "manifest": [*NO_TEXTS, "../x", "ab"],
    "operation": [*NO_TEXTS, "", "\x1b[2J", "a" * 33],
    "created": [*NO_TEXTS, "", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01", "9999999-01-01T00:00:00Z"],
    "write_id": NO_TEXTS,
}
HOSTILE_INTENT: Mapping[str, list[Any]] = {
    **HOSTILE_HEADER,
    **numbers_of("base", "first", "count", "shards/0"),
    "number": [*NO_NUMBERS, 2],
    "count": [*NO_NUMBERS, 3, 4, 10**10],
    "first": [*NO_NUMBERS, 9, 2**63 - 1],
    "shards": [None, [], {}, [4, 10], [4, 10, 10], [4, 10, 12]],
    "digests": [None, [], [DIGEST] * 2, [DIGEST] * 4, [1] * 3, DIGEST],
    "plan": NO_TEXTS,
    "build_id": [1, [], "", "../x", "a b", "a" * 129, "\x1b[2J"],
    "created": [*NO_TEXTS, "yesterday"],
}


def put(store: Store, name: str, body: bytes) -> Store:
    store.put_new(name, body)
    return store


def test_what_the_cases_start_from_is_good() -> None:
    """Otherwise the cases would be refused for another reason."""
    for manifest in (MANIFEST, INDEXED, replace(MANIFEST, kind="written")):
        assert Manifest.from_bytes(manifest.to_bytes(), "x") == manifest
    for record, name, read in ((COMMIT, LAYOUT.commit(7), read_commit), (INTENT, LAYOUT.intent(3), read_intent)):
        store = put(Store(f"memory://{new_write_id()}"), name, with_values(record, {}))
        assert read(Location(store, LAYOUT), record.number) == record


@pytest.mark.parametrize(
    ("manifest", "path", "values"),
    [(MANIFEST, *case) for case in HOSTILE_MANIFEST.items()] + [(INDEXED, *case) for case in HOSTILE_INDEXED.items()],
)
def test_a_hostile_manifest_is_damage(manifest: Manifest, path: str, values: list[Any]) -> None:
    """The error names the record and the next command."""
    for value in values:
        body = with_values(manifest, {path: value})
        with pytest.raises(DamagedError, match=r"at/x.json: not a readable manifest \(.*\): dray log .* dray rollback"):
            Manifest.from_bytes(body, "at/x.json")


@pytest.mark.parametrize("changes", IMPOSSIBLE_COUNTS, ids=repr)
def test_counts_that_cannot_be_are_damage(changes: Mapping[str, int]) -> None:
    """The number of samples determines the memory of a loader, so it is checked against the size of the tars."""
    with pytest.raises(DamagedError, match=r"at/x\.json: not a readable manifest"):
        Manifest.from_bytes(with_values(MANIFEST, changes), "at/x.json")


@pytest.mark.parametrize("path", HOSTILE_COMMIT)
def test_a_hostile_commit_is_damage(path: str) -> None:
    """The error names the record and the next command."""
    for value in HOSTILE_COMMIT[path]:
        store = put(Store(f"memory://{new_write_id()}"), LAYOUT.commit(7), with_values(COMMIT, {path: value}))
        with pytest.raises(DamagedError, match=r"/0000000007.json: not a readable commit \(.*\): restore it from a co"):
            read_commit(Location(store, LAYOUT), 7)


@pytest.mark.parametrize("holds", [*HOSTILE_HOLDS, *({"best": number} for number in NO_NUMBERS)], ids=repr)
def test_a_hostile_list_of_holds_is_damage(holds: object) -> None:
    """The error names the commit, and a gc stops."""
    body = with_values(Holds(holds={}), {"holds": holds})
    store = put(Store(f"memory://{new_write_id()}"), LAYOUT.hold_list(digest_of(body)), body)
    with pytest.raises(
        DamagedError, match=r"holds/\w{32}.json: not a readable list of the holds of commit 7 \(.*\): re"
    ):
        read_holds(Location(store, LAYOUT), replace(COMMIT, holds=digest_of(body)))


@pytest.mark.parametrize("path", HOSTILE_INTENT)
def test_a_hostile_intent_is_damage(path: str) -> None:
    """The error names the record and the next command."""
    for value in HOSTILE_INTENT[path]:
        store = put(Store(f"memory://{new_write_id()}"), LAYOUT.intent(3), with_values(INTENT, {path: value}))
        with pytest.raises(DamagedError, match=r"/0000000003.json: not a readable intent \(.*\): restore it from a co"):
            read_intent(Location(store, LAYOUT), 3)


@pytest.mark.parametrize(("first", "count"), [(0, 2**63 - 1), (10**18, 1), (10**18 - 2, 3)])
def test_an_intent_cannot_reserve_numbers_that_no_shard_has(first: int, count: int) -> None:
    """This holds for intents without digests too."""
    intent = replace(INTENT, first=first, count=count, shards=(), digests=())
    store = put(Store(f"memory://{new_write_id()}"), LAYOUT.intent(3), with_values(intent, {}))
    with pytest.raises(DamagedError, match=rf"number 3 reserves {count} shards from {first} on"):
        read_intent(Location(store, LAYOUT), 3)


def test_what_may_be_left_out_has_its_default() -> None:
    """A commit without holds has none; the error for a missing required value names it."""
    optional = dict.fromkeys(("kept_from", "holds", "hold", "open_intent", "open_shard"), ...)
    found = read_record(Commit, with_values(COMMIT, optional))
    assert found == replace(COMMIT, kept_from=1, holds=None, hold={}, open_intent=1, open_shard=0)
    with pytest.raises(ValueError, match="Commit without manifest, version"):
        read_record(Commit, with_values(COMMIT, {"version": ..., "manifest": ...}))


@pytest.mark.parametrize("changes", [{"format": 1}, {"format": 3}, {"features": ["x"]}], ids=repr)
def test_a_manifest_of_another_version_of_dray_says_what_to_do(changes: Mapping[str, object]) -> None:
    """The error says what to do and does not report damage."""
    body = with_values(MANIFEST, changes)
    with pytest.raises(DamagedError, match=r"^at/x\.json: (?:format|unknown features) .*(?:upgrade dray|rebuild it)"):
        Manifest.from_bytes(body, "at/x.json")


def test_unknown_fields_are_ignored_at_every_level() -> None:
    """Later versions of dray may add fields."""
    body = with_values(MANIFEST, {"later": 1, "shards/0/later": [{}], "accounting/later": None})
    assert Manifest.from_bytes(body, "x") == MANIFEST


@pytest.mark.parametrize("path", ["prefix", "shards", *(f"recipe/{name}" for name in recipe_of("x"))])
def test_what_a_manifest_lacks_is_damage(path: str) -> None:
    """Nullable fields such as the number of shards are required too."""
    with pytest.raises(DamagedError, match=r"at/x\.json: not a readable manifest"):
        Manifest.from_bytes(with_values(MANIFEST, {path: ...}), "at/x.json")


NO_JSON = [b"", b"\xff", b"null", b"[]", b"[" * 200_000, b'{"format": 2, "number": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: repr(body[:30]))
def test_bytes_that_are_no_record_are_damage(body: bytes) -> None:
    """No RecursionError or other error of the JSON parser escapes."""
    store = Store(f"memory://{new_write_id()}")
    put(put(store, LAYOUT.commit(7), body), LAYOUT.intent(3), body)
    readers: list[Callable[[], object]] = [
        lambda: Manifest.from_bytes(body, "x"),
        lambda: read_commit(Location(store, LAYOUT), 7),
        lambda: read_intent(Location(store, LAYOUT), 3),
    ]
    for read in readers:
        with pytest.raises(DamagedError, match="not a readable"):
            read()
