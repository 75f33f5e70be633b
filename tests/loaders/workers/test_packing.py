"""Packed values arrive equal, in memory that is reused only when nothing refers to it."""

import gc
import os
import pickle
from collections.abc import Iterator
from multiprocessing import Pipe
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dray.loaders.workers.packing import pack, unpack
from dray.loaders.workers.shared_memory import ReceiveBuffers, SendBuffers


@pytest.fixture
def sides() -> Iterator[tuple[SendBuffers, ReceiveBuffers]]:
    """Returns a worker's buffers and the trainer's, in a pass."""
    reading, writing = Pipe(duplex=False)
    sending, receiving = SendBuffers(reading), ReceiveBuffers(writing)
    receiving.begin(1)
    sending.begin(1)
    yield sending, receiving
    reading.close()
    writing.close()


def test_crossing_leaves_nothing_to_the_garbage_collector(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """A cycle would keep large memory until a garbage collection, and batches would always use fresh memory."""
    sending, receiving = sides

    def cross() -> None:
        unpack(pack([sending.take(100_000), (torch.zeros(3), "text", b"a" * 9000)], sending), receiving)

    cross()  # the first call sets up the process
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            cross()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_what_crosses_is_what_was_packed(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """Returns tensors of all kinds, nested, with other values between them."""
    sending, receiving = sides
    filled = sending.take(4000).fill_(7)
    value = {
        "filled": filled.view(torch.int16),
        "its views": [filled[:8], filled.view(10, 400)[:, 1]],
        "small": torch.arange(5),
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "strided": torch.arange(12).view(3, 4).t(),
        "nested": [(torch.ones(2), "text", None), {"deep": torch.tensor([True])}],
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    (found,) = unpack(pack([value], sending), receiving)
    assert str(found) == str(value)
    assert found["parameter"].requires_grad
    assert [tensor.dtype for tensor in (found["filled"], found["scalar"])] == [torch.int16, torch.bfloat16]


class Named(NamedTuple):
    x: Any
    y: Any


def test_values_keep_type_and_content(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """Equal tensors, ragged ones, arrays, bytes, nested containers, and everything else."""
    leaf, half = torch.ones(2, requires_grad=True), torch.ones(3, dtype=torch.bfloat16)
    many, ragged = np.arange(9000.0), [b"a" * 9000, b"", b"b" * 5]
    fields = np.array([(1, 2.0)], dtype=[("a", "u1"), ("b", ">f8")])
    for values in (
        [], [half, half + 1], [torch.ones(()), torch.zeros(())], [torch.ones(2), torch.ones(3)], [leaf, leaf],
        [(half, 1, "a"), (half, 2, "b")], [{"a": [half], "b": np.ones(2)}, {"a": [half + 1], "b": np.ones(3)}],
        [(1,), (1, 2)], [(), ()], [{"a": 1}, {"b": 1}], [torch.ones(0, 3), torch.ones(0, 3)], [1, half], [{}, {}],
        [torch.ones(2).to_sparse(), torch.ones(2).to_sparse()], [torch.ones(9000), torch.zeros(9000)], [[half, 1]],
        [many, many + 1], [np.array(1), np.array(2)], [np.float32(1), 2.5], [np.array(["a", None], object), many],
        [np.asfortranarray(np.ones((2, 3)))], [fields, fields], [np.zeros((0, 3)), np.zeros((0, 3))], [many[::2]],
        ragged, [bytearray(9000), bytearray(b"a")], [*ragged, None, 1], [[b"c" * 5000], []], [["a", b"d" * 5000]],
        [Named(half, ragged), Named(half + 1, ragged)], [Named(1, many)], [{"b": 1, "a": 2}, {"a": 2, "b": 1}],
        [{"a": half, "text": ["x", "y"]} for _ in range(5)], [[half, half], [half, half]], [None, [], [half]],
    ):  # fmt: skip
        found = unpack(pack(values, sides[0]), sides[1])
        assert str(found) == str(values)
        assert list(map(type, found)) == list(map(type, values))


def test_views_of_bytes_cross_where_they_are_flat(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """Such values cannot be pickled either."""
    found = unpack(pack([memoryview(b"abc"), memoryview(bytearray(9000)), memoryview(b"")], sides[0]), sides[1])
    assert list(map(type, found)) == [memoryview] * 3
    assert list(map(bytes, found)) == [b"abc", bytes(9000), b""]
    for view in (memoryview(bytes(9000))[::2], memoryview(bytes(9000)).cast("f")):
        with pytest.raises(TypeError, match="cannot pickle"):
            pack([view], sides[0])


def test_large_bytes_and_arrays_are_not_pickled(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """They are joined in one buffer, also for unequal sizes."""
    values = [{"a": bytes(size), "b": np.zeros(size), "c": [torch.zeros(size)]} for size in (9000, 10_000, 11_000)]
    packed = pack(values, sides[0])
    assert len(pickle.dumps(packed.pickled)) < 2000
    assert len(packed.handles) == 1


def test_arrays_keep_their_memory(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """A view of a view keeps it too: nothing is written there meanwhile."""
    sending, receiving = sides
    kept = unpack(pack([np.full(20_000, 1.0), np.full(20_000, 1.0)], sending), receiving)[1][5:][3:9]
    gc.collect()
    for _ in range(5):
        unpack(pack([np.full(20_000, 2.0), np.full(20_000, 2.0)], sending), receiving)
    assert kept.tolist() == [1.0] * 6


def test_a_buffer_is_filled_again_when_both_sides_are_done(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """Not while the worker or the trainer holds it; the reused buffer is sent by number alone."""
    sending, receiving = sides
    made = sending.take(100_000).fill_(1)
    address = made.data_ptr()
    got = unpack(pack([made], sending), receiving)
    assert sending.take(100_000).data_ptr() != address
    del made
    assert sending.take(100_000).data_ptr() != address
    view = got[0][5:9]
    del got
    gc.collect()
    others = [sending.take(100_000) for _ in range(3)]
    assert address not in [other.data_ptr() for other in others]
    assert view.tolist() == [1] * 4
    del view, others
    taken = [sending.take(100_000) for _ in range(4)]
    again = next(tensor for tensor in taken if tensor.data_ptr() == address)
    handle = sending.send(again.fill_(2))
    assert handle is not None
    assert handle.memory is None
    assert receiving.open(handle)[:3].tolist() == [2] * 3


def test_a_new_pass_forgets_what_is_in_use(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """Buffers that were never opened, and those that the trainer still holds, are unchanged and not leaked."""
    sending, receiving = sides
    held = unpack(pack([sending.take(100_000).fill_(1)], sending), receiving)
    pack([sending.take(100_000).fill_(2)], sending)
    receiving.begin(2)
    sending.begin(2)
    assert not sending._memory
    fresh = [sending.take(100_000).fill_(3) for _ in range(3)]
    assert held[0].tolist() == [1] * 100_000
    del held
    gc.collect()
    assert not receiving._idle
    assert len(fresh) == len(sending._memory) == 3


def test_a_forked_child_gives_nothing_back(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """It has copies of the trainer's tensors: freeing these gives no buffer back."""
    sending, receiving = sides
    got = unpack(pack([sending.take(100_000).fill_(1)], sending), receiving)
    address = next(iter(sending._memory.values())).data_ptr()
    child = os.fork()
    if not child:
        del got
        os._exit(0)
    os.waitpid(child, 0)
    assert sending.take(100_000).data_ptr() != address
    assert got[0][:2].tolist() == [1, 1]


def test_a_pass_may_begin_while_another_is_made(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """A late worker still takes buffers for the old pass, and one may miss a pass."""
    sending, receiving = sides
    unpack(pack([sending.take(100_000)], sending), receiving)
    receiving.begin(2)
    sending.take(100_000)
    sending.begin(2)
    receiving.begin(3)
    receiving.begin(4)
    sending.begin(4)
    sending.begin(4)
    assert len(unpack(pack([sending.take(100_000)], sending), receiving)) == 1


def test_giving_back_never_waits_for_the_worker(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """More buffers at once than the pipe has room for: the rest are made again."""
    sending, receiving = sides
    handle = sending.send(sending.take(100))
    assert handle is not None
    for _ in range(20_000):
        receiving._give_back(1, 12_345, None)
    sending.take(100)
    assert receiving.open(handle).shape == (64 << 10,)


def test_memory_of_sizes_that_do_not_come_again_is_let_go(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """Both sides drop free buffers when there are many."""
    sending, receiving = sides
    for number in range(1, 400):
        batch = unpack(pack([sending.take(number * 70_000)], sending), receiving)
        assert len(batch[0]) == number * 70_000
        del batch
    assert len(sending._memory) <= 64
    assert len(receiving._idle) <= 65
