"""Single tensors and arrays are read by their layout: the values of the unpickler, and nothing that it refuses."""

import io
import pickle
import re
import struct
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dray.shards.codecs.pickles import layout
from dray.shards.codecs.pickles.layout import read
from dray.shards.codecs.pickles.unpickle import loads
from dray.shards.errors import RefusedError

PROTOCOLS = (3, 4, 5)
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES += ["complex64", "complex128"]
NEWER_DTYPES = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"]
SHAPES = [(), (0,), (1,), (7,), (300,), (2, 3), (0, 3), (3, 0, 2), (2, 3, 4), (1, 2, 1, 3), (1,) * 64]
LARGE = [(16_000,), (16_384,), (70_000,), (300, 257)]  # the pickler cuts frames near 64 KiB
ARRAY_DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


def slow(data: bytes) -> Any:
    """What the unpickler alone returns."""
    with patch.object(layout, "read", return_value=None):
        return loads(data)


def visible(value: Any) -> tuple[Any, ...]:
    """Everything observable of a tensor or array but OWNDATA, as numpy may keep a large array in the bytes read."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        layout = flags.c_contiguous, flags.f_contiguous, flags.writeable, flags.aligned
        return type(value), value.dtype, value.shape, value.strides, layout, value.tobytes()
    content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    place = value.device, value.storage_offset(), value.untyped_storage().nbytes()
    return type(value), value.dtype, value.shape, value.stride(), value.requires_grad, value.is_conj(), place, content


def outcome(data: bytes) -> Any:
    """What the unpickler alone returns, in that form, or the refusal."""
    try:
        return visible(slow(data))
    except RefusedError:
        return "refused"


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers that differ."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(getattr(torch, name))


# ---- what it reads ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_contiguous_tensor_is_read_at_once(name: str, shape: tuple[int, ...], protocol: int) -> None:
    """dtype, shape, stride, values and storage equal those of the unpickler and of pickle."""
    data = pickle.dumps(tensor(name, shape), protocol)
    found = read(data)
    assert found is not None
    assert visible(found) == visible(slow(data)) == visible(pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NEWER_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_newer_dtypes_are_read_at_once(name: str, shape: tuple[int, ...], protocol: int) -> None:
    """Another function of torch pickles them, which some versions of torch cannot read themselves."""
    expected = tensor(name, shape)
    found = read(pickle.dumps(expected, protocol))
    assert found is not None
    assert visible(found) == visible(expected) == visible(slow(pickle.dumps(expected, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_tensors_are_read_at_once(shape: tuple[int, ...], protocol: int) -> None:
    """Their elements are outside the pickler's frames."""
    data = pickle.dumps(tensor("float32", shape), protocol)
    found = read(data)
    assert found is not None
    assert visible(found) == visible(slow(data))


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("name", ARRAY_DTYPES)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES + LARGE if 0 not in shape], ids=str)
def test_a_plain_array_is_read_at_once(name: str, shape: tuple[int, ...], protocol: int) -> None:
    """dtype, shape, flags and values equal those of the unpickler and of pickle."""
    data = pickle.dumps((np.arange(np.prod(shape, dtype=int)) % 251).reshape(shape).astype(name), protocol)
    found = read(data)
    assert found is not None
    assert visible(found) == visible(slow(data)) == visible(pickle.loads(data))


@given(st.lists(st.integers(0, 5), max_size=6), st.sampled_from(DTYPES), st.sampled_from(PROTOCOLS))
@example([1] * 60 + [2, 300], "int8", 4)
@example([300, 70_000, 0], "int8", 4)
def test_every_shape_is_read(shape: list[int], name: str, protocol: int) -> None:
    """Law: a contiguous tensor of any shape is read by its layout and equals what the unpickler returns."""
    data = pickle.dumps(tensor(name, tuple(shape)), protocol)
    found = read(data)
    assert found is not None
    assert visible(found) == visible(slow(data))


@pytest.mark.parametrize("value", [torch.zeros(3), np.zeros(3)], ids=["tensor", "array"])
def test_what_is_read_owns_its_memory(value: Any) -> None:
    """It can be written to and resized without changing the input or a second reading, also from a view."""
    data = pickle.dumps(value, 4)
    for given_data in (data, memoryview(data)):
        found: Any = read(given_data)
        found += 7
        found.resize_(10) if isinstance(found, torch.Tensor) else found.resize(10)
        assert read(given_data).tolist() == [0, 0, 0]  # type: ignore[union-attr]


def test_no_caller_sees_another_ones_tensor() -> None:
    """Shapes are cached from one pickle to the next; values are not."""
    first, second = (loads(pickle.dumps(torch.full((2, 2), value))) for value in (1.0, 2.0))
    assert first.tolist() == [[1, 1], [1, 1]]
    assert second.tolist() == [[2, 2], [2, 2]]


def test_every_copy_of_a_storage_key_is_the_same() -> None:
    """The key may be any pointer, such as that of another process."""
    data = pickle.dumps(torch.ones(2))
    (key,) = set(re.findall(rb"\d{8,}", data))  # a pointer: as long as it happens to be
    found = read(data.replace(key, b"1" * len(key)))
    assert found is not None
    assert found.tolist() == [1, 1]


# ---- what is left to the unpickler ----

BASE = torch.arange(24.0).reshape(4, 6)
OTHERS: dict[str, Any] = {
    "transposed": BASE.T,
    "slice": BASE[1:],
    "first rows of more": BASE[:2],
    "expanded": torch.ones(3).expand(2, 3),
    "gradient": torch.ones(2, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "conjugate": torch.tensor([1j]).conj(),
    "storage": torch.ones(2).untyped_storage(),
    "list": [torch.ones(2)],
    "dict": {"a": torch.ones(2), "b": np.ones(2)},
    "fortran array": np.asfortranarray(np.ones((2, 3))),
    "other byte order": np.ones(2, ">f4"),
    "text array": np.array(["a"]),
    "array of nothing": np.zeros((0, 3)),
    "objects": np.array([1, None], dtype=object),
    "structure": np.zeros(2, [("a", "f4")]),
    "numpy scalar": np.float32(1),
    "number": 1,
    "nothing": None,
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_left(name: str, protocol: int) -> None:
    """The unpickler reads views, Parameters, containers and other values."""
    assert read(pickle.dumps(OTHERS[name], protocol)) is None


def pack(tail: bytes = b"K\x00K\x02\x85\x94K\x01\x85\x94", count: int = 2, content: bytes = bytes(8)) -> bytes:
    """A tensor of two floats with another offset, size and stride, another count, other elements."""
    stream = io.BytesIO()
    torch.save(torch.zeros(2).untyped_storage(), stream, _use_new_zipfile_serialization=False)
    held = stream.getvalue()[: -8 - 8].replace(b"torch.storage\nUntypedStorage", b"torch\nFloatStorage")
    held += struct.pack("<q", count) + content
    good = pickle.dumps(torch.zeros(2), 4)
    after = good[good.index(b"\x94\x89\x8c\x0bcollections") + 1 :]
    body = good[11 : good.index(b"B", 60)] + b"B" + struct.pack("<I", len(held)) + held
    body += b"\x94\x85\x94R\x94" + tail + after
    return b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body


GOOD = pickle.dumps(torch.zeros(2), 4)
MOON = b"J\xff\xff\xff\x7f"
HOSTILE = {
    "more elements than there are": pack(count=3),
    "fewer elements than there are": pack(count=1),
    "a negative count": pack(count=-2),
    "a count beyond memory": pack(count=1 << 61),
    "a count that wraps round": pack(count=(1 << 62) + 2 - (1 << 63)),
    "a size beyond the storage": pack(b"K\x00K\x03\x85\x94K\x01\x85\x94"),
    "a size beyond memory": pack(b"K\x00" + b"(" + MOON * 4 + b"t\x94" + b"(K\x01K\x01K\x01K\x01t\x94"),
    "a negative size": pack(b"K\x00J\xfe\xff\xff\xff\x85\x94K\x01\x85\x94"),
    "two negative sizes": pack(b"K\x00J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86\x94K\x01K\x01\x86\x94"),
    "a negative stride": pack(b"K\x01K\x02\x85\x94J\xff\xff\xff\xff\x85\x94"),
    "a stride beyond the storage": pack(b"K\x00K\x02\x85\x94K\x02\x85\x94"),
    "an offset beyond the storage": pack(b"K\x01K\x02\x85\x94K\x01\x85\x94"),
    "a negative offset": pack(b"J\xff\xff\xff\xffK\x02\x85\x94K\x01\x85\x94"),
    "more sizes than strides": pack(b"K\x00K\x01K\x02\x86\x94K\x01\x85\x94"),
    "too many dimensions": pack(b"K\x00" + 2 * (b"(" + b"K\x01" * 65 + b"t\x94"), count=1, content=bytes(4)),
    "elements cut short": pack(content=bytes(7)),
    "elements and more": pack(content=bytes(9)),
    "a byte behind": GOOD + b"\x00",
    "a pickle behind": GOOD + GOOD,
    "half of it": GOOD[: len(GOOD) // 2],
    "a frame that is longer": GOOD[:3] + b"\xff" * 8 + GOOD[11:],
    "a frame that is shorter": GOOD[:3] + struct.pack("<Q", 5) + GOOD[11:],
    "elements longer than a pickle": GOOD.replace(b"B\x03\x01\x00\x00", b"B\xff\xff\xff\xff"),
    "another function": GOOD.replace(b"_load_from_bytes", b"_load_from_bytez"),
    "a pickle in the storage": GOOD.replace(b"ctorch\nFloatStorage", b"cos\nsystem         "),
    "another class of hooks": GOOD.replace(b"OrderedDict", b"defaultdict"),
    "an array of more": pickle.dumps(np.zeros(2), 4).replace(b"K\x02\x85", b"K\x03\x85"),
    "an array of less": pickle.dumps(np.zeros(2), 4).replace(b"K\x02\x85", b"K\x01\x85"),
    "an array of another order": pickle.dumps(np.zeros(2), 4).replace(b"\x01<", b"\x01|"),
    "an array of more in protocol 5": pickle.dumps(np.zeros(2), 5).replace(b"K\x02\x85", b"K\x03\x85"),
    "an array of less in protocol 5": pickle.dumps(np.zeros(2), 5).replace(b"K\x02\x85", b"K\x01\x85"),
    "an array beyond memory in protocol 5": pickle.dumps(np.zeros(2), 5).replace(
        b"\x96\x10" + bytes(7), b"\x96" + b"\xff" * 8
    ),
    "an array beyond memory": pickle.dumps(np.zeros(2), 4).replace(b"C\x10", b"C\xff"),
}


@pytest.fixture(scope="module")
def events() -> Iterator[list[str]]:
    """Every audit event since the list was last cleared."""
    seen: list[str] = []
    state = {"on": True}

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if state["on"]:
            seen.append(event)

    sys.addaudithook(hook)
    yield seen
    state["on"] = False


def test_what_hostile_pickles_are_made_of_is_good() -> None:
    """The pickles below are refused for their one fault, as this has none."""
    found = read(pack())
    assert found is not None
    assert visible(found) == visible(torch.zeros(2))


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_left_and_refused(case: str, events: list[str]) -> None:
    """It does not match, without an import, a file or a call; the unpickler refuses it."""
    assert HOSTILE[case] not in (GOOD, pickle.dumps(np.zeros(2), 4), pickle.dumps(np.zeros(2), 5))
    events.clear()
    found = read(HOSTILE[case])
    assert (found, events) == (None, [])
    with pytest.raises(RefusedError):
        loads(HOSTILE[case])


@pytest.mark.parametrize("value", [torch.ones(2, 3), torch.ones((), dtype=torch.uint16), np.ones(3)], ids=str)
def test_reading_touches_nothing(value: Any, events: list[str]) -> None:
    """Not one audit event (import, file, code), for a new shape and for a known one."""
    data = pickle.dumps(value, 4)
    events.clear()
    first, second = read(data), read(data)
    assert events == []
    assert visible(first) == visible(second) == visible(value)


SMALL = {
    **{f"tensor in protocol {n}": pickle.dumps(torch.tensor([[1.5, 2.5]]), n) for n in PROTOCOLS},
    "number": pickle.dumps(torch.tensor(3, dtype=torch.int8), 4),
    "newer dtype": pickle.dumps(torch.tensor([3, 4], dtype=torch.uint16), 4),
    "array": pickle.dumps(np.array([[1.5, 2.5]], "f4"), 4),
    "array in protocol 5": pickle.dumps(np.array([[1.5, 2.5]], "f4"), 5),
    "large array": pickle.dumps(np.zeros(70_000, "i1"), 4),
    "large tensor": pickle.dumps(torch.zeros(70_000, dtype=torch.int8), 4),
}


@pytest.mark.parametrize("name", SMALL)
def test_no_other_byte_makes_it_looser(name: str) -> None:
    """Each byte (outside the elements of a large one) replaced by each value: left, or what the unpickler returns."""
    good, read_ones = SMALL[name], 0
    places = [at for at in range(len(good)) if at < 450 or at > len(good) - 150]
    for at in places:
        changed = bytearray(good)
        for value in {0, 1, 255, good[at] ^ 1, good[at] ^ 128, *b"KMJ()tq\x94\x85\x86\x87\x88\x89BC\x95RX.", *b"1<|b"}:
            changed[at] = value
            found = read(bytes(changed))
            if found is not None:
                read_ones += 1
                assert visible(found) == outcome(bytes(changed)), (at, value)
    assert 0 < read_ones < 30 * len(places)


@pytest.mark.parametrize("name", list(SMALL)[:-2])
def test_a_byte_more_or_less_is_left(name: str) -> None:
    """Truncated anywhere it is left; with a byte more or less it is left, or what the unpickler returns."""
    good = SMALL[name]
    for at in range(len(good)):
        assert read(good[:at]) is None
        for other in (good[:at] + good[at + 1 :], *(good[:at] + bytes([n]) + good[at:] for n in b"\x00\x01\x94KBq0.")):
            found = read(other)
            assert found is None or visible(found) == outcome(other), (at, other)


@given(data=st.data())
def test_damaged_and_spliced_pickles_are_left_or_read_alike(data: st.DataObject) -> None:
    """Law: whatever matches is what the unpickler returns for the same bytes."""
    good = bytearray(SMALL[data.draw(st.sampled_from(list(SMALL)[:-2]))])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        if data.draw(st.booleans()):
            good[at] = data.draw(st.integers(0, 255))
        else:
            stop = data.draw(st.integers(at, min(at + 12, len(good))))
            good[at:stop] = data.draw(st.binary(max_size=12))
            good = good or bytearray(b".")
    if len(good) > 11 and good[2:3] == b"\x95" and data.draw(st.booleans()):
        good[3:11] = struct.pack("<Q", len(good) - 11)  # so that not every splice fails by its frame
    found = read(bytes(good))
    assert found is None or visible(found) == outcome(bytes(good))
