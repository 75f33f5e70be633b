"""Finding, fingerprinting and reading inputs."""

import os
from pathlib import Path

import numpy as np
import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines.inputs import sources as sources_module
from dray.pipelines.inputs.sources import find_missing, find_sources, read_files
from dray.pipelines.inputs.tolerance import Tolerance
from dray.shards.errors import CallError, InputError, MissingInputError
from dray.shards.storage.store import Store
from tests.conftest import MakeInputs

SUFFIX = ("tensor.pyd",)


def test_missing_files_are_refused_and_the_first_twenty_named(make_inputs: MakeInputs) -> None:
    """All of them are counted."""
    inputs = make_inputs(30)
    for name in inputs.names[:25]:
        inputs.path(name, SUFFIX[0]).unlink()
    missing = find_missing(find_sources(Store(inputs.folder), inputs.names, SUFFIX))
    assert [bad.name for bad in missing] == inputs.names[:25]
    with pytest.raises(MissingInputError, match="25 of 30") as refusal:
        Tolerance().check(missing, 30, "there")
    assert isinstance(refusal.value, RuntimeError)
    assert isinstance(refusal.value, FileNotFoundError)
    assert "sample.0019.tensor.pyd" in str(refusal.value)
    assert "sample.0020" not in str(refusal.value)
    assert "and 5 more" in str(refusal.value)


def test_a_folder_is_no_input_file(make_inputs: MakeInputs) -> None:
    """Nor is a socket or a device."""
    inputs = make_inputs(2)
    (inputs.folder / "folder.tensor.pyd").mkdir()
    found = find_sources(Store(inputs.folder), ["folder", *inputs.names], SUFFIX)
    assert [bad.file for bad in find_missing(found)] == ["folder.tensor.pyd"]


def test_a_missing_input_folder_is_named() -> None:
    """Before anything is looked at in it."""
    with pytest.raises(MissingInputError, match="/no/such/folder"):
        find_sources(Store("/no/such/folder"), ["a"], SUFFIX)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "empty"),
        (["a", "b", "a"], "more than once: 'a'"),
        (["a.b", "a-b", "c"], "one key, .*'a-b', 'a.b'"),
        (["../a"], r"'\.\./a'"),
        (["/etc/passwd"], "/etc/passwd"),
        (["a/../../b"], r"a/\.\./\.\./b"),
        (["a\nb"], "relative path"),
        ([""], "relative path"),
        (["__meta__/x"], "double underscores"),
    ],
)
def test_names_that_cannot_become_keys_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    """Before a file is looked at."""
    with pytest.raises(CallError, match=message):
        find_sources(Store(tmp_path), names, SUFFIX)


def test_a_file_that_changed_since_it_was_fingerprinted_is_an_error(make_inputs: MakeInputs) -> None:
    """In size, in content by its modification time, or gone."""
    inputs = make_inputs(3)
    found = find_sources(Store(inputs.folder), inputs.names, SUFFIX)
    inputs.path(inputs.names[0], SUFFIX[0]).write_bytes(b"longer than before" * 10)
    os.utime(inputs.path(inputs.names[1], SUFFIX[0]), ns=(1, 1))
    inputs.path(inputs.names[2], SUFFIX[0]).unlink()
    for row, message in enumerate(["was changed after", "was changed after", "cannot read"]):
        with pytest.raises(InputError, match=message):
            list(read_files(Store(inputs.folder), found.take(np.array([row]))))


def test_names_in_folders_are_found_and_read(tmp_path: Path) -> None:
    """A name may be a path below the input directory."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.tensor.pyd").write_bytes(b"x")
    found = find_sources(Store(tmp_path), ["deep/er/a"], SUFFIX)
    assert list(read_files(Store(tmp_path), found)) == [b"x"]


@pytest.mark.parametrize("most_look_ups", [0, 2000])
def test_object_storage_gives_the_same_by_listing_and_by_asking(
    make_inputs: MakeInputs, s3: SeaweedServer, monkeypatch: pytest.MonkeyPatch, most_look_ups: int
) -> None:
    """Few objects are asked for one by one, many are listed: sizes, contents and the missing ones agree."""
    monkeypatch.setattr(sources_module, "MOST_LOOK_UPS", most_look_ups)
    inputs, store = make_inputs(20, ("a.pyd", "b.pyd")), Store(s3.url(f"inputs-{most_look_ups}"), s3.storage_options)
    for name in inputs.names:
        for suffix in inputs.suffixes:
            store.put_new(f"{name}.{suffix}", inputs.part(name, suffix))
    found = find_sources(store, inputs.names, inputs.suffixes)
    expected = [inputs.part(name, suffix) for name in inputs.names for suffix in inputs.suffixes]
    assert list(read_files(store, found)) == expected
    assert found.sizes.ravel().tolist() == [len(part) for part in expected]
    found = find_sources(store, [*inputs.names, "gone"], inputs.suffixes)
    assert [(bad.name, bad.file, bad.stage) for bad in find_missing(found)] == [("gone", "gone.a.pyd", "find")]


def test_an_object_replaced_since_it_was_fingerprinted_is_an_error(s3: SeaweedServer) -> None:
    """Its ETag tells."""
    store = Store(s3.url("replaced"), s3.storage_options)
    store.put_new("a.tensor.pyd", b"before")
    found = find_sources(store, ["a"], SUFFIX)
    store.delete(["a.tensor.pyd"])
    store.put_new("a.tensor.pyd", b"behind")
    with pytest.raises(InputError, match="was changed after it was listed"):
        list(read_files(store, found))
