"""Stacking: a batch made at once equals the decoded parts; parts that cannot be stacked are left to the decoder."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.loaders.batching.buffers import BufferPool
from dray.loaders.batching.collate import stacked as stacked_values
from dray.loaders.batching.stacking import LARGE_BYTES, THREAD_BYTES, PartLayout, Stacker
from dray.shards.codecs.decode import decode_part
from tests.support.datasets import npy

DTYPES = ["float32", "float64", "float16", "int64", "int32", "uint8", "bool", "complex64"]


def parts_of(values: list[np.ndarray[Any, Any]], how: str, protocol: int = 5) -> tuple[str, list[bytes]]:
    """Returns suffix and bytes of a `.npy`, or of a pickled tensor or array."""
    if how == "npy":
        return "x.npy", [npy(value) for value in values]
    made: list[Any] = [torch.from_numpy(value) if how == "tensor" else value for value in values]
    return "x.pyd", [pickle.dumps(value, protocol) for value in made]


def stacked(suffix: str, parts: list[Any]) -> torch.Tensor | None:
    stacker = Stacker(BufferPool(), num_threads=2)
    return stacker.stack(parts, stacker.layouts(suffix, parts))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["npy", "tensor", "array"]),
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(1, 6),
    st.integers(3, 5),
)
def test_a_batch_is_what_the_decoder_gives(how: str, dtype: str, shape: list[int], count: int, protocol: int) -> None:
    """Parts of any dtype, shape and encoding give the dtype, shape and elements of the stacked values."""
    random = np.random.default_rng(count)
    values = [np.asarray(random.integers(0, 2, shape)).astype(dtype) for _ in range(count)]
    suffix, parts = parts_of(values, how, protocol)
    found = stacked(suffix, parts)
    expected = stacked_values([decode_part(suffix, part) for part in parts])
    assert isinstance(expected, torch.Tensor)
    if how == "array" and protocol == 3:  # the decoder handles numpy's arrays in protocol 3
        assert found is None
        return
    assert found is not None
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found, expected)


def test_large_parts_are_copied_by_threads() -> None:
    """They go into pooled memory, with the same elements as small ones."""
    values = [
        np.arange(LARGE_BYTES, dtype=np.float32) + number for number in range(3 * THREAD_BYTES // (4 * LARGE_BYTES))
    ]
    found = stacked(*parts_of(values, "npy"))
    assert found is not None
    assert torch.equal(found, torch.from_numpy(np.stack(values)))


def test_pickles_of_two_lengths_make_one_batch() -> None:
    """The address in a pickle has more digits in some than in others."""
    parts = [pickle.dumps(torch.full((3,), float(number))) for number in range(40)]
    longer = [
        part.replace(_name(part), b"X%c\0\0\0" % (len(_name(part)) - 4) + b"1" + _name(part)[5:]) for part in parts
    ]
    mixed = [part if number % 3 else longer[number] for number, part in enumerate(parts)]
    # The frame and the length before the storage are of the old size: such a pickle is not one that torch writes.
    assert stacked("x.pyd", mixed) is None
    sizes = {len(part) for part in parts}
    assert len(sizes) <= 2
    found = stacked("x.pyd", parts)
    assert found is not None
    assert found[:, 0].tolist() == list(range(40))


def _name(part: bytes) -> bytes:
    layout = PartLayout.of("x.pyd", part)
    assert layout is not None
    assert layout.names is not None
    return part[layout.names[0].start - 5 : layout.names[0].stop]


@pytest.mark.parametrize("how", ["npy", "tensor", "array"])
def test_what_differs_around_the_elements_is_left_to_the_decoder(how: str) -> None:
    """A change of any byte around them in the second part is noticed, except for equal digits of the address."""
    suffix, (first,) = parts_of([np.arange(4.0)], how)
    layout = PartLayout.of(suffix, first)
    assert layout is not None
    second = first[: layout.start] + (np.arange(4.0) + 1).tobytes() + first[layout.stop :]
    names = {place for name in layout.names or () for place in range(name.start, name.stop)}
    outside = [place for place in range(len(second)) if not layout.start <= place < layout.stop]
    for place in outside:
        changed = bytearray(second)
        changed[place] ^= 1
        assert stacked(suffix, [first, bytes(changed)]) is None, (place, place in names)


def test_both_names_of_a_storage_may_change_together() -> None:
    """The digits only have to be equal, as for the unpickler."""
    part = pickle.dumps(torch.arange(4.0))
    layout = PartLayout.of("x.pyd", part)
    assert layout is not None
    assert layout.names is not None
    for digit, is_stacked in ((b"7", True), (b"a", False)):
        changed = bytearray(part)
        for name in layout.names:
            changed[name.start : name.start + 1] = digit
        assert (stacked("x.pyd", [part, bytes(changed)]) is not None) == is_stacked


@pytest.mark.parametrize(
    "values",
    [
        [np.zeros(3), np.zeros(4)],
        [np.zeros((2, 3)), np.zeros((3, 2))],
        [np.zeros(2, np.float32), np.zeros(1, np.float64)],
        [np.zeros(0), np.zeros(0)],
        [np.asfortranarray(np.zeros((2, 3)))] * 2,
        [np.zeros(2, ">f4")] * 2,
        [np.array(["a", "b"])] * 2,
        [np.zeros(2, "M8[s]")] * 2,
    ],
)
def test_what_is_not_alike_or_no_tensor_is_left(values: list[np.ndarray[Any, Any]]) -> None:
    """Ragged and empty parts, foreign byte orders, text and times are not stacked."""
    assert stacked(*parts_of(values, "npy")) is None


def test_a_stretch_of_no_parts_is_left() -> None:
    """A rank may have no sample in the last step of a group."""
    stacker, part = Stacker(BufferPool(), num_threads=1), npy(np.zeros(3))
    whole, none = stacker.stacks("x.npy", [part, part], [(0, 2), (2, 2)])
    assert whole is not None
    assert whole.shape == (2, 3)
    assert none is None


def test_a_missing_or_broken_part_is_left() -> None:
    """The decoder raises the error."""
    whole = npy(np.zeros(3))
    bad_headers = [whole.replace(b"}", b" "), whole.replace(b"(3,)", b"(-3)"), whole.replace(b"'<f8'", b"12345")]
    for broken in (None, whole[:-1], whole + b"\0", b"", b"\x93NUMPY\x01\x00", *bad_headers):
        assert stacked("x.npy", [whole, broken]) is None
        assert stacked("x.npy", [broken, whole]) is None


def test_kinds_that_were_seen_once_do_not_stick() -> None:
    """Parts of the same size and another dtype follow: their new layout is recognised."""
    stacker = Stacker(BufferPool(), num_threads=1)
    for dtype in (np.float32, np.int32, np.float32):
        parts = [npy(np.arange(4, dtype=dtype))] * 2
        found = stacker.stack(parts, stacker.layouts("x.npy", parts))
        assert found is not None
        assert found.numpy().dtype == dtype


def test_a_kept_batch_keeps_its_memory() -> None:
    """Memory is reused only if nothing refers to it: no view, and no array made of the tensor."""
    pool = BufferPool()
    first = pool.take(100)
    row = first.fill_(1).view(10, 10)[3]
    array = pool.take(100).fill_(2).numpy()
    address = first.data_ptr()
    del first
    assert pool.take(100).fill_(3).data_ptr() not in (address, array.ctypes.data)
    assert row.tolist() == [1] * 10
    assert array.tolist() == [2] * 100
    del row
    again = [pool.take(100) for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in again]
