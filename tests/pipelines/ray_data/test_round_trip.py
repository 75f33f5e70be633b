"""Through Ray Data and back: what was read from files, passed on and written is read again unchanged."""

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dray.pipelines import read_pickles, read_shards, write_shards

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.heavy]  # a cluster; other modules read and write
Rows = dict[str, dict[str, Any]]  # key -> values by suffix
INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = arrays.from_dtype(np.dtype("f4"), allow_nan=False)


@st.composite
def rows_of_any_kind(draw: st.DrawFn) -> Rows:
    """Up to 12 samples; each column has values of one kind."""
    shape = draw(arrays.array_shapes(max_dims=3, max_side=3))
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "tensor.pyd": arrays.arrays("f4", shape, elements=FLOATS),
        "ragged.pyd": arrays.arrays("i8", st.tuples(st.integers(0, 4)), elements=INTS),
        "whole.pyd": INTS,
        "real.pyd": st.floats(allow_nan=False, allow_infinity=False),
        "flag.pyd": st.booleans(),
        "text.pyd": st.text(st.characters(exclude_categories=["Cs"])),
        "dict.pyd": st.fixed_dictionaries({"a": INTS, "b": st.lists(st.floats(0, 1), min_size=1)}),
    }
    suffixes = draw(st.sets(st.sampled_from(sorted(kinds)), min_size=1))
    keys = draw(st.sets(st.from_regex(r"[a-z0-9]{1,5}", fullmatch=True), min_size=1, max_size=12))
    return {key: {suffix: draw(kinds[suffix]) for suffix in sorted(suffixes)} for key in sorted(keys)}


def passed_through(folder: Path, rows: Rows) -> Rows:
    (folder / "in").mkdir()
    for key, values in rows.items():
        for suffix, value in values.items():
            (folder / "in" / f"{key}.{suffix}").write_bytes(pickle.dumps(value))
    suffixes = list(next(iter(rows.values())))
    dataset = read_pickles(folder / "in", suffixes=suffixes).map_batches(lambda batch: batch)
    write_shards(dataset, folder / "out", samples_per_shard=5, progress=False)
    found = read_shards(folder / "out").take_all()
    assert [row["__key__"] for row in found] == sorted(rows)
    return {row.pop("__key__"): {name.partition(".")[0]: value for name, value in row.items()} for row in found}


def is_same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    return bool(found == expected)


def check(rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = passed_through(Path(folder), rows)
    for key, values in rows.items():
        for suffix, value in values.items():
            assert is_same(found[key][suffix.partition(".")[0]], value), (key, suffix, found[key], value)


def test_samples_come_back_unchanged() -> None:
    """Keys and values: arrays of one and of several shapes, numbers, text, dicts."""
    assert ray.is_initialized()
    check(
        {
            f"s{number}": {
                "tensor.pyd": np.full((2, 3), number, "f4"),
                "ragged.pyd": np.arange(number),
                "whole.pyd": number,
                "text.pyd": f"note {number}",
                "dict.pyd": {"a": number, "b": [0.5] * number},
            }
            for number in range(1, 10)
        }
    )


@settings(max_examples=25, deadline=None)
@given(rows_of_any_kind())
def test_any_samples_come_back_unchanged(rows: Rows) -> None:
    """The law of which the test above is an example."""
    check(rows)
