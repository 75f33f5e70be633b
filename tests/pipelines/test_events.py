"""What running work reports to the observers of its process."""

from pathlib import Path
from typing import Any

import pytest

from dray.pipelines import write_samples
from dray.pipelines.events import Advanced, Began, Ended, Event, FoundBad, observed_by
from tests.conftest import MakeInputs, Place
from tests.support.datasets import build


@pytest.mark.parametrize("progress", [False, True])
def test_a_build_reports_its_shards_and_bytes_whether_it_shows_them_or_not(
    make_inputs: MakeInputs, place: Place, progress: bool
) -> None:
    """Every observer gets every event, from the begin of the stage to its end, and nothing afterwards."""
    seen: tuple[list[Event], list[Event]] = ([], [])
    inputs = make_inputs(46)
    with observed_by(seen[0].append), observed_by(seen[1].append):
        report = build(inputs, place, progress=progress)
    build(inputs, Place(f"{place.url}-other", place.storage_options), progress=progress)
    assert seen[0] == seen[1]
    begun, *advanced, ended = seen[0]
    assert (begun, ended) == (Began("packing wds", 4, "shards"), Ended("packing wds"))
    steps = [event for event in advanced if isinstance(event, Advanced)]
    assert [step.count for step in steps] == [1] * 4
    assert sum(step.num_bytes for step in steps) == report.num_bytes


def test_a_stage_ends_also_by_an_error(make_inputs: MakeInputs, place: Place) -> None:
    """Observers then know that nothing is at work any more."""
    inputs, seen = make_inputs(8), list[Event]()

    def fail(key: str, parts: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(key)

    with observed_by(seen.append), pytest.raises(RuntimeError):
        build(inputs, place, func_output_data=fail, transform_version="1")
    assert seen[-1] == Ended("packing wds")


def test_bad_inputs_are_reported(make_inputs: MakeInputs, place: Place) -> None:
    """Those that were missing before, and those that cannot be packed."""
    inputs, seen = make_inputs(40), list[Event]()
    inputs.path(inputs.names[3], inputs.suffixes[0]).unlink()

    def fail_once(key: str, parts: dict[str, Any]) -> dict[str, Any]:
        if key == inputs.names[5].replace(".", "-"):
            raise ValueError(key)
        return parts

    with observed_by(seen.append):
        build(inputs, place, func_output_data=fail_once, transform_version="1", on_error="quarantine", max_bad="50%")
    assert sum(event.count for event in seen if isinstance(event, FoundBad)) == 2


def test_written_samples_are_reported(tmp_path: Path) -> None:
    """With their total where it is known."""
    seen = list[Event]()
    with observed_by(seen.append):
        write_samples(lambda n: {"cls": n}, tmp_path, inputs=range(6), samples_per_shard=3, progress=False)
    assert seen[0] == Began("writing wdshards", 6, "inputs")
    assert sum(event.count for event in seen if isinstance(event, Advanced)) == 6
