"""`dray jobs` from the records of a dataset alone."""

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from dray.cluster.cli.app import command_line
from dray.cluster.jobs.record import JobPlace, first_record
from dray.cluster.jobs.recorder import recorded
from dray.shards.layout import Layout, Location
from dray.shards.storage.store import Store


def jobs(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command_line(), ["jobs", *words])
    return done.exit_code, done.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One job that succeeded, one that runs, and one whose record nobody has written for long."""
    location = Location(Store(tmp_path), Layout("wds"))
    with recorded(JobPlace(location, "ended"), 1, "build"):
        pass
    for name in ("running", "silent"):
        JobPlace(location, name).write(first_record(name, 1, "build", "node"))
    old = time.time() - 300
    os.utime(tmp_path / "__dray__/wds/jobs/silent.json", (old, old))
    return tmp_path


def test_jobs_are_listed_with_their_states(folder: Path) -> None:
    """The one that is silent is lost; a damaged record hides no other."""
    code, output = jobs(str(folder), "--json")
    states = {job["id"]: job["state"] for job in json.loads(output)}
    assert (code, states) == (0, {"ended": "succeeded", "running": "running", "silent": "lost"})
    (folder / "__dray__/wds/jobs/ended.json").write_text("{}")
    code, output = jobs(str(folder))
    assert code == 0
    assert "running  running" in output
    assert "silent  lost" in output


def test_the_status_of_a_job_ends_with_its_exit_code(folder: Path) -> None:
    """A lost one has that of a cluster's failure."""
    assert jobs("status", "ended", str(folder), "-f")[0] == 0
    assert jobs("status", "silent", str(folder), "-f")[0] == 4
    code, output = jobs("status", "running", str(folder))
    assert (code, output.startswith("running  running, build since")) == (0, True)
    assert jobs("status", "other", str(folder))[0] == 3


@pytest.mark.parametrize("words", [["status"], ["stop"], ["logs", "a", "b"], ["a", "b"]])
def test_a_wrong_call_is_refused(words: list[str]) -> None:
    """Before anything is asked."""
    assert jobs(*words)[0] == 2
