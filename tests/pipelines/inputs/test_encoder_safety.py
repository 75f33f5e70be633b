"""Nothing runs while a pickle is encoded, and a small pickle does not become a huge part."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dray.pipelines.inputs.encoder import Encoder
from dray.shards import InputError
from tests.pipelines.inputs.test_encoder import SUFFIX, encoded


class Runs:
    """Its pickle makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


class MakesAnArray:
    """Its pickle calls a function of numpy's."""

    def __reduce__(self) -> Any:
        return np.arange, (3,)


def test_nothing_runs_while_a_pickle_is_encoded(tmp_path: Path) -> None:
    """With "auto" it stays as it is; with a format it is a bad sample, whose error says how to allow it."""
    value = Runs(tmp_path / "ran")
    assert encoded(value) == (SUFFIX, pickle.dumps(value))
    with pytest.raises(InputError, match=r"posix.mkdir.*allow=\["):
        encoded(value, {SUFFIX: "npy"})
    assert not list(tmp_path.iterdir())


def test_what_is_allowed_is_encoded() -> None:
    """By name, or all of it with one warning."""
    assert encoded(MakesAnArray())[0] == SUFFIX
    assert encoded(MakesAnArray(), allow=["numpy.arange"])[0] == "value.npy"
    with pytest.warns(UserWarning, match="allow_pickle=True"):
        assert encoded(MakesAnArray(), allow_pickle=True)[0] == "value.npy"


class Fails:
    """Its pickle raises any exception."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.mark.filterwarnings("ignore:allow_pickle=True")
def test_a_pickle_that_fails_where_all_is_allowed_is_a_bad_sample_or_stays() -> None:
    """For any exception that it raises."""
    assert encoded(Fails(), allow_pickle=True)[0] == SUFFIX
    with pytest.raises(InputError, match="its pickle fails: ValueError: invalid literal"):
        encoded(Fails(), {SUFFIX: "npy"}, allow_pickle=True)


def test_a_module_that_is_missing_where_a_part_is_encoded_is_said_even_under_auto() -> None:
    """Else the bytes would depend on what a worker has installed."""
    encoder = Encoder.of("auto", None, allow=["no_such_module.make"])
    assert encoder is not None
    with pytest.raises(InputError, match="needs the module 'no_such_module'"):
        encoder({SUFFIX: b"cno_such_module\nmake\n)R."})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def doubled(depth: int) -> Any:
    value: Any = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(1 << 29),
        {"a": torch.zeros(1).expand(1 << 29)},
        doubled(40),
        CYCLE,
        nested(101),
    ],
    ids=["tensor", "dict", "doubled", "cycle", "nested"],
)
def test_a_small_pickle_does_not_become_a_huge_part(value: Any) -> None:
    """It stays as it is, and takes neither memory nor time."""
    data = pickle.dumps(value)
    encoder = Encoder.of("auto", [SUFFIX])
    assert encoder is not None
    assert encoder({SUFFIX: data}) == {SUFFIX: data}
