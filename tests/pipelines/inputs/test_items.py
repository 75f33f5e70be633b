"""Keys and fingerprints of inputs of any kind."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dray.pipelines.inputs.items import Items
from dray.shards import CallError


def items(*values: Any, **options: Any) -> Items:
    return Items.of(values, options.pop("key", None), options.pop("fingerprint", None), are_compared=True)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("cats/1.jpg", "cats/1"),
        (Path("/data/cats/1.jpg"), "data/cats/1"),
        ("../raw/x.tar.gz", "raw/x-tar"),
        ("s3://user:secret@bucket/a/b.png", "bucket/a/b"),
        ("https://host/a.png?token=secret", "host/a"),
        ("v1.5", "v1-5"),
        (7, "000000007"),
        (np.int32(7), "000000007"),
        ({"any": "thing"}, "000000000"),
        (("a.jpg", 3), "000000000"),
    ],
)
def test_an_input_has_a_key_that_is_a_name(value: Any, key: str) -> None:
    """Without what may be secret in a URL."""
    assert items(value).keys == [key]


def test_keys_that_are_equal_or_no_names_are_refused() -> None:
    """Each message asks for `key=`."""
    for values in (("a.jpg", "a.png"), ("line\nline",), ("",), (1, "000000001")):
        with pytest.raises(CallError, match="give key="):
            items(*values)
    assert items("a.jpg", "a.png", key=lambda name: name).keys == ["a-jpg", "a-png"]
    with pytest.raises(CallError, match=r"inputs\[0\]: its key by key= is 3"):
        items("a", key=lambda _: 3)


def test_a_fingerprint_changes_with_the_value_and_with_files_that_it_names(tmp_path: Path) -> None:
    """Wherever in the value; and not from one run to the next."""
    file = tmp_path / "a.jpg"
    file.write_bytes(b"1")
    values = [str(file), file, (str(file), 1), {"image": file, "label": [2, None, 1.5, True]}, np.arange(3), b"12"]
    before = items(*values, key=repr_key(values)).marks()
    assert len(set(before.tolist())) == len(values) - 1  # a path and its text are equal
    assert (items(*values, key=repr_key(values)).marks() == before).all()
    os.utime(file, ns=(1, 1))
    after = items(*values, key=repr_key(values)).marks()
    assert (after != before).tolist() == [True, True, True, True, False, False]
    for one, other in ((1, 2), (1, "1"), ([1, 2], [12]), ({"a": 1}, {"a": 2}), (np.arange(3), np.arange(3.0))):
        assert items(one).marks() != items(other).marks()
    assert items({"a": 1, "b": 2}).marks() == items({"b": 2, "a": 1}).marks()


def repr_key(values: list[Any]) -> Any:
    numbers = iter(range(len(values)))
    return lambda _: f"k{next(numbers)}"


def test_a_function_may_give_the_fingerprint() -> None:
    """Of a value that has none by itself."""
    first = items(object(), fingerprint=lambda _: "v1").marks()
    assert first == items(object(), fingerprint=lambda _: "v1").marks()
    assert first != items(object(), fingerprint=lambda _: "v2").marks()
    with pytest.raises(CallError, match=r"fingerprint= gave for inputs\[0\] a builtins.set"):
        items(1, fingerprint=lambda _: {1})
