"""The record of a job: what it says while and after a command runs, and that nothing depends on it."""

import os
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.cluster.jobs.record import JobPlace, JobState, after_event, first_record
from dray.cluster.jobs.recorder import recorded
from dray.pipelines.events import Advanced, Began, Ended, FoundBad, LostNode, Retried, Waiting, report
from dray.pipelines.versions.gc import gc
from dray.pipelines.versions.retention import Retention
from dray.shards import CallError, DamagedError, Snapshot
from dray.shards.layout import Layout, Location
from dray.shards.storage.store import Store
from tests.conftest import MakeInputs, Place
from tests.support.datasets import build

SECRET = "planted-secret-value"


def run_job(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dray.cluster.jobs.entry", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def place_in(folder: Path, job_id: str) -> JobPlace:
    return JobPlace(Location(Store(folder), Layout("wdshards")), job_id)


@pytest.fixture
def pickles(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"s{number}.cls").write_text(str(number))
    return tmp_path / "in"


def test_a_job_records_what_it_did_and_how_it_ended(pickles: Path, tmp_path: Path) -> None:
    """The exit code is that of the command; a rerun has a record of its own."""
    words = ["--", "build", str(pickles), str(tmp_path / "out"), "--suffix"]
    assert run_job("one", "--attempt", "3", *words, "cls").returncode == 0
    found = place_in(tmp_path / "out", "one").read()
    assert (found.attempt, found.command, found.state, found.exit_code) == (3, "build", JobState.SUCCEEDED, 0)
    assert (found.stage, found.done, found.total, found.unit) == ("packing wdshards", 1, 1, "shards")
    assert found.num_bytes == Snapshot.open(tmp_path / "out").num_bytes
    failed = run_job("two", *words, "nope")
    found = place_in(tmp_path / "out", "two").read()
    assert (found.state, found.exit_code) == (JobState.FAILED, failed.returncode)
    assert failed.returncode
    assert found.error is not None
    assert found.error in failed.stderr


def test_a_job_whose_record_cannot_be_written_runs_as_before(pickles: Path, tmp_path: Path) -> None:
    """It says so, once."""
    (tmp_path / "out/__dray__/wdshards").mkdir(parents=True)
    (tmp_path / "out/__dray__/wdshards/jobs").write_text("not a folder")
    done = run_job("one", "--", "build", str(pickles), str(tmp_path / "out"), "--suffix", "cls")
    assert done.returncode == 0
    assert done.stderr.count("the record of this job cannot be written") == 1
    assert Snapshot.open(tmp_path / "out").num_samples == 6


def test_a_script_records_where_it_is_asked_to(tmp_path: Path) -> None:
    """Its arguments, its folder on the path and its exit code are those of Python; a secret of its error is hidden."""
    (tmp_path / "beside.py").write_text("CODE = 7")
    (tmp_path / "script.py").write_text("import sys, beside; assert sys.argv[1:] == ['--', 'x']; sys.exit(beside.CODE)")
    (tmp_path / "fails.py").write_text(f"raise RuntimeError('no\\nroom for {SECRET}')")
    assert run_job("a", "--record", str(tmp_path), "--", "run", str(tmp_path / "script.py"), "--", "x").returncode == 7
    assert place_in(tmp_path, "a").read().exit_code == 7
    run_job("b", "--record", str(tmp_path), "--", "run", str(tmp_path / "fails.py"), MY_TOKEN=SECRET)
    assert place_in(tmp_path, "b").read().error == "RuntimeError: no room for ***"
    assert SECRET not in (tmp_path / "__dray__/wdshards/jobs/b.json").read_text()


def test_events_are_counted_in_the_record(tmp_path: Path) -> None:
    """Of the last stage; what is waited for ends with the next event."""
    place = place_in(tmp_path, "one")
    survey = (Began("survey", 9, "files"), Advanced("survey", 9, 0), Ended("survey"))
    packing = (Began("packing", 4, "shards"), Retried("shard 1", "died"), LostNode("10.0.0.1"), FoundBad(2))
    with suppress(KeyboardInterrupt), recorded(place, 1, "build"):
        for event in (*survey, *packing, Waiting("room"), Advanced("packing", 1, 100)):
            report(event)
        raise KeyboardInterrupt
    report(Retried("shard 1", "died"))
    found = place.read()
    assert (found.state, found.exit_code) == (JobState.STOPPED, 130)
    assert (found.stage, found.done, found.total, found.num_bytes) == ("packing", 1, 4, 100)
    assert (found.retries, found.lost_nodes, found.bad_inputs) == (1, 1, 2)


@given(st.lists(st.integers(1, 100), max_size=20), st.integers(0, 10_000))
def test_the_remaining_time_follows_from_the_rate(counts: list[int], seconds: int) -> None:
    """Unknown before anything is done."""
    record = after_event(first_record("one", 1, "build", "node"), Began("packing", 2000, "shards"), 0)
    for count in counts:
        record = after_event(after_event(record, Waiting("for room"), seconds), Advanced("packing", count, 5), seconds)
    assert (record.done, record.num_bytes, record.waiting) == (sum(counts), 5 * len(counts), None)
    if not counts:
        assert record.remaining_s is None
    else:
        assert record.remaining_s == round((2000 - record.done) * max(1, seconds) / record.done)


def test_a_dataset_lives_with_records(make_inputs: MakeInputs, place: Place) -> None:
    """On every store: they are replaced, no build or gc minds them, and gc deletes those that are old."""
    report_of_build = build(make_inputs(8), place)
    location = Location(Store(place.url, place.storage_options), Layout("wds"))
    job = JobPlace(location, "one")
    for attempt in (1, 2):
        job.write(first_record("one", attempt, "build", "node"))
    assert job.read().attempt == 2
    assert gc(location, Retention(keep=1, grace_s=0)).deleted == ()
    assert job.read().attempt == 2
    assert Snapshot.open(place.url, "wds", storage_options=place.storage_options).num_samples == 8
    assert report_of_build.version == 1


def test_gc_deletes_records_of_more_than_a_month_ago(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """And nothing else in their folder."""
    build(make_inputs(8), Place(str(tmp_path / "out"), {}))
    location = Location(Store(tmp_path / "out"), Layout("wds"))
    for name in ("old", "new"):
        JobPlace(location, name).write(first_record(name, 1, "build", "node"))
    folder = tmp_path / "out/__dray__/wds/jobs"
    (folder / "notes.txt").write_text("mine")
    old = (datetime.now(UTC) - timedelta(days=31)).timestamp()
    for name in ("old.json", "notes.txt"):
        os.utime(folder / name, (old, old))
    assert gc(location, Retention(keep=1, grace_s=0)).deleted == ("__dray__/wds/jobs/old.json",)
    assert sorted(path.name for path in folder.iterdir()) == ["new.json", "notes.txt"]


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"format": 2, "features": [], "id": 3}'])
def test_a_damaged_record_is_an_error_that_names_it(tmp_path: Path, body: str) -> None:
    """Whoever can write to the store may have written it."""
    place = place_in(tmp_path, "one")
    place.write(first_record("one", 1, "build\x1b[31m", "node"))
    assert place.read().command == "build [31m"
    (tmp_path / place.name).write_text(body)
    with pytest.raises(DamagedError, match=r"jobs/one\.json"):
        place.read()


@pytest.mark.parametrize("job_id", ["", "../x", "a/b", ".hidden", "a b", "x" * 300])
def test_an_id_is_part_of_a_file_name(tmp_path: Path, job_id: str) -> None:
    """It cannot lead out of the folder."""
    with pytest.raises(CallError, match="submission id"):
        place_in(tmp_path, job_id)
