"""A function replaces the parts of a sample; its failures name the sample."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dray.shards import InputError, NotFoundError
from tests.conftest import MakeInputs, Place
from tests.pipelines.building.test_build import SUFFIX, fail_at, parts_of
from tests.support.datasets import build, latest, stored


def test_a_function_replaces_the_parts(make_inputs: MakeInputs, place: Place) -> None:
    """It gets the key and the bytes by suffix; other values than bytes are encoded by their suffix."""
    inputs = make_inputs(9)

    def transform(key: str, suffix_to_data: Mapping[str, bytes]) -> dict[str, Any]:
        return {"__key__": key, "size.cls": len(suffix_to_data[SUFFIX]), "name.txt": key}

    build(inputs, place, func_output_data=transform)
    parts = list(parts_of(latest(place)))
    assert parts[:2] == [("sample-0000", "size.cls", b"15"), ("sample-0000", "name.txt", b"sample-0000")]
    assert len(parts) == 18


def test_a_function_without_a_version_is_never_reused(make_inputs: MakeInputs, place: Place) -> None:
    """Whether it changed is unknown; with a declared version it is reused."""
    inputs = make_inputs(9)
    kept = {"func_output_data": lambda key, parts: parts, "transform_version": "1"}
    assert [build(inputs, place, **kept).version for _ in range(2)] == [1, 1]
    assert [build(inputs, place, func_output_data=lambda key, parts: parts).version for _ in range(2)] == [2, 3]
    assert build(inputs, place, **{**kept, "transform_version": "2"}).num_reused == 0


def test_a_failing_function_names_the_sample_and_leaves_no_version(make_inputs: MakeInputs, place: Place) -> None:
    """All other shards are stored, for the rerun."""
    inputs = make_inputs(20)
    failing = fail_at("sample-0012", ZeroDivisionError("oops"))
    with pytest.raises(RuntimeError, match=r"sample\.0012.*ZeroDivisionError.*oops"):
        build(inputs, place, func_output_data=failing, transform_version="1")
    with pytest.raises(NotFoundError):
        latest(place)
    before = {name: body for name, body in stored(place).items() if name.endswith(".tar")}
    report = build(inputs, place, func_output_data=lambda key, parts: parts, transform_version="1")
    assert sorted(before) == ["wds-000000.tar", "wds-000001.tar", "wds-000003.tar"]
    assert report.num_reused == 3
    assert before.items() <= stored(place).items()


def test_after_a_bad_file_was_repaired_only_its_shard_is_packed(make_inputs: MakeInputs, place: Place) -> None:
    """The repaired file makes another plan, which adopts the shards of the first."""
    inputs = make_inputs(20)
    options = {"transform_version": "1", "func_output_data": refuse_bad_files}
    inputs.path(inputs.names[17], SUFFIX).write_bytes(b"bad")
    with pytest.raises(InputError, match=r"sample\.0017"):
        build(inputs, place, **options)
    inputs.path(inputs.names[17], SUFFIX).write_bytes(b"good")
    report = build(inputs, place, **options)
    assert report.num_reused == 3
    assert [shard.number for shard in latest(place).shards] == [0, 1, 2, 4]


def refuse_bad_files(key: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes]:
    if suffix_to_data[SUFFIX] == b"bad":
        raise ValueError("a bad file")
    return suffix_to_data


def test_a_missing_module_is_a_runtime_error_that_names_it(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """And the sample, and what to do."""

    def transform(key: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes]:
        import a_module_that_is_not_there  # type: ignore[import-not-found]

        return {**suffix_to_data, "x": a_module_that_is_not_there}

    with pytest.raises(RuntimeError, match=r"sample\.0000.*'a_module_that_is_not_there'.*install"):
        build(make_inputs(3), Place(str(tmp_path / "out")), func_output_data=transform)


@pytest.mark.parametrize("result", [{}, 7, {"x.bin": object()}, {"../x": b""}, {"__key__": "other", "x": b""}])
def test_a_function_result_that_cannot_be_stored_names_the_sample(
    make_inputs: MakeInputs, tmp_path: Path, result: Any
) -> None:
    """Nothing, no bytes, a path that leaves, another key."""
    with pytest.raises(RuntimeError, match=r"sample\.0000"):
        build(make_inputs(3), Place(str(tmp_path / "out")), func_output_data=lambda key, parts: result)
