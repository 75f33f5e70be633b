"""The allow-list unpickler returns what pickle returns for values of the safe list, and runs nothing for others."""

import collections
import pickle
import subprocess
import sys
import textwrap
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.codecs.pickles.unpickle import loads
from dray.shards.errors import CallError, RefusedError
from tests.support.hostile_pickles import call, whole

PROTOCOLS = range(6)
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES += ["complex64", "complex128"]

# ---- values of the safe list ----

SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)
SCALARS |= st.complex_numbers(allow_nan=False)
KEYS = st.recursive(st.integers() | st.text() | st.binary() | st.booleans(), lambda k: st.tuples(k, k), max_leaves=4)
VALUES = st.recursive(
    SCALARS | st.builds(bytearray, st.binary()) | st.sets(KEYS) | st.frozensets(KEYS),
    lambda v: (
        st.lists(v)
        | st.lists(v).map(tuple)
        | st.dictionaries(KEYS, v)
        | st.builds(OrderedDict, st.dictionaries(KEYS, v))
    ),
    max_leaves=12,
)


@settings(deadline=None)  # the first one compiles expressions
@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_back_as_pickle_gives_them(value: Any, protocol: int) -> None:
    """Law: nested plain values, in any protocol, are equal in value and in every type."""
    found = loads(pickle.dumps(value, protocol))
    assert found == value
    assert repr(found) == repr(pickle.loads(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_every_dtype_come_back(name: str, protocol: int) -> None:
    """Values, dtype, shape and stride equal those of pickle."""
    tensor = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, name))
    data = pickle.dumps(tensor, protocol)
    found, expected = loads(data), pickle.loads(data)
    assert type(found) is torch.Tensor
    assert found.dtype == expected.dtype
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


TENSORS = {
    "transposed": torch.arange(24).reshape(2, 3, 4).transpose(0, 2),
    "slice": torch.arange(24)[5:20:3],
    "expanded": torch.arange(3).expand(4, 3),
    "no dimension": torch.tensor(2.5),
    "no element": torch.zeros(0, 3),
    "no element, behind its storage": torch.zeros(4, 0)[1::2],
    "conjugate": torch.tensor([1 + 2j, 3j]).conj(),
    "gradient": torch.ones(2, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", TENSORS)
def test_views_and_parameters_come_back(name: str, protocol: int) -> None:
    """A view stays a view of the same storage layout, a Parameter a Parameter."""
    data = pickle.dumps(TENSORS[name], protocol)
    found, expected = loads(data), pickle.loads(data)
    assert type(found) is type(expected)
    assert found.stride() == expected.stride()
    assert found.requires_grad == expected.requires_grad
    assert found.is_conj() == expected.is_conj()
    assert torch.equal(found, expected)


def test_a_tensor_can_be_written_and_resized() -> None:
    """The tensor owns its memory: writing to it changes neither the input nor a second reading."""
    data = pickle.dumps(torch.zeros(3))
    loads(data).fill_(7).resize_(10)
    assert torch.equal(loads(data), torch.zeros(3))


def test_a_state_dict_keeps_its_order_and_metadata() -> None:
    """A module's state_dict, an OrderedDict with an attribute, is read."""
    expected = torch.nn.Linear(2, 3).state_dict()
    found = loads(pickle.dumps(expected))
    assert list(found) == list(expected)
    assert vars(found) == vars(expected)


def test_newer_dtypes_come_back() -> None:
    """uint16 tensors, which another function pickles, are read too."""
    tensor = torch.tensor([1, 65535], dtype=torch.uint16)
    assert torch.equal(loads(pickle.dumps(tensor)), tensor)


ARRAYS = {
    "integers": np.arange(6).reshape(2, 3),
    "other byte order": np.arange(3, dtype=">f4"),
    "shared dtype": [np.ones(2, ">f4"), np.ones(3, ">f4")],
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "permuted": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "no element": np.zeros((0, 3), "f2"),
    "no dimension": np.array(3),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "time": np.array(["2020-01-01", "NaT"], "M8[ns]"),
    "objects": np.array(["a", 3, None, [1]], dtype=object),
    "structure": np.array([(1.5, "x")], dtype=[("a", ">f4"), ("b", "U2")]),
    "aligned structure": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "scalars": [np.float32(1.5), np.int8(-3), np.bool_(True), np.str_("x"), np.complex64(2j), np.timedelta64(3, "h")],
    "key": {np.int64(3): 1, np.str_("x"): 2},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_scalars_come_back(name: str, protocol: int) -> None:
    """Values, dtype with its byte order, shape and memory layout equal those of pickle."""
    data = pickle.dumps(ARRAYS[name], protocol)
    found, expected = loads(data), pickle.loads(data)
    assert repr(found) == repr(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert str(found.flags) == str(expected.flags)


def test_shared_and_circular_references_are_kept() -> None:
    """An object that occurs twice is one object again."""
    shared: list[Any] = [torch.zeros(1)]
    shared.append(shared)
    found = loads(pickle.dumps({"a": shared, "b": shared}))
    assert found["a"] is found["b"] is found["a"][1]


# ---- what a caller can allow ----


def test_a_refusal_names_the_global_and_the_way_out() -> None:
    """The message gives the name and both keywords."""
    with pytest.raises(RefusedError, match=r'os\.system.*allow=\["os\.system"\].*allow_pickle=True'):
        loads(b"cos\nsystem\n(S'true'\ntR.")


class Point:
    """A class of a user."""

    def __init__(self, x: int = 0) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


class Sealed(Point):
    """A class with __setstate__."""

    def __getstate__(self) -> tuple[int]:
        return (self.x,)

    def __setstate__(self, state: tuple[int]) -> None:
        (self.x,) = state


class Row(list[int]):
    """A container of a user."""


class Named:
    """A class whose constructor takes keywords."""

    def __new__(cls, *, x: int) -> "Named":
        made = super().__new__(cls)
        made.x = x
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"x": self.x}

    x: int


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [Point(3), Sealed(4), Fraction(1, 3), Row([1, 2])], ids=lambda v: type(v).__name__)
def test_an_allowed_class_is_made_as_pickle_makes_it(value: Any, protocol: int) -> None:
    """Constructor, __reduce__, __setstate__, __dict__ and appended items all work."""
    found = loads(pickle.dumps([value], protocol), allow=[f"{type(value).__module__}.{type(value).__qualname__}"])
    assert found == [value]
    assert type(found[0]) is type(value)


def test_an_allowed_class_can_take_keywords() -> None:
    """NEWOBJ_EX works for an allowed class."""
    assert loads(pickle.dumps(Named(x=5), 4), allow=[f"{__name__}.Named"]).x == 5


def test_an_allowed_type_is_also_a_value() -> None:
    """A defaultdict of sets needs two names, and the message gives both."""
    value = collections.defaultdict(set, a={1})
    found = loads(pickle.dumps(value), allow=["collections.defaultdict", "builtins.set"])
    assert found == value
    assert found.default_factory is set


def test_only_what_is_allowed_is_allowed() -> None:
    """One allowed name opens no other, not even next to it."""
    with pytest.raises(RefusedError, match=r"fractions\.Fraction"):
        loads(pickle.dumps([Point(1), Fraction(1, 2)]), allow=[f"{__name__}.Point"])
    with pytest.raises(RefusedError, match=r"set\.__init__"):
        loads(whole(call("builtins", "set.__init__")), allow=["builtins.set"])


def test_what_an_allowed_class_raises_is_a_refusal() -> None:
    """An error of foreign code keeps its cause."""
    with pytest.raises(RefusedError) as found:
        loads(whole(call("fractions", "Fraction", b"K\x01", b"K\x00")), allow=["fractions.Fraction"])
    assert isinstance(found.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("allow", ["os.system", ["system"], [3]])
def test_allow_takes_a_collection_of_full_names(allow: Any) -> None:
    """A string would mean each of its letters."""
    with pytest.raises(CallError, match="full names"):
        loads(pickle.dumps(1), allow=allow)


def test_allow_pickle_is_plain_pickle() -> None:
    """Any value is read."""
    assert loads(pickle.dumps(Point(3)), allow_pickle=True) == Point(3)


def test_the_unpickler_does_not_import_what_a_pickle_names() -> None:
    """In a new process, the module of a refused name is not imported."""
    program = """
        import sys
        from dray.shards.codecs.pickles.machine import FUNCTIONS
        from dray.shards.codecs.pickles.unpickle import loads
        try:
            loads(b"cthis\\ns\\n.")
        except Exception as exc:
            print(type(exc).__name__, "this" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["RefusedError", "False"]
