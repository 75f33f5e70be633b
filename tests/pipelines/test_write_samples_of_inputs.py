"""`write_samples` with a function and its inputs."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines import BuildReport, write_samples
from dray.shards import CallError, ClusterError, InputError, Snapshot
from tests.conftest import Place

Sample = dict[str, Any]


class Function:
    """Makes `count` samples of an input (name, count, value), and counts its calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.stops_at: int | None = None

    def __call__(self, given: tuple[str, int, int]) -> Iterator[Sample]:
        name, count, value = given
        self.calls[name] += 1
        if self.stops_at is not None and self.calls.total() > self.stops_at:
            raise KeyboardInterrupt
        for number in range(count):
            yield {"txt": f"{name} {number} {value}"}


def contents(url: str | Path, **options: Any) -> dict[str, str]:
    version = Snapshot.open(url, **options)
    return {key: version.read(key)["txt"].decode() for key in version.samples()["key"].to_pylist()}


def expected(inputs: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    return {
        f"{name}-{number}": f"{name} {number} {value}"
        for name, (count, value) in inputs.items()
        for number in range(count)
    }


def run(make: Any, url: str | Path, inputs: Mapping[str, tuple[int, int]], **options: Any) -> BuildReport:
    return write_samples(
        make,
        url,
        inputs=[(name, *rest) for name, rest in inputs.items()],
        key=lambda given: str(given[0]),
        **{"transform_version": "1", "samples_per_shard": 3, "allow_removal": "100%", "progress": False, **options},
    )


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


INPUTS = st.dictionaries(
    st.sampled_from("abcdefghijkl"), st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=12
).filter(lambda inputs: any(count for count, _ in inputs.values()))


@settings(max_examples=15, deadline=None)
@given(st.lists(INPUTS, min_size=2, max_size=3))
def test_a_version_holds_what_its_inputs_give_and_only_changed_ones_are_called(
    versions: list[dict[str, tuple[int, int]]],
) -> None:
    """Whatever changed from one run to the next; a rerun does nothing."""
    with TemporaryDirectory() as folder:
        last: dict[str, tuple[int, int]] = {}
        for inputs in versions:
            make = Function()
            run(make, folder, inputs)
            assert contents(folder) == expected(inputs)
            changed = [name for name, value in inputs.items() if last.get(name) != value]
            assert make.calls == Counter(changed)
            assert not run(make, folder, inputs).is_new
            assert make.calls == Counter(changed)
            last = inputs


@settings(max_examples=15, deadline=None)
@given(INPUTS, st.integers(0, 11), st.booleans())
def test_an_interrupted_run_is_continued(inputs: dict[str, tuple[int, int]], stop: int, with_size: bool) -> None:
    """It ends in the same bytes, and the function is not called for inputs whose samples are stored."""
    size = {"samples_per_shard": None, "shard_bytes": 4096} if with_size else {}
    with TemporaryDirectory() as clean, TemporaryDirectory() as folder:
        run(Function(), clean, inputs, **size)
        dead = Function()
        dead.stops_at = stop
        try:
            run(dead, folder, inputs, **size)
        except KeyboardInterrupt:
            stored = tars(Path(folder))
            again = Function()
            run(again, folder, inputs, **size)
            whole = {
                name
                for name, (count, _) in inputs.items()
                if count and sum(body.count(f"{name} ".encode()) for body in stored.values()) == count
            }
            assert not whole & again.calls.keys()
        assert tars(Path(folder)) == tars(Path(clean))


def test_of_many_inputs_only_the_changed_are_called(place: Place) -> None:
    """Three changed, one new, one gone: other shards stay the same objects, and the rest of theirs is copied."""
    inputs = {f"i{n:04d}": (1, 0) for n in range(1000)}
    options = {"storage_options": place.storage_options, "samples_per_shard": 100, "allow_removal": None}
    report = run(Function(), place.url, inputs, **options)
    assert (report.num_shards, report.num_samples) == (10, 1000)
    before = Snapshot.open(place.url, storage_options=place.storage_options)
    changed = {"i0010": (1, 7), "i0011": (1, 7), "i0555": (2, 7), "new": (1, 7)}
    make, now = Function(), {**inputs, **changed}
    del now["i0999"]
    report = run(make, place.url, now, **options)
    assert make.calls == Counter(changed.keys())
    assert (report.num_added, report.num_changed, report.num_removed) == (2, 3, 1)
    after = Snapshot.open(place.url, storage_options=place.storage_options)
    assert len({shard.number for shard in before.shards} & {shard.number for shard in after.shards}) == 7
    assert contents(place.url, storage_options=place.storage_options) == expected(now)
    first = after.index(after.shards[7])
    assert list(first.keys)[:12] == [f"i{n:04d}-0" for n in range(12)]


def test_a_new_version_of_the_function_does_all(tmp_path: Path) -> None:
    """As does one that declares none, each time."""
    inputs = {"a": (1, 1), "b": (2, 2)}
    for version in ("1", "2", None, None):
        make = Function()
        report = run(make, tmp_path, inputs, transform_version=version)
        assert report.is_new
        assert make.calls == Counter("ab")


@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_bad_inputs_are_left_out_whole(tmp_path: Path, on_error: str) -> None:
    """Also one that fails after its first sample; only quarantined ones are tried again, empty ones never."""

    def make(number: int) -> Iterator[Sample]:
        calls.append(number)
        for part in range(number % 3):
            if (number, part) == (5, 1) and not is_repaired:
                raise ValueError("torn page")
            yield {"txt": str(number)}

    calls: list[int] = []
    is_repaired = False
    options = {"inputs": range(9), "on_error": on_error, "max_bad": 1, "transform_version": "1", "progress": False}
    report = write_samples(make, tmp_path, samples_per_shard=2, **options)
    assert (report.num_samples, report.num_empty, report.num_skipped + report.num_quarantined) == (7, 3, 1)
    table = Snapshot.open(tmp_path).left_out()
    assert table is not None
    [error] = [row["error"] for row in table.to_pylist() if row["key"] == "000000005"]
    assert error.startswith("make_sample failed: ValueError: torn page (test_write_samples_of_inputs.py, line ")
    is_repaired, calls = True, []
    report = write_samples(make, tmp_path, samples_per_shard=2, **options)
    assert calls == ([] if on_error == "skip" else [5])
    assert report.num_samples == (7 if on_error == "skip" else 9)


def test_a_failed_run_names_its_inputs_and_is_continued(tmp_path: Path) -> None:
    """Once the input is repaired; what was stored before is not made again."""

    def make(path: Path) -> Sample:
        calls.append(path.name)
        return {"cls": int(path.read_text())}

    calls: list[str] = []
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(10):
        (folder / f"n{number}.txt").write_text(str(number) if number != 7 else "seven")
    options = {"inputs": sorted(folder.iterdir()), "samples_per_shard": 2, "transform_version": "1", "progress": False}
    with pytest.raises(InputError, match=r"raw/n7' of the inputs: make_sample failed: ValueError: invalid literal"):
        write_samples(make, tmp_path / "out", **options)
    with pytest.raises(FileNotFoundError):
        Snapshot.open(tmp_path / "out")
    (folder / "n7.txt").write_text("7")
    calls.clear()
    report = write_samples(make, tmp_path / "out", **options)
    assert calls == ["n6.txt", "n7.txt"]
    assert report.num_samples == 10


def test_inputs_that_are_gone_by_mistake_are_not_removed(tmp_path: Path) -> None:
    """More than 10 % need an argument."""
    run(Function(), tmp_path, {f"i{n}": (1, 0) for n in range(30)})
    with pytest.raises(CallError, match=r"would remove 20 of the 30 samples.*give allow_removal='100%'"):
        run(Function(), tmp_path, {f"i{n}": (1, 0) for n in range(10)}, allow_removal=None)
    assert run(Function(), tmp_path, {f"i{n}": (1, 0) for n in range(10)}, allow_removal=20).num_removed == 20


def test_random_numbers_depend_on_seed_and_key_alone(tmp_path: Path) -> None:
    """Not on the place of an input, nor on the process."""

    def make(number: int, rng: np.random.Generator) -> Sample:
        return {"x": rng.random(2), "n.json": number}

    def made(seed: int, inputs: range, name: str, **options: Any) -> dict[str, bytes]:
        write_samples(make, tmp_path / name, inputs=inputs, seed=seed, progress=False, **options)
        version = Snapshot.open(tmp_path / name)
        return {key: version.read(key)["x.npy"] for key in version.samples()["key"].to_pylist()}

    first = made(1, range(4), "a")
    assert len(set(first.values())) == 4
    assert made(1, range(2, 6), "b")["000000003"] == first["000000003"]
    assert made(2, range(4), "c")["000000003"] != first["000000003"]


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that says that a worker has died."""
    monkeypatch.setenv("DRAY_TEST_MARK", str(tmp_path / "died"))
    return tmp_path / "died"


def dying(crashes: bool) -> Callable[[int], Sample]:
    def make(number: int) -> Sample:
        mark = Path(os.environ["DRAY_TEST_MARK"])
        if number == 5 and (crashes or not mark.exists()):
            mark.touch()
            os._exit(9)
        return {"cls": number}

    return make


def test_processes_make_the_same_bytes_also_if_one_dies(tmp_path: Path, mark: Path) -> None:
    """The task is done again."""
    options: dict[str, Any] = {"inputs": range(20), "samples_per_shard": 4, "progress": False}
    mark.touch()
    write_samples(dying(False), tmp_path / "here", **options)
    mark.unlink()
    report = write_samples(dying(False), tmp_path / "there", num_workers=2, **options)
    assert mark.exists()
    assert report.num_shards == 5
    assert tars(tmp_path / "here") == tars(tmp_path / "there")


def test_a_worker_that_always_dies_is_an_error(tmp_path: Path, mark: Path) -> None:
    """It names the inputs of the task."""
    with pytest.raises(ClusterError, match=r"inputs '000000004' to '000000007'.*exit code 9"):
        write_samples(dying(True), tmp_path, inputs=range(8), samples_per_shard=4, num_workers=1, progress=False)
    assert mark.exists()


def test_arguments_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    """Each message says what to do."""
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (Function(), {}, "a function needs inputs="),
        ([], {"num_workers": 2}, "num_workers: only with inputs="),
        ([], {"inputs": [1]}, "expected a function that makes"),
        (Function(), {"inputs": []}, "inputs is empty"),
        (Function(), {"inputs": [1], "build_id": "x"}, "build_id='x': only without inputs="),
        (Function(), {"inputs": [1], "num_workers": 2, "address": "local"}, "give one"),
        (Function(), {"inputs": [1], "on_error": "ignore"}, "on_error='ignore'"),
        (
            Function(),
            {"inputs": [object()], "transform_version": "1"},
            r"inputs\[0\] holds a builtins.object.*give fing",
        ),
    ]
    for samples, options, problem in refused:
        with pytest.raises(CallError, match=problem):
            write_samples(samples, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
