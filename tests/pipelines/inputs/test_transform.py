"""What `func_output_data` may return: values as their suffix stores them, None for a sample to leave out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dray.pipelines import BuildReport
from dray.shards import InputError, NotFoundError
from dray.shards.codecs.decode import decode_part
from tests.conftest import Dray, Inputs, MakeInputs, Place
from tests.support import datasets
from tests.support.datasets import latest, stored
from tests.support.values import same

SUFFIX = "x.pyd"
FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)
Made = Mapping[str, Any] | None
Function = Callable[[str, dict[str, bytes]], Any]


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    """12 samples; each holds its number."""
    inputs = make_inputs(12, (SUFFIX,))
    for number, name in enumerate(inputs.names):
        inputs.path(name, SUFFIX).write_bytes(b"%d" % number)
    return inputs


def build(
    inputs: Inputs, place: Place, function: Callable[[str, dict[str, bytes]], Any], **options: Any
) -> BuildReport:
    """In four shards, by a function with a version."""
    defaults = {"transform_version": "1", "input_storage_options": {}}
    return datasets.build(inputs, place, func_output_data=function, **{**defaults, **options})


def odd(key: str, parts: dict[str, bytes]) -> Made:
    """Samples with an odd number only."""
    return parts if int(parts[SUFFIX]) % 2 else None


@pytest.mark.parametrize(
    ("suffix", "value", "expected"),
    [
        ("a.npy", FLOATS, FLOATS),
        ("a.npy", torch.from_numpy(FLOATS), FLOATS),
        ("a.npy", torch.from_numpy(FLOATS).T, FLOATS.T),
        ("A.NPY", torch.ones(2, requires_grad=True), np.ones(2, np.float32)),
        ("npy", np.float64(2.5), np.float64(2.5)),
        ("npy", torch.tensor(3), np.int64(3)),
        ("npy", np.asfortranarray(FLOATS), FLOATS),
        ("npy", np.array(["a", "bc"]), np.array(["a", "bc"])),
        ("t.safetensors", {"x": torch.ones(2)}, {"x": torch.ones(2)}),
        ("t.safetensors", torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        ("json", {"a": [1, 2.5, None, "b"]}, {"a": [1, 2.5, None, "b"]}),
        ("json", np.int64(3), 3),
        ("cls", 7, 7),
        ("cls", np.int64(7), 7),
        ("cls", torch.tensor(7), 7),
        ("txt", "äb", "äb"),
        ("pyd", {"x": torch.ones(2)}, {"x": torch.ones(2)}),
        ("pyd", torch.tensor(3), torch.tensor(3)),
        ("pth", torch.ones(2), torch.ones(2)),
        ("npz", {"a": FLOATS}, {"a": FLOATS}),
        ("bin", b"as it is", b"as it is"),
        ("npy", bytearray(b"as it is"), b"as it is"),
    ],
)
def test_a_value_is_stored_as_its_suffix_stores_it(inputs: Inputs, suffix: str, value: Any, expected: Any) -> None:
    """And comes back when the part is decoded; bytes are never touched."""
    place = Place(f"memory://{id(value)}-{suffix}")
    report = build(inputs, place, lambda key, parts: {suffix: value}, names=inputs.names[:1])
    assert report.num_samples == 1
    (data,) = latest(place).read("sample-0000").values()
    if isinstance(expected, bytes):
        assert data == expected
    else:
        assert same(decode_part(suffix.lower(), data), np.asarray(expected) if suffix == "npy" else expected)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            {"a.npy": [1, 2]},
            r"part 'a\.npy' is builtins\.list, which \.npy cannot hold \(list is neither a tensor",
        ),
        ({"a.npy": torch.ones(2, dtype=torch.bfloat16)}, r"torch\.Tensor of torch\.bfloat16, which \.npy cannot hold"),
        ({"a.npy": torch.eye(2).to_sparse()}, r"'a\.npy' is torch\.Tensor .*not dense"),
        ({"a.npy": np.array([{}], object)}, r"'a\.npy' is numpy\.ndarray of object"),
        ({"t.safetensors": {"x": 1}}, r"'t\.safetensors' is builtins\.dict, which \.safetensors cannot hold"),
        ({"a.json": torch.ones(2)}, r"'a\.json' is torch\.Tensor of torch\.float32, which \.json cannot hold"),
        ({"a.cls": 2.5}, r"'a\.cls' is builtins\.float, which \.cls cannot hold \(expected an integer\)"),
        ({"a.cls": torch.ones(2)}, r"'a\.cls' is torch\.Tensor"),
        ({"a.txt": 5}, r"'a\.txt' is builtins\.int, which \.txt cannot hold"),
        ({"a.wav": np.ones(2)}, r"'a\.wav' is numpy\.ndarray of float64, which \.wav cannot hold"),
        ({"a.bin": None}, r"'a\.bin' is builtins\.NoneType"),
        ({}, "it has no part; return None to leave the sample out"),
        ([1, 2], r"\(list\)"),
        (b"bytes", r"\(bytes\)"),
        ({"__key__": "other", "a": b""}, "may not change the key to 'other'"),
        ({".a": b""}, r"suffix '\.a'"),
        ({1: b""}, "a suffix is a string"),
    ],
)
def test_what_cannot_be_stored_is_an_error_that_names_sample_suffix_and_type(
    inputs: Inputs, returned: Any, message: str
) -> None:
    """And the sample is a bad one, which on_error may leave out."""
    place = Place(f"memory://refused-{id(returned)}")
    with pytest.raises(InputError, match=rf"sample 'sample\.0000' .*returned what cannot be stored .*{message}"):
        build(inputs, place, lambda key, parts: returned, names=inputs.names[:1])

    def some(key: str, parts: dict[str, bytes]) -> Any:
        return returned if parts[SUFFIX] == b"3" else parts

    assert build(inputs, place, some, on_error="skip").num_skipped == 1


@pytest.mark.parametrize("on_error", ["fail", "skip", "quarantine"])
def test_none_leaves_a_sample_out(inputs: Inputs, place: Place, on_error: str) -> None:
    """Counted apart from bad inputs, listed, and never too many; a rerun writes nothing."""
    report = build(inputs, place, odd, on_error=on_error, max_bad=0)
    assert (report.num_samples, report.num_empty, report.num_skipped, report.num_quarantined) == (6, 6, 0, 0)
    assert "0 skipped, 0 quarantined, 6 empty: dray ls" in str(report)
    snapshot = latest(place)
    assert [key for shard in snapshot.shards for key in snapshot.index(shard).keys] == [
        f"sample-{number:04d}" for number in range(1, 12, 2)
    ]
    table = snapshot.left_out()
    assert table is not None
    assert [(entry["key"], entry["fate"]) for entry in table.to_pylist()] == [
        (f"sample-{number:04d}", "empty") for number in range(0, 12, 2)
    ]
    with pytest.raises(NotFoundError, match=r"'sample-0004' gave no sample in version 1 .*returned None"):
        snapshot.read("sample-0004")
    before = stored(place)
    again = build(inputs, place, odd, on_error=on_error, max_bad=0)
    assert (again.is_new, again.num_empty) == (False, 6)
    assert stored(place) == before


def test_a_file_that_changes_is_asked_for_again(inputs: Inputs, place: Place) -> None:
    """As a new sample; the others stay out, and the function is not called for them."""
    build(inputs, place, odd)
    inputs.path(inputs.names[4], SUFFIX).write_bytes(b"71")
    asked: list[str] = []

    def note(key: str, parts: dict[str, bytes]) -> Made:
        asked.append(key)
        return odd(key, parts)

    report = build(inputs, place, note)
    assert asked == ["sample-0004"]
    assert (report.num_samples, report.num_empty) == (7, 5)
    assert latest(place).read("sample-0004") == {SUFFIX: b"71"}


def test_another_version_of_the_function_asks_for_all(inputs: Inputs, place: Place) -> None:
    """What one version left out the next may keep."""
    build(inputs, place, odd)
    report = build(inputs, place, lambda key, parts: parts, transform_version="2")
    assert (report.num_samples, report.num_empty, report.left_out_url) == (12, 0, None)


def test_a_shard_of_which_nothing_is_left_is_not_stored(inputs: Inputs, place: Place) -> None:
    """And a dataset of which nothing is left is an error that says why."""
    report = build(inputs, place, lambda key, parts: parts if int(parts[SUFFIX]) < 3 else None)
    assert (report.num_shards, report.num_samples, report.num_empty) == (1, 3, 9)
    with pytest.raises(InputError, match=r"none of the 12 samples .*func_output_data returned None"):
        build(inputs, place, lambda key, parts: None, transform_version="2")


def test_shards_that_lack_empty_inputs_serve_the_next_build(inputs: Inputs, place: Place) -> None:
    """A build that fails for one bad sample leaves the others, and the accounting is right afterwards."""
    inputs.path(inputs.names[5], SUFFIX).write_bytes(b"bad")
    with pytest.raises(InputError, match=r"sample 'sample\.0005' .*ValueError"):
        build(inputs, place, odd)
    inputs.path(inputs.names[5], SUFFIX).write_bytes(b"5")
    report = build(inputs, place, odd)
    assert (report.num_reused, report.num_samples, report.num_empty) == (3, 6, 6)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fates=st.lists(st.lists(st.sampled_from(["good", "none", "bad"]), min_size=6, max_size=6), min_size=1, max_size=4),
    on_error=st.lists(st.sampled_from(["skip", "quarantine"]), min_size=4, max_size=4),
)
def test_every_input_is_packed_empty_or_listed(
    tmp_path_factory: pytest.TempPathFactory, fates: list[list[str]], on_error: list[str]
) -> None:
    """Over several builds, as files change: each version holds the good ones, and counts the others by their kind."""
    folder = tmp_path_factory.mktemp("inputs")
    inputs = Inputs(folder, [f"s{number}" for number in range(6)], (SUFFIX,))
    place = Place(f"memory://{folder.name}-{id(fates)}")

    def by_content(key: str, parts: dict[str, bytes]) -> Made:
        fate = parts[SUFFIX].split()[0]
        if fate == b"bad":
            raise ValueError("a bad file")
        return None if fate == b"none" else {"n.npy": torch.ones(2)}

    for step, wanted in enumerate(fates):
        for name, fate in zip(inputs.names, wanted, strict=True):
            inputs.path(name, SUFFIX).write_bytes(f"{fate} {step if fate != 'bad' else ''}".encode())
        options = {"on_error": on_error[step], "max_bad": "100%"}
        if "good" not in wanted:
            with pytest.raises(InputError, match="none of the 6 samples"):
                build(inputs, place, by_content, **options)
            continue
        report = build(inputs, place, by_content, **options)
        counts = (report.num_samples, report.num_empty, report.num_skipped + report.num_quarantined)
        assert counts == (wanted.count("good"), wanted.count("none"), wanted.count("bad"))
        assert not build(inputs, place, by_content, **options).is_new


def test_ls_lists_what_a_function_left_out(inputs: Inputs, tmp_path: Any, dray: Dray) -> None:
    """With its count and the reason."""
    build(inputs, Place(str(tmp_path / "out")), odd, prefix="wdshards")
    assert "without 0 skipped, 0 quarantined, 6 empty: see --left-out" in dray("ls", tmp_path / "out").out
    assert "  sample.0004  empty: func_output_data returned None\n" in dray("ls", tmp_path / "out", "--left-out").out
    assert dray("verify", tmp_path / "out", "--level", "full").code == 0


def test_a_pickled_part_of_a_function_is_encoded_as_any_other(inputs: Inputs, place: Place) -> None:
    """Values that it returns for .pyd are pickled first."""
    build(inputs, place, lambda key, parts: {"v.pyd": torch.ones(2)}, encode="auto")
    assert latest(place).read("sample-0000").keys() == {"v.npy"}
