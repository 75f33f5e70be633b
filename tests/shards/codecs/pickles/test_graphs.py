"""Graphs of PyTorch Geometric equal those of pickle; no code of the package runs, and it is imported only for them."""

import pickle
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch

from dray.shards.codecs.pickles.unpickle import loads
from dray.shards.errors import RefusedError

pytest.importorskip("torch_geometric")
from torch_geometric.data import Batch, Data, HeteroData

PROTOCOLS = range(6)


def graph() -> Any:
    """A small graph with values of several kinds."""
    edges = torch.tensor([[0, 1], [1, 0]])
    return Data(x=torch.rand(2, 3), edge_index=edges, y=1.5, name="water", tags=["a", {"b": 2}], nothing=None)


def mixed_graph() -> Any:
    """A graph with two types of nodes."""
    data = HeteroData(z=3)
    data["paper"].x = torch.rand(2, 4)
    data["author"].num_nodes = 3
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 2], [1, 0]])
    return data


def content(value: Any) -> Any:
    """Everything in a graph, as plain values."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    return content(value.to_dict()) if isinstance(value, Data | HeteroData) else (type(value), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("make", [graph, mixed_graph, Data, HeteroData])
def test_a_graph_comes_back(make: Any, protocol: int) -> None:
    """Type, stores, values and the reference from a store to its graph equal those of pickle."""
    data = pickle.dumps({"graph": make()}, protocol)
    found, expected = loads(data)["graph"], pickle.loads(data)["graph"]
    assert type(found) is type(expected)
    assert content(found) == content(expected)
    assert vars(found).keys() == vars(expected).keys()
    assert repr(found) == repr(expected)
    for store, other in zip(found.stores, expected.stores, strict=True):
        assert type(store) is type(other)
        assert store._parent() is found
        assert store._key == other._key


def test_a_graph_that_came_back_works() -> None:
    """It can be changed, batched and pickled again."""
    found = loads(pickle.dumps(graph()))
    found.z = torch.zeros(2)
    assert Batch.from_data_list([found, found]).num_graphs == 2
    assert loads(pickle.dumps(found)).z.tolist() == [0, 0]


class Molecule(Data):  # type: ignore[misc]
    """A graph class of a user."""


def test_a_graph_of_a_user_must_be_allowed() -> None:
    """A subclass is a foreign class; if allowed, it is read with the stores of the safe list."""
    data = pickle.dumps(Molecule(x=torch.ones(2)))
    with pytest.raises(RefusedError, match=r'allow=\["[a-z_.]*test_graphs\.Molecule"\]'):
        loads(data)
    assert loads(data, allow=[f"{__name__}.Molecule"]).x.tolist() == [1, 1]


GLOBAL_STORAGE = b"ctorch_geometric.data.storage\nGlobalStorage\n"
DATA = b"ctorch_geometric.data.data\nData\n"


def state(*items: bytes) -> bytes:
    """A dict, and BUILD with it."""
    return b"}(" + b"".join(items) + b"ub"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


STORE = GLOBAL_STORAGE + b")\x81"
HOSTILE = {
    "call of a graph": DATA + b")R",
    "graph with arguments": DATA + b"K\x01\x85\x81",
    "graph with keywords": DATA + b")}" + text("x") + b"K\x01s\x92",
    "graph as a value": DATA,
    "store as a value in a list": b"]" + GLOBAL_STORAGE + b"a",
    "other attribute": DATA + b")\x81" + state(text("__class__"), b"K\x01"),
    "method shadowed": DATA + b")\x81" + state(text("to_dict"), b"K\x01"),
    "store that is none": DATA + b")\x81" + state(text("_store"), b"}"),
    "class that is none": DATA + b")\x81" + state(text("_edge_attr_cls"), b"K\x01"),
    "stores that are none": DATA + b")\x81" + state(text("_node_store_dict"), b"}" + text("a") + b"K\x01s"),
    "state that is not a dict": DATA + b")\x81K\x01b",
    "slots": DATA + b")\x81N}" + text("_store") + b"K\x01s\x86b",
    "mapping that is none": STORE + state(text("_mapping"), b"]"),
    "no mapping": STORE + state(),
    "numbers in a mapping": STORE + state(text("_mapping"), b"}K\x01K\x02s"),
    "parent that is none": STORE + state(text("_mapping"), b"}", text("_parent"), b"]"),
    "key that is none": STORE + state(text("_mapping"), b"}", text("_key"), b"]"),
    "attribute of a store": STORE + state(text("_mapping"), b"}", text("__setstate__"), b"N"),
    "another class of the package": b"ctorch_geometric.data.dataset\nDataset\n)\x81",
    "a function of the package": b"ctorch_geometric.io\nread_txt_array\n" + text("/etc/hostname") + b"\x85R",
    "call of a class that is a value": b"ctorch_geometric.data.data\nDataEdgeAttr\n)R",
    "object of a class that is a value": b"ctorch_geometric.data.data\nDataEdgeAttr\n)\x81",
    "class as a key": b"}ctorch_geometric.data.data\nDataEdgeAttr\nK\x01s",
    "graph as a key": b"}" + DATA + b")\x81K\x01s",
    "items of a store": STORE + text("a") + b"K\x01s",
    "reconstructed with a state": b"ccopy_reg\n_reconstructor\n" + DATA + b"c__builtin__\nobject\nK\x01\x87R",
    "reconstructed from a list": b"ccopy_reg\n_reconstructor\n" + DATA + b"c__builtin__\nlist\nN\x87R",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_graph_is_refused(case: str) -> None:
    """Anything that a graph cannot be is refused."""
    with pytest.raises(RefusedError):
        loads(b"\x80\x02" + HOSTILE[case] + b".")


def test_the_hostile_graphs_are_made_of_good_ones() -> None:
    """The graphs above are refused for their one fault, as these have none."""
    assert type(loads(b"\x80\x02" + DATA + b")\x81.")) is Data
    store = loads(
        b"\x80\x02" + STORE + state(text("_mapping"), b"}" + text("a") + b"K\x01s", text("_parent"), b"N") + b"."
    )
    assert store._mapping == {"a": 1}


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_package_is_imported_for_a_graph_alone() -> None:
    """Reading anything else does not import it."""
    data = pickle.dumps(graph(), 2)
    program = f"""
        import pickle, sys
        from dray.shards.codecs.pickles.unpickle import loads
        loads(pickle.dumps([1]))
        print("torch_geometric" in sys.modules)
        loads({data!r})
        print("torch_geometric" in sys.modules)
    """
    assert run(program).split() == ["False", "True"]


def test_without_the_package_the_error_says_what_to_install() -> None:
    """It is a refusal with the pip command."""
    program = f"""
        import sys
        sys.modules["torch_geometric"] = None
        from dray.shards.codecs.pickles.unpickle import loads
        try:
            loads({pickle.dumps(graph(), 2)!r})
        except Exception as exc:
            print(type(exc).__name__, exc)
    """
    found = run(program)
    assert found.startswith("RefusedError")
    assert "pip install torch_geometric" in found
