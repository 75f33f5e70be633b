"""The private names of Python, torch and numpy exist, and are what the unpicklers take them for."""

import importlib
import pickle

import pytest

PRIVATE = [
    ("pickle", "_Unpickler"),
    ("copyreg", "_reconstructor"),
    ("_compat_pickle", "IMPORT_MAPPING"),
    ("_compat_pickle", "NAME_MAPPING"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.storage", "_load_from_bytes"),
]


@pytest.mark.parametrize(("module", "name"), PRIVATE)
def test_private_names_have_not_moved(module: str, name: str) -> None:
    """If this fails after an upgrade, shards/codecs/pickles/compat.py needs the new place of the name."""
    assert hasattr(importlib.import_module(module), name), f"{module}.{name} has moved: correct pickles/compat.py"


@pytest.mark.parametrize("name", ["dispatch", "find_class", "persistent_load", "pop_mark", "load_build"])
def test_the_python_unpickler_has_the_parts_that_are_replaced(name: str) -> None:
    """The machine replaces entries of `dispatch`, and calls the rest."""
    assert hasattr(pickle._Unpickler, name), f"pickle._Unpickler.{name} has moved: correct pickles/machine.py"  # type: ignore[attr-defined]
