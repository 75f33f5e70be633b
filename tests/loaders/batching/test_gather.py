"""Compiled gathering: the usual checksum, every byte checked, and no access outside of the parts."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from dray.loaders.batching.gather import gather
from dray.pipelines import pickles_to_tars

SIZE, START, STOP = 400, 100, 350
NAMES = (20, 110, 12)  # before the elements and after them


def call(parts: list[bytes], **other: Any) -> tuple[int, np.ndarray[Any, Any]]:
    """Returns the number of correct parts, and a buffer with a row before and a row after those for their elements."""
    arrays = [np.frombuffer(part, np.uint8) for part in parts]
    start, stop, names = other.get("start", START), other.get("stop", STOP), other.get("names", (0, 0, 0))
    edges = other.get("edges", parts[0][:start] + parts[0][stop:])
    is_fixed = np.ones(len(edges), np.uint8)
    for first in names[:2]:
        is_fixed[first : first + names[2]] = 0
    rows = other.get("rows", np.arange(len(parts)) + 1)
    out = np.full((len(parts) + 2, stop - start if 0 <= start < stop <= 300_001 else STOP - START), 7, np.uint8)
    done = gather(
        np.array([array.ctypes.data for array in arrays], np.uint64),
        np.array([xxh3_64_intdigest(part) for part in parts], np.uint64) ^ other.get("spoilt", np.uint64(0)),
        other.get("targets", out.ctypes.data + rows * out.shape[1]).astype(np.uint64),
        other.get("size", len(parts[0])),
        start,
        stop,
        edges,
        other.get("is_fixed", is_fixed.tobytes()),
        *names,
    )
    return done, out


def some_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def some_parts(count: int) -> list[bytes]:
    """Returns parts with equal edges."""
    edges = some_bytes(SIZE)
    return [edges[:START] + some_bytes(STOP - START, number) + edges[STOP:] for number in range(count)]


@pytest.mark.parametrize("sizes", [range(1, 1400), range(2040, 2060), [4096, 16_385, 40_000, 300_001]])
def test_the_checksum_is_xxh3(sizes: Any) -> None:
    """It holds for sizes around the ends of its blocks and stripes."""
    for size in sizes:
        assert call([some_bytes(size, size)], start=0, stop=size)[0] == 1, size


@given(st.data(), st.integers(1, 70_000), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_elements_go_where_they_belong(data: Any, size: int, count: int) -> None:
    """At any offset in a part and in any order of rows; other rows are unchanged."""
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    edges = some_bytes(size)
    parts = [edges[:start] + some_bytes(stop - start, number) + edges[stop:] for number in range(count)]
    rows = np.array(data.draw(st.permutations(range(1, count + 1))))
    done, out = call(parts, start=start, stop=stop, rows=rows)
    assert done == count
    for row, part in zip(rows, parts, strict=True):
        assert out[row].tobytes() == part[start:stop]
    assert (out[[0, -1]] == 7).all()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_byte_of_the_edges_is_compared(number: int) -> None:
    """A byte that differs stops the gathering at its part, although the checksum matches the part."""
    parts = some_parts(3)
    for place in (*range(START), *range(STOP, SIZE)):
        changed = bytearray(parts[number])
        changed[place] ^= 1
        others = [*parts[:number], bytes(changed), *parts[number + 1 :]]
        assert call(others, edges=parts[-1 - number // 2][:START] + parts[-1 - number // 2][STOP:])[0] == number


def test_a_wrong_checksum_ends_the_gathering_at_its_part() -> None:
    """Any wrong bit of it is noticed."""
    for bit in range(64):
        assert call(some_parts(3), spoilt=np.array([0, 1 << bit, 0], np.uint64))[0] == 1


@pytest.mark.parametrize(
    ("first", "second", "is_right"),
    [(b"123456789012", b"123456789012", True), (b"0" * 12, b"0" * 11 + b"1", False), (b"12345678901a",) * 2 + (False,)],
)
def test_names_are_the_same_digits(first: bytes, second: bytes, is_right: bool) -> None:
    """One name precedes the elements, the other follows them."""
    model, part = some_parts(1) * 2
    behind = NAMES[1] + STOP - START
    part = part[:20] + first + part[32:behind] + second + part[behind + 12 :]
    assert call([part], names=NAMES, edges=model[:START] + model[STOP:])[0] == is_right


@pytest.mark.parametrize(
    "other",
    [
        {"size": -1},
        {"size": SIZE + 1},
        {"start": -1},
        {"start": STOP},
        {"stop": SIZE + 1},
        {"stop": 2**62},
        {"edges": b"short"},
        {"is_fixed": b"short"},
        {"names": (145, 0, 6)},
        {"names": (0, 95, 12)},
        {"names": (-1, 0, 3)},
        {"names": (0, 0, 2**62)},
        {"targets": np.array([1])},
    ],
)
def test_what_does_not_belong_together_is_refused(other: dict[str, Any]) -> None:
    """They raise an error before anything is read or written."""
    edges, is_fixed = bytes(150), bytes(150)
    with pytest.raises(ValueError, match="inconsistent sizes and offsets"):
        call(some_parts(2), **{"edges": edges, "is_fixed": is_fixed, **other})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Arrays of two dtypes that have the same size, pickled tensors, and tensors of another shape."""
    folder = tmp_path_factory.mktemp("gather")
    names = [f"s{number:03d}" for number in range(120)]
    for number, name in enumerate(names):
        values = np.full(100, number, np.float32 if number < 70 else np.int32)
        (folder / f"{name}.array.pyd").write_bytes(pickle.dumps(values, 4))
        (folder / f"{name}.tensor.pyd").write_bytes(pickle.dumps(torch.full((90,), float(number))))
        ragged = torch.full((80 + number % 3, 1), float(number))
        (folder / f"{name}.ragged.pyd").write_bytes(pickle.dumps(ragged))
    suffixes = ["array.pyd", "tensor.pyd", "ragged.pyd"]
    pickles_to_tars(folder, names, suffixes, f"{folder}-out", "wdshards", min_num_shards=3, progress=False)
    return f"{folder}-out"


DIGEST = """
import sys
if sys.argv[2] == "without":
    sys.modules["dray.loaders.batching.gather"] = None  # as if it was not compiled
import numpy as np
from xxhash import xxh3_64
from dray.loaders import ShardLoader
found = xxh3_64()
loader = ShardLoader(sys.argv[1], batch_size=7, shuffle=True, remainder="keep", stack={"tensor.pyd"})
arrays = ShardLoader(sys.argv[1], parts="array.pyd", batch_size=7)  # the dtype changes between two batches
for batch in (*loader, *loader, *arrays):
    for suffix, values in sorted(batch.items()):
        for row in values if isinstance(values, list) else [values]:
            found.update(f"{suffix} {type(row)} {row.dtype} {tuple(row.shape)}".encode())
            found.update(np.asarray(row).tobytes())
print(found.hexdigest())
"""


def test_without_compiled_code_batches_are_the_same(url: str) -> None:
    """Two shuffled epochs are equal bit for bit: with changing dtypes, tensors of different shapes, and plain ones."""
    runs = [
        subprocess.run([sys.executable, "-c", DIGEST, url, how], capture_output=True, text=True, timeout=120)
        for how in ("with", "without")
    ]
    assert [run.stderr for run in runs] == ["", ""]
    assert len(runs[0].stdout.strip()) == 16
    assert runs[0].stdout == runs[1].stdout
