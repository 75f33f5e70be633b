"""Forged tables are refused before they take memory or are used."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dray.pipelines.building.tables import parquet_of
from dray.shards.errors import DamagedError
from dray.shards.index import digest_of
from dray.shards.log import put_content
from dray.shards.parsing.parquet import LEFT_OUT, read_table, source_schema
from dray.shards.snapshot import Snapshot
from tests.conftest import MakeInputs, Place
from tests.support.datasets import build, latest

N = 6
SCHEMA = source_schema(["x"])
COLUMNS: Mapping[str, Any] = {
    "key": list("abcdef"),
    "name": list("abcdef"),
    "shard": [0, 0, 0, 1, 1, 1],
    "row": [0, 1, 2, 0, 1, 2],
    "x/size": [1] * N,
    "x/stamp": [1] * N,
    "x/xxh3_64": [1] * N,
}
GOOD = pa.table(dict(COLUMNS), schema=SCHEMA)


def written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def with_column(name: str, values: pa.Array) -> bytes:
    """Returns the valid table with one column replaced."""
    return parquet_of(GOOD.set_column(GOOD.schema.get_field_index(name), name, values))


def nulls(count: int) -> bytes:
    """A few bytes could encode a billion of them."""
    return parquet_of(pa.table({field.name: pa.nulls(count, field.type) for field in SCHEMA}))


def long_name() -> bytes:
    """Returns 100 MB of one letter in a file of some kilobytes."""
    return with_column("name", pa.array(["a" * 100_000_000, *"bcdef"]))


def with_page_bytes(size: int) -> bytes:
    """Returns the table with this size in the header of the first page: a zigzag number after the type of the page."""
    body = bytearray(parquet_of(GOOD))
    assert body[4:7] == b"\x15\x00\x15"
    start, number = 7, bytearray()
    end = next(place for place in range(start, start + 10) if body[place] < 128) + 1
    value = 2 * size
    while value > 127:
        number.append(value & 127 | 128)
        value >>= 7
    return bytes(body[:start] + number + bytes([value]) + body[end:])


HOSTILE: Mapping[str, Callable[[], bytes]] = {
    "no Parquet": lambda: b"PAR1" + bytes(100) + b"PAR1",
    "cut": lambda: parquet_of(GOOD)[:-20],
    "fewer rows": lambda: parquet_of(GOOD[:5]),
    "more rows": lambda: parquet_of(pa.concat_tables([GOOD, GOOD[:1]])),
    "no columns": lambda: parquet_of(GOOD.select([])),
    "a column too many": lambda: parquet_of(GOOD.append_column("y", GOOD["row"])),
    "another order": lambda: parquet_of(GOOD.select(GOOD.column_names[::-1])),
    "a column twice": lambda: parquet_of(pa.table([*GOOD.columns, GOOD["key"]], [*GOOD.column_names, "key"])),
    "numbers of 32 bits": lambda: with_column("row", pa.array([0] * N, pa.int32())),
    "unsigned stamps": lambda: with_column("x/stamp", pa.array([0] * N, pa.uint64())),
    "floats": lambda: with_column("row", pa.array([0.0] * N)),
    "keys of bytes": lambda: with_column("key", pa.array([b"a"] * N)),
    "keys of large strings": lambda: with_column("key", pa.array(["a"] * N, pa.large_string())),
    "keys that are no UTF-8": lambda: with_column("key", pa.array([b"\xff"] * N).view(pa.string())),
    "lists": lambda: with_column("row", pa.array([[0]] * N)),
    "a null": lambda: with_column("row", pa.array([None, 1, 2, 0, 1, 2], pa.int64())),
    "nothing but nulls": lambda: nulls(N),
    "a dictionary": lambda: written(GOOD, compression="zstd"),
    "another encoding": lambda: written(GOOD, use_dictionary=False, column_encoding={"key": "DELTA_BYTE_ARRAY"}),
    "pages of version 2": lambda: written(GOOD, use_dictionary=False, data_page_version="2.0"),
    "more bytes than such a file can have": long_name,
    "a page of 2 GB": lambda: with_page_bytes(2**31 - 1),
    "a page of fewer bytes than its rows": lambda: with_page_bytes(5),
    "a page of negative size": lambda: with_page_bytes(2**63 - 1),
}


def test_a_good_table_comes_back() -> None:
    """The number of row groups and pages does not matter."""
    assert read_table(parquet_of(GOOD), SCHEMA, N).equals(GOOD)
    some = written(GOOD, use_dictionary=False, row_group_size=2, compression="snappy")
    assert read_table(some, SCHEMA, N).equals(GOOD)
    assert len(read_table(parquet_of(LEFT_OUT.empty_table()), LEFT_OUT, 0)) == 0


def test_many_pages_are_read() -> None:
    """A column has more values than fit into a page."""
    count = 50_000
    random = np.random.default_rng(0).integers(2**62, size=count)
    texts, numbers = [str(number) for number in random], dict.fromkeys(SCHEMA.names[2:], random)
    table = pa.table({"key": texts, "name": texts, **numbers}, schema=SCHEMA)
    assert read_table(parquet_of(table), SCHEMA, count).equals(table)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_table_is_refused(what: str) -> None:
    """Every case raises ValueError, whatever error Arrow raises."""
    with pytest.raises(ValueError, match=r".+"):
        read_table(HOSTILE[what](), SCHEMA, N)


def test_nulls_take_no_memory() -> None:
    """A page of a few bytes could claim a billion nulls with a matching number of rows."""
    with pytest.raises(ValueError, match="a page is not as dray writes it"):
        read_table(nulls(1_000_000), SCHEMA, 1_000_000)


def with_sources(snapshot: Snapshot, table: pa.Table) -> Snapshot:
    """Returns the snapshot with another table of sources."""
    body, (chunk,) = parquet_of(table), snapshot.manifest.sources
    put_content(snapshot.store, snapshot.layout.table(1, digest_of(body)), body)
    sources = (replace(chunk, intent=1, digest=digest_of(body), num_rows=len(table)),)
    return replace(snapshot, manifest=replace(snapshot.manifest, sources=sources))


CONTRADICTIONS: Mapping[str, Callable[[pa.Table], pa.Table]] = {
    "keys are out of order": lambda table: table.take([1, 0, *range(2, 20)]),
    "or contain duplicates": lambda table: table.take([0, 0, *range(2, 20)]),
    "shard or a row that the version does not have": lambda table: set_first(table, "shard", 99),
    "shard or a row": lambda table: set_first(table, "shard", -1),
    "a row that the version does not have": lambda table: set_first(table, "row", 5),
    "shard or a row that": lambda table: set_first(table, "row", -1),
    "two samples are in one row": lambda table: set_first(table, "row", 1),
}


def set_first(table: pa.Table, name: str, value: int) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array([value, *table[name].to_pylist()[1:]]))


def test_sources_that_contradict_the_shards_are_damage(make_inputs: MakeInputs) -> None:
    """Each sample of the shards must have exactly one key."""
    place = Place("memory://contradictions")
    build(make_inputs(20), place)
    snapshot = latest(place)
    for message, change in CONTRADICTIONS.items():
        changed = with_sources(snapshot, change(snapshot.sources()))
        with pytest.raises(DamagedError, match=f"memory://.*parquet: not a readable table .*{message}.*dray rollback"):
            changed.sources()


def test_what_was_left_out_must_agree_with_the_accounting(make_inputs: MakeInputs) -> None:
    """A table with other outcomes is damage."""
    place, inputs = Place("memory://outcomes"), make_inputs(4)
    inputs.path(inputs.names[0], inputs.suffixes[0]).unlink()
    build(inputs, place, on_error="skip", min_num_shards=1)
    snapshot = latest(place)
    counts = replace(snapshot.manifest.accounting, skipped=0, quarantined=1)
    with pytest.raises(DamagedError, match="0 skipped and 1 quarantined expected"):
        replace(snapshot, manifest=replace(snapshot.manifest, accounting=counts)).left_out()
