"""`dray build --transform` and `dray plan --transform`: what they make, print and refuse."""

import json
from pathlib import Path

import numpy as np
import pytest

from dray.shards import Snapshot
from tests.conftest import Dray

FUNCTION = """
def halves(samples, rng):
    for sample, random in zip(samples, rng):
        for number, half in enumerate(sample["x.npy"].reshape(2, 2)):
            key = f"{sample['__key__']}_{number}"
            yield {"__key__": key, "__source__": sample["__source__"], "x.npy": half, "noise": random.normal()}
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The words of a build, without its command, in a folder that holds the function's module."""
    (tmp_path / "in").mkdir()
    for number in range(20):
        np.save(tmp_path / "in" / f"s{number:02d}.x.npy", np.full(4, number))
    (tmp_path / "my_halves.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    return ["in", "out", "--suffix", "x.npy", "--transform", "my_halves:halves", "--transform-version", "1"]


def test_a_function_of_the_current_folder_makes_the_samples(dray: Dray, words: list[object], tmp_path: Path) -> None:
    """The plan says what a build would do; a rerun does nothing; a changed input is made again alone."""
    assert "20 to make" in dray("plan", *words).out
    done = dray("build", *words, "--samples-per-shard", 10, "--batch-size", 7)
    assert done.code == 0, done.err
    assert "40 samples in 4 shards" in done.out
    assert "nothing to do" in dray("build", *words).out
    np.save(tmp_path / "in" / "s03.x.npy", np.arange(4))
    (facts,) = json.loads(dray("plan", *words, "--json").out)
    assert (facts["to_make"], facts["shards_kept"], facts["samples_copied"]) == (1, 3, 8)
    (report,) = json.loads(dray("build", *words, "--json").out)
    assert (report["num_changed"], report["num_reused"]) == (2, 3)
    recipe = Snapshot.open(tmp_path / "out").manifest.recipe
    assert (recipe["transform"], recipe["function"], recipe["seed"]) == ("1", "my_halves:halves", 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shards", 2], "--transform does not go with --shards"),
        (["--encode", "auto", "--split", "a=1"], "does not go with --split, --encode"),
        (["--num-gpus", 1], "--num-gpus 1.0 is of workers on Ray: give --address"),
        (["--transform-version", ""], "--transform-version '': expected text such as '1'"),
        (["--transform", "my_halves"], "--transform my_halves: expected a name of the form 'pkg.mod:name'"),
        (["--transform", "my_halves:other"], "has no attribute 'other'"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(
    dray: Dray, words: list[object], more: list[object], message: str
) -> None:
    """In the words of the command line."""
    done = dray("build", *words, *more)
    assert done.code == (4 if "attribute" in message else 2)
    assert message in done.err


@pytest.mark.parametrize("option", ["--batch-size", "--concurrency"])
def test_a_number_below_one_is_refused(dray: Dray, words: list[object], option: str) -> None:
    """It does not stand for the default."""
    done = dray("build", *words, option, 0)
    assert done.code == 2
    assert f"Invalid value for '{option}'" in done.err


def test_its_options_are_refused_without_it(dray: Dray, words: list[object]) -> None:
    """And it needs a version."""
    assert "--batch-size: only with --transform" in dray("build", *words[:4], "--batch-size", 3).err
    assert "--transform: give --transform-version" in dray("build", *words[:6]).err


def test_a_build_without_the_function_says_which_one_made_the_dataset(dray: Dray, words: list[object]) -> None:
    """It would pack the inputs themselves."""
    assert dray("build", *words).code == 0
    for command in ("plan", "build"):
        refused = dray(command, *words[:4])
        assert refused.code == 2
        assert "the function 'my_halves:halves' made its samples, so give --transform and --transform-v" in refused.err
