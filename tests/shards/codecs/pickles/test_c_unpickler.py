"""The C unpickler reads containers only if every opcode is known, and returns what the machine returns."""

import pickle
import struct
import subprocess
import sys
import textwrap
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.codecs.pickles.c_unpickler import (
    _NAMES,
    KNOWN_NAMES,
    NO_NAMES,
    NOT_READ,
    SINGLE_ARRAY,
    UNKNOWN,
    read,
    scan,
)
from dray.shards.codecs.pickles.unpickle import loads
from dray.shards.errors import RefusedError
from tests.support.pickles import CIRCLE, GOOD, LIES, OTHERS, UNKNOWN_PICKLES, body, slow, visible


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", GOOD)
def test_a_container_is_read_fast(name: str, protocol: int) -> None:
    """Values, types and layouts equal those of pickle and of the machine, from bytes and from views."""
    data = pickle.dumps(GOOD[name], protocol)
    for given_data in (data, memoryview(data), memoryview(bytearray(data))):
        found = read(given_data)
        assert found is not NOT_READ
        assert visible(found) == visible(pickle.loads(data)) == slow(data)


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize("name", GOOD)
def test_the_oldest_protocols_are_left(name: str, protocol: int) -> None:
    """They have other opcodes and are hardly written any more."""
    data = pickle.dumps(GOOD[name], protocol)
    assert read(data) is NOT_READ
    assert visible(loads(data)) == visible(pickle.loads(data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_left(name: str, protocol: int) -> None:
    """The machine reads whatever is unsafe in the C unpickler, or rare."""
    assert read(pickle.dumps(OTHERS[name], protocol)) is NOT_READ


def test_what_was_shared_is_shared() -> None:
    """An array or list that occurs twice is one object again; a list may contain itself."""
    first, second, inside, (third, (fourth,)) = loads(pickle.dumps(GOOD["shared array"]))
    assert first is second is inside["x"] is third is fourth
    circle = loads(pickle.dumps(CIRCLE))
    assert circle[1] is circle
    pair, array = (np.ones(2), 1), np.ones(3)
    items: list[Any] = [array]
    items.append(items)
    found = read(pickle.dumps([pair, pair, items, {"a": items, "b": (pair,)}]))
    assert found[0] is found[1] is found[3]["b"][0]
    assert found[2] is found[2][1] is found[3]["a"]


NESTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda v: (
        st.lists(v)
        | st.lists(v).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans() | st.none() | st.binary(), v)
        | st.sets(st.integers() | st.text())
        | st.lists(v, max_size=2).map(lambda items: [items, np.arange(len(items) + 1), (np.float32(2), items)])
    ),
    max_leaves=15,
)


@settings(deadline=None)  # the first one compiles expressions
@given(value=NESTS, protocol=st.integers(2, 5))
def test_any_nest_is_read_as_the_machine_reads_it(value: Any, protocol: int) -> None:
    """Law: both unpicklers return the same value."""
    data = pickle.dumps(value, protocol)
    assert visible(loads(data)) == slow(data) == visible(pickle.loads(data))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", UNKNOWN_PICKLES)
def test_harmful_pickles_are_unknown(case: str) -> None:
    """Composite keys, foreign opcodes and names, wrong lengths: none reaches the C unpickler."""
    assert scan(UNKNOWN_PICKLES[case]) == UNKNOWN
    assert read(UNKNOWN_PICKLES[case]) is NOT_READ


KNOWN_PICKLES = {
    "some depth": (body(b"]" * 101 + b"a" * 100), NO_NAMES),
    "shared list": (body(b"]\x94(h\x00h\x00e"), NO_NAMES),
    "list of ten PUTs": (body(b"(" + b"".join(b"K\x01q%c" % n for n in range(10)) + b"t"), NO_NAMES),
    "tuple of nothing by a MARK": (body(b"(t"), NO_NAMES),
    "items of nothing": (body(b"](}(u\x8f(\x90](ee"), NO_NAMES),
    "frames of nothing": (body(b"\x95" + bytes(8) + b"K\x01"), NO_NAMES),
    "frame amid": (body(b"]\x95" + struct.pack("<Q", 2) + b"K\x01a"), NO_NAMES),
    "text by the memo as a name": (
        body(b"](\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94h\x00h\x01\x93)R\x93"[:-1] + b"e"),
        KNOWN_NAMES,
    ),
    "short text encoded again": (
        body(b"](\x8c\x01x\x94c_codecs\nencode\n\x94h\x00\x8c\x06latin1\x86Rh\x01h\x00\x8c\x06latin1\x86Re"),
        KNOWN_NAMES,
    ),
    "set before protocol 4": (b"\x80\x03cbuiltins\nset\n](K\x01X\x01\x00\x00\x00xe\x85R.", KNOWN_NAMES),
    "set of protocol 2": (b"\x80\x02c__builtin__\nset\n](K\x01X\x01\x00\x00\x00xe\x85R.", KNOWN_NAMES),
    "array": (pickle.dumps(np.ones(2), 4), SINGLE_ARRAY),
    "array in protocol 2": (pickle.dumps(np.ones(2), 2), SINGLE_ARRAY),
    "tensor": (pickle.dumps(torch.ones(2)), SINGLE_ARRAY),
}


@pytest.mark.parametrize("case", KNOWN_PICKLES)
def test_what_does_no_harm_is_seen_to_do_none(case: str) -> None:
    """The pickles above are unknown for their one fault, as these have none."""
    data, kind = KNOWN_PICKLES[case]
    assert scan(data) == kind
    assert visible(read(data)) == slow(data) == visible(pickle.loads(data))


def test_depth_has_an_end() -> None:
    """For any mix of containers."""
    assert scan(body(b"]" * 1001 + b"a" * 1000)) == NO_NAMES
    for deep in (b"]" * 1002 + b"a" * 1001, b"]" + b"(]" * 1001 + b"e" * 1001, b")" + b"\x85" * 1001):
        assert scan(body(deep)) == UNKNOWN
    inside = [b"]\x94j%ba" % struct.pack("<I", place) for place in range(1001)]
    assert scan(body(b"](]\x94", *inside[:900], b"e")) == NO_NAMES
    assert scan(body(b"](]\x94", *inside, b"e")) == UNKNOWN


def test_keys_from_the_memo_are_known_by_kind() -> None:
    """Changing any memo reference gives what the machine gives: each memo entry keeps its kind."""
    value = [{"a": 1}, (1, 2), {"a": (3, "a"), "b": {"a"}}, 2.5]
    data = pickle.dumps(value, 4)
    assert scan(data) == NO_NAMES
    assert read(data) == value
    for place in range(12):
        changed = data.replace(b"h\x02", b"h%c" % place)
        found = read(changed)
        assert (slow(changed) if found is NOT_READ else visible(found)) == slow(changed), place
        assert found is NOT_READ or all(type(key) is str for key in found[2]), place


@pytest.mark.timeout(20)
def test_a_long_key_is_not_compared_over_and_over() -> None:
    """Two equal texts of 1 MB, one used as a key 100,000 times: every use would compare all of it."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"\x94"
    assert scan(body(text, text, b"}(h\x00N", b"h\x01N" * 100_000, b"u\x87")) == UNKNOWN
    assert scan(body(text, text, b"}(h\x00N", b"h\x01N" * 10, b"u\x87")) == NO_NAMES
    assert scan(body(text, text, b"\x8f(", b"h\x01h\x00" * 100_000, b"\x90\x87")) == UNKNOWN


@pytest.mark.parametrize("name", GOOD)
def test_truncated_pickles_are_unknown(name: str) -> None:
    """At every byte of small pickles, and at some of large ones."""
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(GOOD[name], protocol)
        for end in range(0, len(data), max(1, len(data) // 2000)):
            assert scan(data[:end]) == UNKNOWN, (protocol, end)


@pytest.mark.timeout(60)
def test_many_things_are_remembered() -> None:
    """More entries than the scan holds without allocating, and more than 65,536; over a million is too many."""
    many = [str(n) for n in range(70_000)]
    assert read(pickle.dumps(many, 4)) == many
    assert read(pickle.dumps(tuple(many), 2)) == tuple(many)
    assert scan(body(b"(" + b"N" * ((1 << 20) - 1) + b"t")) == NO_NAMES
    assert scan(body(b"(" + b"N" * (1 << 20) + b"t")) == UNKNOWN


def test_elements_serve_one_array() -> None:
    """Numpy keeps the bytes that it is given and changes them, so nothing else may refer to them."""
    data = pickle.dumps([np.arange(300), 5], 4)
    place = data.count(b"\x94", 0, data.index(b"B\x60")) + 0
    for number in range(place - 1, place + 3):
        changed = data.replace(b"K\x05", b"h%c" % number)
        found = read(changed)
        assert found is NOT_READ or type(found[1]) is not bytes, number


def test_no_other_kind_of_input_is_looked_at() -> None:
    """Only contiguous bytes are scanned."""
    for given_data in ("text", None, [1], memoryview(b"x" * 10)[::2]):
        with pytest.raises((TypeError, BufferError)):
            scan(given_data)  # type: ignore[arg-type]
    assert scan(memoryview(b"x" + pickle.dumps(1))[1:]) == NO_NAMES


@pytest.mark.parametrize("case", LIES)
def test_a_lie_inside_a_container_is_refused(case: str) -> None:
    """The scan refuses it, so it never reaches the C unpickler; and the machine refuses it."""
    if not case.startswith(("tensor", "storage")):  # their functions check again
        assert scan(LIES[case]) == UNKNOWN
    assert read(LIES[case]) is NOT_READ
    with pytest.raises(RefusedError):
        loads(LIES[case])


def test_a_name_never_becomes_a_value() -> None:
    """Nor does a dtype, or an unfilled array, from the memo."""
    for value in (np.float64(1), np.ones(2), torch.ones(2)):
        for protocol in (2, 4, 5):
            data = pickle.dumps([value, 2], protocol)
            at = data.rindex(b"K\x02")
            for place in range(25):
                changed = data[:at] + b"h%c" % place + data[at + 2 :]
                found = read(changed)
                whole = list, tuple, str, bytes, np.float64, np.ndarray, torch.Tensor, bytearray, OrderedDict
                assert found is NOT_READ or type(found[1]) in whole, place


def test_a_key_from_the_memo_is_plain_or_left() -> None:
    """A scalar, a tensor or a name from the memo is refused as a key."""
    for value in (np.float64(1), torch.ones(1)):
        data = pickle.dumps([value, {"a": 2}, {"a": 2}], 4)
        kept = data.index(b"a\x94K\x02s") - 2
        places = [at for at in range(len(data) - 1) if data[at] == ord("h") and at > kept]
        for number in range(40):
            changed = bytearray(data)
            changed[places[-1] + 1] = number
            found = read(bytes(changed))
            assert found is NOT_READ or set(map(type, found[2])) <= {str, bytes, int}, number


def test_what_is_found_cannot_be_changed() -> None:
    """It holds only built-in types, functions of C, and instances without attributes."""
    for found in _NAMES.values():
        with pytest.raises((AttributeError, TypeError)):
            found.call = None
        assert not hasattr(found, "__setstate__") or isinstance(found, type)


@pytest.mark.parametrize("size", [10, 300, 100_000, 5_000_000])
def test_a_mapped_file_is_copied_before_it_is_read(size: int) -> None:
    """A change between scan and reading would go unchecked; and a value refers to nothing of its input."""
    values = []
    for number in range(3):
        data = bytearray(pickle.dumps([np.full(size, number), {"a": number}, "x" * size], 4))
        values.append(read(memoryview(data)))
        data[:] = bytes(len(data))
    for number, (array, plain, text) in enumerate(values):
        assert array.tolist() == [number] * size
        assert plain == {"a": number}
        assert text == "x" * size


def test_threads_do_not_share_a_copy() -> None:
    """Each thread has its own buffer while it reads."""
    pickles = [memoryview(bytearray(pickle.dumps([np.full(20_000, n), [n] * 50_000], 5))) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for n, found in zip([*range(8)] * 20, pool.map(read, pickles * 20), strict=True):
            assert found[0].tolist() == [n] * 20_000
            assert found[1] == [n] * 50_000


def test_without_the_compiled_scan_everything_is_left_to_the_machine() -> None:
    """Where dray was installed without a compiler: slower, and as safe."""
    code = """
        import pickle, sys
        sys.modules["dray.shards.codecs.pickles.scan"] = None
        import numpy as np, torch
        from dray.shards.codecs.pickles.c_unpickler import NOT_READ, read
        from dray.shards.codecs.pickles.unpickle import loads
        value = [{"x": np.arange(3)}, torch.ones(2), (1, "a")]
        assert read(pickle.dumps(value)) is NOT_READ
        assert read(pickle.dumps(torch.ones(2))).tolist() == [1, 1]
        print(loads(pickle.dumps(value)))
        loads(b"cos\\nsystem\\n(S'true'\\ntR.")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout.strip() == "[{'x': array([0, 1, 2])}, tensor([1., 1.]), (1, 'a')]"
    assert "RefusedError: pickle names os.system" in done.stderr
