"""Inputs that cannot be packed: named, left out and listed, tried again, and always accounted for."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dray.pipelines import BuildReport
from dray.pipelines.inputs.tolerance import Tolerance
from dray.shards import CallError, InputError, MissingInputError, NotFoundError, Store
from dray.shards.manifest import Accounting
from tests.conftest import Inputs, MakeInputs, Place
from tests.support import datasets
from tests.support.datasets import latest

SUFFIX = "tensor.pyd"


def refuse_bad(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
    """Fails for a file that says so."""
    if parts[SUFFIX] == b"bad":
        raise ValueError("a bad file")
    return parts


def build(inputs: Inputs, place: Place, **options: Any) -> BuildReport:
    """4 shards; a file that holds b"bad" cannot be packed."""
    options = {
        "func_output_data": refuse_bad,
        "transform_version": "1",
        "max_bad": "100%",
        **options,
    }
    return datasets.build(inputs, place, **options)


def spoil(inputs: Inputs, *numbers: int) -> None:
    for number in numbers:
        inputs.path(inputs.names[number], SUFFIX).write_bytes(b"bad")


def left_out(place: Place) -> list[tuple[str, str, str]]:
    """(key, stage, fate) of each."""
    table = latest(place).left_out()
    return [] if table is None else [(e["key"], e["stage"], e["fate"]) for e in table.to_pylist()]


def num_objects(place: Place) -> int:
    return len(list(Path(place.url.removeprefix("file://")).rglob("*")))


def test_fail_names_every_bad_sample_after_the_other_shards_are_stored(make_inputs: MakeInputs, place: Place) -> None:
    """All can be repaired at once, and the rerun packs only theirs."""
    inputs = make_inputs(20)
    spoil(inputs, 2, 4, 17)
    with pytest.raises(InputError, match=r"3 of 20 .*'sample\.0002'.*'sample\.0004'.*'sample\.0017'.*a bad file"):
        build(inputs, place)
    for number in (2, 4, 17):
        inputs.path(inputs.names[number], SUFFIX).write_bytes(b"good")
    assert build(inputs, place).num_reused == 2


def test_fail_stops_at_twenty_names(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """A folder of nothing but garbage is not read to its end."""
    inputs, place = make_inputs(100), Place(str(tmp_path / "out"))
    spoil(inputs, *range(100))
    with pytest.raises(InputError, match=r"25 of 100 .*'sample\.0019'.*; and 5 more"):
        build(inputs, place)


@pytest.mark.parametrize(("on_error", "fate"), [("skip", "skipped"), ("quarantine", "quarantined")])
def test_bad_samples_are_left_out_and_listed(make_inputs: MakeInputs, place: Place, on_error: str, fate: str) -> None:
    """Their shard holds the others; the table beside the manifest tells key, file, stage and error."""
    inputs = make_inputs(20)
    spoil(inputs, 2, 17)
    inputs.path(inputs.names[9], SUFFIX).unlink()
    report = build(inputs, place, on_error=on_error)
    snapshot = latest(place)
    assert [shard.num_samples for shard in snapshot.shards] == [3, 5, 5, 4]
    assert (report.num_samples, report.num_skipped + report.num_quarantined) == (17, 3)
    assert left_out(place) == [
        ("sample-0002", "transform", fate),
        ("sample-0009", "find", fate),
        ("sample-0017", "transform", fate),
    ]
    assert report.left_out_url is not None
    assert f"dray ls {report.url} --left-out" in str(report)
    with pytest.raises(NotFoundError, match=f"'sample-0002' was {fate} by version 1 .*a bad file"):
        snapshot.read("sample-0002")


def test_the_table_of_what_was_left_out_is_plain_parquet(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """For whoever repairs the files."""
    inputs, place = make_inputs(8), Place(str(tmp_path / "out"))
    spoil(inputs, 5)
    report = build(inputs, place, on_error="quarantine")
    (row,) = pq.read_table(str(report.left_out_url).removeprefix("file://")).to_pylist()
    assert (row["key"], row["name"], row["file"], row["stage"]) == ("sample-0005", "sample.0005", "", "transform")
    assert "ValueError: a bad file" in row["error"]


@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_a_rerun_with_bad_samples_writes_nothing(make_inputs: MakeInputs, tmp_path: Path, on_error: str) -> None:
    """Nothing changed, so nothing is new: not even the list."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))
    spoil(inputs, 2, 17)
    inputs.path(inputs.names[9], SUFFIX).unlink()
    build(inputs, place, on_error=on_error)
    before = num_objects(place)
    assert build(inputs, place, on_error=on_error).version == 1
    assert num_objects(place) == before


def test_the_next_run_tries_just_the_quarantined_again(make_inputs: MakeInputs, place: Place) -> None:
    """What failed for a reason outside the file, and works now, goes to a new shard; nothing else is packed."""
    inputs = make_inputs(20)
    tried: list[str] = []

    def flaky(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        tried.append(key)
        if key in broken:
            raise ValueError("a server was away")
        return parts

    broken = {"sample-0003", "sample-0012"}
    build(inputs, place, on_error="quarantine", func_output_data=flaky)
    tried.clear()
    broken.discard("sample-0012")
    report = build(inputs, place, on_error="quarantine", func_output_data=flaky)
    assert set(tried) == {"sample-0003", "sample-0012"}
    assert (report.version, report.num_reused, report.num_quarantined) == (2, 4, 1)
    assert latest(place).read("sample-0012") == {SUFFIX: inputs.part("sample.0012", SUFFIX)}


def test_skipped_samples_are_looked_at_again_only_when_they_change(make_inputs: MakeInputs, place: Place) -> None:
    """A file known to be bad costs nothing more."""
    inputs = make_inputs(20)
    spoil(inputs, 3)
    build(inputs, place, on_error="skip")

    def never(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        raise AssertionError(key)

    assert build(inputs, place, on_error="skip", func_output_data=never).version == 1
    inputs.path(inputs.names[3], SUFFIX).write_bytes(b"repaired")
    report = build(inputs, place, on_error="skip")
    assert (report.num_reused, report.num_skipped, left_out(place)) == (4, 0, [])
    assert latest(place).read("sample-0003") == {SUFFIX: b"repaired"}


def test_a_new_input_that_is_left_out_is_recorded_though_no_shard_changes(
    make_inputs: MakeInputs, place: Place
) -> None:
    """A version of its own lists it; so does one when its fate, its file or nothing of it is left."""
    inputs = make_inputs(20)
    build(inputs, place)
    names = [*inputs.names, "gone"]
    path = inputs.path("gone", SUFFIX)

    def check(version: int, expected: list[tuple[str, str, str]], on_error: str = "skip", **options: Any) -> None:
        report = build(inputs, place, **{"names": names, "on_error": on_error, **options})
        assert (report.version, report.num_shards, report.num_reused) == (version, 4, 4)
        assert left_out(place) == expected

    check(2, [("gone", "find", "skipped")])
    check(2, [("gone", "find", "skipped")])
    check(3, [("gone", "find", "quarantined")], "quarantine")
    path.write_bytes(b"bad")
    check(4, [("gone", "transform", "quarantined")], "quarantine")
    os.utime(path, ns=(1, 1))
    check(5, [("gone", "transform", "quarantined")], "quarantine")
    check(6, [("gone", "transform", "skipped")], "skip")
    check(7, [], names=inputs.names)


def test_fail_does_not_take_what_an_earlier_build_left_out(make_inputs: MakeInputs, place: Place) -> None:
    """It names them: the version that it would make must be complete."""
    inputs = make_inputs(20)
    spoil(inputs, 3)
    build(inputs, place, on_error="quarantine")
    with pytest.raises(InputError, match=r"sample\.0003"):
        build(inputs, place)
    assert latest(place).version == 1


def test_a_file_that_cannot_be_read_is_left_out_too(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """With its name and the stage; here it changed between look-up and packing."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))

    def meddle(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        os.utime(inputs.path("sample.0001", SUFFIX), ns=(1, 1))
        return parts

    build(inputs, place, on_error="quarantine", func_output_data=meddle)
    table = latest(place).left_out()
    assert table is not None
    (entry,) = table.to_pylist()
    assert (entry["file"], entry["stage"]) == ("sample.0001.tensor.pyd", "read")
    assert "was changed after it was listed" in entry["error"]


def test_more_bad_samples_than_borne_end_the_build(make_inputs: MakeInputs, place: Place) -> None:
    """A number or per cent; nothing is committed."""
    inputs = make_inputs(20)
    spoil(inputs, 3, 4, 5)
    for limit in (2, "2", "10%"):
        with pytest.raises(InputError, match=r"3 of 20 .*more than the 2 that on_error='quarantine' accepts"):
            build(inputs, place, on_error="quarantine", max_bad=limit)
    with pytest.raises(NotFoundError):
        latest(place)
    assert build(inputs, place, on_error="quarantine", max_bad=3).num_quarantined == 3


def test_a_shard_of_nothing_but_bad_samples_is_not_made(make_inputs: MakeInputs, place: Place) -> None:
    """And a dataset of them is an error."""
    inputs = make_inputs(20)
    spoil(inputs, *range(5, 10))
    assert build(inputs, place, on_error="skip").num_shards == 3
    assert [shard.number for shard in latest(place).shards] == [0, 2, 3]
    spoil(inputs, *range(20))
    with pytest.raises(InputError, match="none of the 20 samples"):
        build(inputs, place, on_error="skip")


def test_missing_files_alone_are_a_missing_input_error(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """For any `on_error`; the first 20 are named."""
    inputs, place = make_inputs(30), Place(str(tmp_path / "out"))
    for name in inputs.names[:25]:
        inputs.path(name, SUFFIX).unlink()
    with pytest.raises(MissingInputError, match=r"25 of 30 .*sample\.0019.*; and 5 more"):
        build(inputs, place)
    with pytest.raises(MissingInputError, match="more than the 3"):
        build(inputs, place, on_error="skip", max_bad="10%")


@pytest.mark.parametrize("options", [{"on_error": "ignore"}, {"max_bad": "few"}, {"max_bad": "-1"}, {"max_bad": "1.5"}])
def test_a_wrong_tolerance_is_refused(make_inputs: MakeInputs, tmp_path: Path, options: dict[str, Any]) -> None:
    """Before anything is read."""
    with pytest.raises(CallError, match=next(iter(options))):
        build(make_inputs(3), Place(str(tmp_path / "out")), **options)


def test_a_percentage_accepts_at_least_one() -> None:
    """A trial on ten samples is no other case."""
    assert [Tolerance(on_error="skip", max_bad="1%").most(n) for n in (10, 199, 1000)] == [1, 1, 10]
    assert Tolerance(max_bad=5).most(1000) == 0


@given(*[st.integers(0, 3)] * 4)
def test_an_accounting_that_does_not_add_up_is_refused(inputs: int, packed: int, skipped: int, put_by: int) -> None:
    """Inputs = packed + skipped + quarantined, always."""
    if inputs == packed + skipped + put_by:
        Accounting(inputs=inputs, packed=packed, skipped=skipped, quarantined=put_by)
    else:
        with pytest.raises(ValueError, match="not every input"):
            Accounting(inputs=inputs, packed=packed, skipped=skipped, quarantined=put_by)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bad=st.lists(st.sets(st.integers(0, 11), max_size=6), min_size=1, max_size=4),
    fates=st.lists(st.sampled_from(["skip", "quarantine"]), min_size=4, max_size=4),
)
def test_every_input_is_packed_or_listed_whatever_went_wrong(
    tmp_path_factory: pytest.TempPathFactory, bad: list[set[int]], fates: list[str]
) -> None:
    """Over several builds, as files go bad and are repaired; each version lists exactly those that are bad then."""
    folder = tmp_path_factory.mktemp("inputs")
    inputs = Inputs(folder, [f"s{number}" for number in range(12)], (SUFFIX,))
    place = Place(f"memory://{folder.name}-{id(bad)}")
    for step, (numbers, on_error) in enumerate(zip(bad, fates, strict=False)):
        for number, name in enumerate(inputs.names):
            text = b"bad" if number in numbers else f"good {name}".encode()
            if not inputs.path(name, SUFFIX).exists() or inputs.part(name, SUFFIX) != text:
                inputs.path(name, SUFFIX).write_bytes(text)
                os.utime(inputs.path(name, SUFFIX), ns=(step, step))
        build(inputs, place, on_error=on_error)
        accounting = latest(place).manifest.accounting
        assert (accounting.inputs, accounting.packed) == (12, 12 - len(numbers))
        assert [key for key, _, _ in left_out(place)] == sorted(f"s{number}" for number in numbers)
        held = {key for shard in latest(place).shards for key in latest(place).index(shard).keys}
        assert held == {name for number, name in enumerate(inputs.names) if number not in numbers}


def test_a_crashed_build_with_bad_samples_ends_in_the_same_bytes(make_inputs: MakeInputs, place: Place) -> None:
    """The stored shard lacks the bad sample; the rerun adopts it and lists the sample again."""
    inputs = make_inputs(20)
    spoil(inputs, 3)
    build(inputs, place, on_error="quarantine")
    fresh = latest(place).manifest
    store = Store(place.url, place.storage_options)
    store.delete([f"__dray__/wds/commits/{1:010d}.json", "__dray__/wds/index/000001.arrow", "wds-000002.tar"])
    store.delete(["__dray__/wds/index/000002.arrow"])
    report = build(inputs, place, on_error="quarantine")
    assert report.num_reused == 3
    assert latest(place).manifest == fresh


@pytest.mark.parametrize("on_error", ["fail", "skip", "quarantine"])
def test_a_bad_sample_is_named_once(
    make_inputs: MakeInputs, tmp_path: Path, on_error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the error or by the progress, not by both; the same reason is given once for all."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))
    spoil(inputs, 2, 4)
    message = ""
    try:
        build(inputs, place, on_error=on_error, progress=True)
    except InputError as exc:
        message = str(exc)
    text = capsys.readouterr().err + message
    assert (message != "") == (on_error == "fail")
    assert text.count("'sample.0002', 'sample.0004': ") == 1
    assert [text.count(word) for word in ("sample.0002", "sample.0004", "a bad file")] == [1, 1, 1]
