"""A hostile pickle is refused and does nothing, whatever the caller allows."""

import contextlib
import io
import pickle
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dray.shards.codecs.pickles.machine import FUNCTIONS
from dray.shards.codecs.pickles.unpickle import loads
from dray.shards.errors import RefusedError
from tests.shards.codecs.pickles.test_unpickle import ARRAYS, PROTOCOLS, TENSORS
from tests.support.hostile_pickles import FLOAT, HOSTILE, Evil, array, blob, call, name, storage, tensor, text, whole


def test_a_storage_as_metadata_is_refused_without_asking_torch() -> None:
    """Torch warns about the truth value of a storage, and the warning opens files."""
    good = io.BytesIO()
    torch.save(torch.zeros(2).untyped_storage(), good, _use_new_zipfile_serialization=False)
    held = call("torch.storage", "_load_from_bytes", blob(good.getvalue()))
    extras = b"\x89", call("collections", "OrderedDict"), held
    with pytest.raises(RefusedError, match="conj and neg bits"):
        loads(whole(call("torch._utils", "_rebuild_tensor_v2", held, b"K\x00", b"K\x02\x85", b"K\x01\x85", *extras)))


def test_the_builders_of_hostile_pickles_build_good_ones_too() -> None:
    """The pickles of HOSTILE are refused for their one fault; the same builders without it give values."""
    assert torch.equal(loads(whole(tensor(storage(bytes(8))))), torch.zeros(2))
    assert loads(whole(array(FLOAT, b"K\x02\x85", blob(bytes(8))))).tolist() == [0, 0]
    assert loads(whole(call("_codecs", "encode", text("x"), text("latin1")))) == b"x"
    assert loads(whole(b"}" + b")2\x862\x86" + b"K\x01s")) == {(((), ()), ((), ())): 1}


@pytest.fixture(scope="module")
def events() -> Iterator[list[str]]:
    """The audit events since the list was last cleared: imports, code, processes, files."""
    seen: list[str] = []
    watched = ("import", "exec", "compile", "os.", "open", "subprocess.", "socket.", "shutil.", "pickle.", "ctypes.")
    state = {"on": True}

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if state["on"] and event.startswith(watched):
            seen.append(event)

    sys.addaudithook(hook)
    loads(pickle.dumps([torch.zeros(1), np.zeros(1)]))
    yield seen
    state["on"] = False


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_nothing(case: str, events: list[str]) -> None:
    """RefusedError within seconds, without an import, code, a file or a process."""
    events.clear()
    with contextlib.suppress(RefusedError):
        loads(HOSTILE[case])
    assert events == []
    with pytest.raises(RefusedError):
        loads(HOSTILE[case])


def test_a_sound_pickle_with_large_keys_is_read() -> None:
    """The guard against chosen hashes accepts large numbers, repeated tuples and long text."""
    value = [{2**100 + i: (i, str(i)), (i % 3, "x" * 5000): 2**100 + i} for i in range(3000)]
    assert loads(pickle.dumps(value)) == value


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    """Law: no other exception is ever raised."""
    with contextlib.suppress(RefusedError):
        loads(data)


@given(data=st.data())
def test_damaged_pickles_are_read_or_refused(data: st.DataObject) -> None:
    """Law: a good pickle with some bytes changed gives a value or RefusedError."""
    good = bytearray(
        pickle.dumps([ARRAYS["structure"], TENSORS["slice"], {"a": {1}}], data.draw(st.sampled_from(PROTOCOLS)))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RefusedError):
        loads(bytes(good))


def test_an_allowed_storage_loader_still_runs_nothing() -> None:
    """The names of torch and numpy keep their stand-ins, whatever is allowed."""
    with pytest.raises(RefusedError):
        loads(HOSTILE["evil storage"], allow=["torch.storage._load_from_bytes"])
    with pytest.raises(RefusedError):
        loads(HOSTILE["array of pointers"], allow=["numpy.ndarray", "numpy.dtype"])


@pytest.mark.parametrize("name_", sorted(FUNCTIONS))
def test_to_allow_a_name_that_is_ours_changes_nothing(name_: str, events: list[str]) -> None:
    """A function with a stand-in is never the real one: not in a call, as a value or by NEWOBJ."""
    module, _, function = name_.rpartition(".")
    arguments = (b"N", text("x"), blob(pickle.dumps(Evil())))
    cases = [call(module, function, *arguments[:number]) for number in range(4)]
    cases += [name(module, function), name(module, function) + b")\x81", call(module, function, storage(bytes(8)))]
    for case in map(whole, cases):
        outcomes = []
        for allow in ((), (name_,)):
            events.clear()
            try:
                outcomes.append(repr(loads(case, allow=allow)))
            except RefusedError as exc:
                outcomes.append(str(exc))
            assert events == []
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "opcodes",
    [
        call("builtins", "bytearray", b"h\x00"),
        call("builtins", "set", b"h\x01"),
        call("_codecs", "encode", b"h\x02", text("latin1")),
        call("collections", "OrderedDict") + b"h\x03b",
    ],
    ids=["bytes", "set", "text", "attributes"],
)
def test_a_small_pickle_cannot_ask_for_much_memory(opcodes: bytes) -> None:
    """Each call is charged for what it copies: 50 kB of pickle cannot become 200 MB."""
    numbers = b"](" + b"".join(b"M" + struct.pack("<H", number) for number in range(4000)) + b"e\x94"
    long_text = b"X" + struct.pack("<I", 6000) + b"x" * 6000 + b"\x94"
    names = b"}(" + b"".join(text(f"{number}") + b"N" for number in range(2000)) + b"u\x94"
    sources = b"0".join((blob(b"x" * 6000) + b"\x94", numbers, long_text, names)) + b"0"
    pickled = whole(sources + b"(" + opcodes * 900 + b"t")
    assert len(pickled) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match="copy its own pieces"):
            loads(pickled)
        assert tracemalloc.get_traced_memory()[1] < 64 * len(pickled) + (3 << 20)
    finally:
        tracemalloc.stop()
