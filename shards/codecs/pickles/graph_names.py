"""Stand-ins for the names in pickled graphs of PyTorch Geometric: `Data` and `HeteroData`.

A graph is an object with stores, a store an object with a dict of values. Both are created empty, and their attributes
are checked one by one and then set, so none of their methods runs. The classes are imported when a pickle names one.
"""

import functools
import importlib
import weakref
from collections.abc import Callable
from typing import Any

from dray.shards.codecs.pickles.stand_ins import Global, require
from dray.shards.errors import RefusedError

_PACKAGE = "torch_geometric"
_GRAPHS = (f"{_PACKAGE}.data.data.Data", f"{_PACKAGE}.data.hetero_data.HeteroData")
_STORES = tuple(f"{_PACKAGE}.data.storage.{kind}Storage" for kind in ("Base", "Global", "Node", "Edge"))
_CLASSES = (  # a graph holds two of these as values; they are never called
    f"{_PACKAGE}.data.data.DataEdgeAttr",
    f"{_PACKAGE}.data.data.DataTensorAttr",
    f"{_PACKAGE}.data.graph_store.EdgeAttr",
    f"{_PACKAGE}.data.feature_store.TensorAttr",
)
_STAND_INS = {name: Global(name) for name in _GRAPHS + _STORES}

GRAPH_NAMES = frozenset(_GRAPHS + _STORES + _CLASSES)
"""Names that a pickle may use: types that it may create, and classes that are values."""


@functools.cache
def _class(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise RefusedError(f"refused pickle: it holds a {name}; pip install {_PACKAGE} to read it ({exc})") from exc


def find_graph_name(name: str) -> Any:
    """Return the stand-in for a name of `GRAPH_NAMES`, or the class if it is a value."""
    found = _class(name)
    return found if name in _CLASSES else _STAND_INS[name]


def new_graph_part(kind: Any, arguments: Any) -> Any:
    """Return a graph or store without attributes; None if `kind` is not a stand-in for one."""
    if type(kind) is not Global or kind.name not in _STAND_INS:
        return None
    require(arguments == (), "a graph created without arguments")
    found = _class(kind.name)
    return object.__new__(found)


def graph_builder(kind: type) -> Callable[[Any, Any], None] | None:
    """Return what BUILD does to a graph or a store of exactly this type; None for any other type."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in _STAND_INS or kind is not _class(name):
        return None
    return _build_store if name in _STORES else _build_graph


def _is_store(value: Any, kind: str) -> bool:
    return type(value) is _class(f"{_PACKAGE}.data.storage.{kind}Storage")


def _build_store(store: Any, state: Any) -> None:
    require(
        type(state) is dict and state.keys() <= {"_mapping", "_parent", "_key"}, "the attributes of a graph's store"
    )
    mapping, parent = state.get("_mapping"), state.get("_parent")
    require(type(mapping) is dict and all(type(name) is str for name in mapping), "a dict of a store's values")
    require(parent is None or isinstance(parent, tuple(map(_class, _GRAPHS))), "the graph that a store belongs to")
    require(_is_key(state.get("_key")), "the type of a node or an edge")
    vars(store).update(state)
    if parent is not None:
        vars(store)["_parent"] = weakref.ref(parent)


def _is_key(key: Any) -> bool:
    """Whether a key is the type of a node (a string), the type of an edge (three strings), or None."""
    if type(key) is tuple:
        return len(key) == 3 and all(type(name) is str for name in key)
    return key is None or type(key) is str


def _build_graph(graph: Any, state: Any) -> None:
    require(type(state) is dict and state.keys() <= _CHECKS.keys(), "the attributes of a graph")
    for name, is_right in _CHECKS.items():
        require(name not in state or is_right(state[name]), f"what a graph has as {name}")
    vars(graph).update(state)


def _is_class(value: Any) -> bool:
    return any(value is _class(name) for name in _CLASSES)


def _are_stores(stores: Any, kind: str) -> bool:
    return type(stores) is dict and all(
        type(key) is (tuple if kind == "Edge" else str) and _is_key(key) and _is_store(store, kind)
        for key, store in stores.items()
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "_edge_attr_cls": _is_class,
    "_tensor_attr_cls": _is_class,
    "_store": lambda value: _is_store(value, "Global"),
    "_global_store": lambda value: _is_store(value, "Base"),
    "_node_store_dict": lambda value: _are_stores(value, "Node"),
    "_edge_store_dict": lambda value: _are_stores(value, "Edge"),
}
