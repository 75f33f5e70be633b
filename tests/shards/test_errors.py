"""The error tree matches its docstring, and every error can be pickled."""

import builtins
import pickle
import re

import pytest

from dray.shards import errors
from dray.shards.errors import DrayError

LINE = re.compile(r"^    ([ |`-]*)(\w+Error)(?: \(([\w.]+)\))?", re.MULTILINE)


def drawn() -> list[tuple[str, str, str]]:
    """Yields each error of the tree: its name, its parent and its builtin base."""
    found: list[tuple[str, str, str]] = []
    above: dict[int, str] = {-1: "Exception"}
    for branch, name, builtin in LINE.findall(errors.__doc__ or ""):
        depth = len(branch) // 4
        above[depth] = name
        found.append((name, above[depth - 1], builtin or "Exception"))
    return found


CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DrayError)]


def test_every_error_is_drawn() -> None:
    """The tree lists all errors and no others."""
    assert sorted(name for name, _, _ in drawn()) == sorted(kind.__name__ for kind in CLASSES)


@pytest.mark.parametrize(("name", "parent", "builtin"), drawn())
def test_an_error_is_what_the_drawing_says(name: str, parent: str, builtin: str) -> None:
    """An error is a subclass of its parent and of its builtin base."""
    kind = getattr(errors, name)
    expected = pickle.UnpicklingError if builtin == "pickle.UnpicklingError" else getattr(builtins, builtin)
    assert kind.__bases__[0].__name__ == parent
    assert issubclass(kind, expected)
    assert issubclass(kind, DrayError)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_pickles(kind: type[DrayError]) -> None:
    """Type, message and fields survive: workers raise in other processes."""
    error = kind("it broke", url="s3://bucket/a", offset=512).at(url="s3://bucket/b", key="k", suffix="npy")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "s3://bucket/a at offset 512, key 'k', suffix 'npy': it broke"
    assert again.place == {"url": "s3://bucket/a", "key": "k", "suffix": "npy", "offset": 512}
    assert str(kind("it broke")) == "it broke"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_says_what_it_means(kind: type[DrayError]) -> None:
    """The first line of the docstring is a sentence."""
    assert (kind.__doc__ or "").partition("\n")[0].endswith(".")


def test_only_an_unknown_outcome_is_tried_again() -> None:
    """What a store refuses or lacks is a final answer."""
    transient = {kind for kind in CLASSES if issubclass(kind, errors.StoreError) and kind.is_transient}
    assert transient == {errors.StoreError}
