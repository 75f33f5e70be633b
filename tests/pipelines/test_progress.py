"""The progress lines of long work without a terminal."""

import re
from pathlib import Path

import pytest

from dray.pipelines import progress, write_samples
from tests.conftest import MakeInputs, Place
from tests.pipelines.building.test_compact import compacted, thinned_and_grown
from tests.support.datasets import build

LINE = r"dray: (packing|merging) wds: (\d+) of (\d+) shards, [\d,]+ MB, \d+ s"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for every shard, not one every few seconds."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)


@pytest.mark.usefixtures("lines")
def test_a_build_and_a_compaction_count_every_shard(
    make_inputs: MakeInputs, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first to the last."""
    inputs = make_inputs(46)
    build(inputs, Place(f"{place.url}-once", place.storage_options), progress=True)
    assert re.findall(LINE, capsys.readouterr().err) == [("packing", str(number), "4") for number in range(1, 5)]
    thinned_and_grown(inputs, place)
    made = compacted(place, progress=True).num_made
    assert made
    expected = [("merging", str(number), str(made)) for number in range(1, made + 1)]
    assert re.findall(LINE, capsys.readouterr().err) == expected


@pytest.mark.usefixtures("lines")
def test_nothing_is_said_that_nobody_asked_for(
    make_inputs: MakeInputs, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line is written if there is nothing to do."""
    inputs = make_inputs(8)
    build(inputs, place)
    said = [line for line in capsys.readouterr().err.splitlines() if "waiting for an answer" not in line]
    assert said == []  # a server that is slow is always said
    build(inputs, place, progress=True)
    assert not re.search(LINE, capsys.readouterr().err)


@pytest.mark.usefixtures("lines")
def test_written_samples_are_counted_with_their_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all where their number is known."""
    write_samples(({"cls": n} for n in range(6)), tmp_path / "a", samples_per_shard=3)
    write_samples(lambda n: {"cls": n}, tmp_path / "b", inputs=range(6), samples_per_shard=3)
    found = re.findall(
        r"dray: writing wdshards: (.+?), \d+ MB, \d+ MB/s, \d+ s, [\d,]+ a second", capsys.readouterr().err
    )
    assert found == ["3 samples", "6 samples", "3 of 6 inputs", "6 of 6 inputs"]
