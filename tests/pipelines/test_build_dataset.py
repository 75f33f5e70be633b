"""`build_dataset`: a function makes none, one or many samples of each input, and a rerun makes only what changed."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dray.pipelines import BuildReport, build_dataset
from dray.shards import CallError, ClusterError, InputError, Snapshot, Store
from tests.conftest import Place
from tests.support.datasets import npy, samples_at

Samples = Sequence[dict[str, Any]]


def put(folder: Path, number: int, value: int | None = None) -> None:
    """Write an input; another value gets another time."""
    folder.mkdir(exist_ok=True)
    path = folder / f"in{number:03d}.x.npy"
    np.save(path, np.full(4, number if value is None else value))
    os.utime(path, ns=(10**18 + 10**9 * (value or 0), 10**18 + 10**9 * (value or 0)))


class Twice:
    """Gives input n n % 3 samples, and notes the inputs that it saw."""

    def __init__(self, dies_at: str = "") -> None:
        self.seen: list[str] = []
        self.dies_at = dies_at

    def __call__(self, samples: Samples, rng: Sequence[np.random.Generator]) -> Iterator[dict[str, Any]]:
        for sample, random in zip(samples, rng, strict=True):
            if sample["__key__"] == self.dies_at:
                raise KeyboardInterrupt
            self.seen.append(sample["__key__"])
            for copy in range(int(sample["__key__"][-1]) % 3):
                yield {
                    "__key__": f"{sample['__key__']}_{copy}",
                    "__source__": sample["__source__"],
                    "y.npy": sample["x.npy"] * 2,
                    "noise": random.normal(size=2),
                }


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for number in range(50):
        put(tmp_path / "in", number)
    return tmp_path / "in"


def build(inputs: Path, transform: Any, **arguments: Any) -> BuildReport:
    return build_dataset(
        inputs,
        inputs.parent / "out",
        **{
            "suffixes": "x.npy",
            "transform": transform,
            "transform_version": "1",
            "batch_size": 8,
            "samples_per_shard": 5,
            "progress": False,
            **arguments,
        },
    )


def contents(inputs: Path) -> dict[str, dict[str, bytes]]:
    """Key -> parts of all samples."""
    return dict(samples_at(inputs.parent / "out"))


def test_only_what_changed_is_made_again(inputs: Path) -> None:
    """Shards without a changed input stay the same objects; samples of the others are copied, in any number."""
    first = build(inputs, one := Twice())
    assert one.seen == [f"in{number:03d}" for number in range(50)]
    assert (first.num_samples, first.num_empty, first.num_shards) == (45, 20, 9)
    assert build(inputs, one).is_new is False
    before = Snapshot.open(inputs.parent / "out")
    for number in (11, 12, 25):
        put(inputs, number, 1000 + number)
    put(inputs, 98)
    (inputs / "in037.x.npy").unlink()
    report = build(inputs, two := Twice())
    assert two.seen == ["in011", "in012", "in025", "in098"]
    assert (report.num_added, report.num_changed, report.num_removed) == (2, 5, 1)
    after = Snapshot.open(inputs.parent / "out")
    same = [shard for shard in before.shards if shard in after.shards]
    assert len(same) == 5
    built = contents(inputs)
    build_again = build(inputs, Twice(), transform_version="2")
    assert build_again.num_reused == 0
    assert contents(inputs) == built
    assert set(after.sources()["key"].to_pylist()) == {
        f"in{number:03d}" for number in [*range(50), 98] if number % 10 % 3 and number != 37
    }


def test_inputs_that_gave_no_sample_are_asked_again_only_if_they_change(inputs: Path) -> None:
    """Those of a class that is constructed for each run."""
    build(inputs, Twice)
    put(inputs, 10, 5)
    report = build(inputs, two := Twice())
    assert two.seen == ["in010"]
    assert (report.num_empty, report.num_samples) == (20, 45)


def test_a_run_that_died_is_continued(inputs: Path) -> None:
    """Sources that are whole in its shards are done; those at an edge, and those without a sample, run again."""
    for dead in (Twice(dies_at="in030"), Twice(dies_at="in030")):
        with pytest.raises(KeyboardInterrupt):
            build(inputs, dead)
        assert max(dead.seen) < "in030"
    report = build(inputs, third := Twice())
    expected = contents(inputs)
    assert report.num_reused >= 2
    assert set(third.seen) >= {f"in{number:03d}" for number in range(30, 50)}
    assert {"in001", "in002", "in004", "in005"}.isdisjoint(third.seen)
    assert build(inputs, Twice()).is_new is False
    build(inputs, Twice(), transform_version="2")
    assert contents(inputs) == expected


def test_a_function_that_fails_is_an_error_that_names_the_inputs(inputs: Path) -> None:
    """Or leaves them out, if they may be."""

    def fails(samples: Samples) -> Iterator[dict[str, Any]]:
        for sample in samples:
            if sample["__key__"] == "in007":
                raise ValueError("seven")
            yield {"__key__": sample["__key__"], "y": 1}

    with pytest.raises(InputError, match=r"fails failed for 'in000', .*ValueError: seven"):
        build(inputs, fails)
    report = build(inputs, fails, on_error="skip")
    assert (report.num_samples, report.num_skipped) == (49, 1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([{"__key__": "other", "y": 1}], "'other', which is of no input of its batch: give it '__source__'"),
        ([{"__key__": "in000"}], "no part"),
        (["in000"], "returned 'in000': expected dicts"),
        ([{"__key__": "in000", "y": object()}], "cannot be stored"),
        ([{"__key__": "in000", "y": 1}, {"__key__": "in000", "y": 2}], "share a key"),
    ],
)
def test_samples_that_cannot_be_stored_are_an_error(inputs: Path, returned: Any, message: str) -> None:
    """It says what to do."""
    with pytest.raises(InputError, match=message):
        build(inputs, lambda _: returned, names=["in000", "in001"])


def test_the_name_of_a_function_is_imported(inputs: Path) -> None:
    """Where it is not, the error names the module; a name of another form is refused."""
    assert build(inputs, f"{__name__}:Twice").num_samples == 45
    with pytest.raises(ClusterError, match=r"cannot run absent_module:name.*No module named 'absent_module'"):
        build(inputs, "absent_module:name")
    with pytest.raises(CallError, match=r"'pkg.mod:name'"):
        build(inputs, "no_colon")


def test_a_build_that_removes_many_inputs_is_refused(inputs: Path) -> None:
    """As in builds, unless it is allowed."""
    build(inputs, Twice())
    for number in range(20):
        (inputs / f"in{number:03d}.x.npy").unlink()
    with pytest.raises(CallError, match="allow_removal='100%'"):
        build(inputs, Twice())
    assert build(inputs, Twice(), allow_removal="100%").num_samples == 27


def test_inputs_and_dataset_may_be_on_any_store(place: Place) -> None:
    """Each with options of its own."""
    inputs = Store(f"{place.url}/in", place.storage_options)
    for number in range(30):
        inputs.put_new(f"in{number:03d}.x.npy", npy(np.full(4, number)))
    arguments: dict[str, Any] = {
        "suffixes": "x.npy",
        "transform": Twice(),
        "transform_version": "1",
        "samples_per_shard": 5,
        "storage_options": place.storage_options,
        "progress": False,
    }
    assert build_dataset(inputs.url, f"{place.url}/out", **arguments).num_samples == 27
    inputs.put_new("in031.x.npy", npy(np.full(4, 31)))
    inputs.delete(["in022.x.npy"])
    report = build_dataset(inputs.url, f"{place.url}/out", **arguments)
    assert (report.num_added, report.num_removed, report.num_changed, report.num_reused) == (1, 2, 0, 4)
