"""Each option of `dray build`, `plan` and `compact` changes the outcome."""

import json
import os
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from dray.shards import NotFoundError, Snapshot
from tests.conftest import Dray, Inputs, MakeInputs, Outcome

SUFFIX = "tensor.pyd"


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    """20 numbers, but sample 5 is of a class that is not on the safe list."""
    inputs = make_inputs(20)
    for number, name in enumerate(inputs.names):
        inputs.path(name, SUFFIX).write_bytes(pickle.dumps(Fraction(1, 3) if number == 5 else 1000 + number))
    return inputs


class Cli:
    """Runs `dray build` and `dray plan` on the inputs."""

    def __init__(self, dray: Dray, inputs: Inputs, out: Path) -> None:
        self._dray, self._inputs, self.out = dray, inputs, out

    def build(self, *more: object) -> Outcome:
        return self._dray("build", self._inputs.folder, self.out, "--suffix", SUFFIX, "--shards", 4, *more)

    def plan(self, *more: object) -> dict[str, Any]:
        """Returns the plan; empty if it is refused."""
        words = ["plan", self._inputs.folder, self.out, "--suffix", SUFFIX, "--shards", 4, "--json"]
        done = self._dray(*words, *more)
        found: list[dict[str, Any]] = json.loads(done.out) if done.code == 0 else [{}]
        return found[0]

    def snapshot(self, version: int | None = None) -> Snapshot:
        return Snapshot.open(self.out, version=version)

    def keys(self) -> list[str]:
        return [key for shard in self.snapshot().shards for key in self.snapshot().index(shard).keys]


@pytest.fixture
def cli(dray: Dray, inputs: Inputs, tmp_path: Path) -> Cli:
    """Builds to `out`."""
    return Cli(dray, inputs, tmp_path / "out")


def test_checksum_reaches_build_and_plan(cli: Cli, inputs: Inputs) -> None:
    """It detects content that changed with the same size and time."""
    cli.build()
    path = inputs.path(inputs.names[7], SUFFIX)
    info = path.stat()
    path.write_bytes(pickle.dumps(2000))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert {shard["fate"] for shard in cli.plan()["shards"]} == {"reused"}
    assert "rewritten" in {shard["fate"] for shard in cli.plan("--checksum")["shards"]}
    assert "nothing to do" in cli.build().out
    assert "1 packed, 3 reused" in cli.build("--checksum").out


def test_shuffle_seed_reaches_build_and_plan(cli: Cli) -> None:
    """It changes the order; the same seed is the same recipe."""
    cli.build("--shuffle-seed", 3)
    assert cli.keys() != sorted(cli.keys())
    assert {shard["fate"] for shard in cli.plan("--shuffle-seed", 3)["shards"]} == {"reused"}
    assert {shard["fate"] for shard in cli.plan("--shuffle-seed", 4)["shards"]} == {"new"}


def versions_that_can_be_read(cli: Cli, last: int) -> list[int]:
    found = list[int]()
    for version in range(1, last + 1):
        try:
            cli.snapshot(version)
        except NotFoundError:
            continue
        found.append(version)
    return found


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ((), [1, 2, 3]),
        (("--keep", 1), [1, 2, 3]),
        (("--older-than", 0), [2, 3]),
        (("--keep", 1, "--older-than", 0), [3]),
        (("--keep", 3, "--older-than", "0"), [1, 2, 3]),
        (("--keep", 1, "--older-than", "1h"), [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("command", ["build", "compact"])
def test_keep_and_older_than_reach_build_and_compact(
    cli: Cli, dray: Dray, inputs: Inputs, command: str, more: tuple[object, ...], kept: list[int]
) -> None:
    """The commit that makes version 3 drops what the rule does not keep."""
    (cli.out.parent / "names").write_text("\n".join(inputs.names[:10]))
    cli.build("--names", cli.out.parent / "names")
    cli.build()
    if command == "build":
        inputs.path(inputs.names[0], SUFFIX).write_bytes(b"changed")
        cli.build(*more)
    else:
        dray("compact", cli.out, *more)
    assert versions_that_can_be_read(cli, 3) == kept


def test_on_error_and_max_bad_reach_build_and_plan(cli: Cli, inputs: Inputs) -> None:
    """Two of 22 files are missing."""
    names = cli.out.parent / "names"
    names.write_text("\n".join([*inputs.names, "gone", "lost"]))
    given = ("--names", names)
    assert cli.build(*given).code == 1
    assert cli.build(*given, "--on-error", "skip").code == 1  # more than 1 % of them
    assert cli.plan(*given, "--on-error", "skip") == {}
    assert cli.plan(*given, "--on-error", "skip", "--max-bad", 2)["shards"]
    assert "2 skipped" in cli.build(*given, "--on-error", "skip", "--max-bad", "10%").out
    assert "2 quarantined" in cli.build(*given, "--on-error", "quarantine", "--max-bad", 2).out


@pytest.mark.filterwarnings("ignore:allow_pickle=True:UserWarning")
def test_allow_reaches_the_encoder_of_build_and_plan(cli: Cli) -> None:
    """A name outside the safe list cannot be encoded unless it is allowed."""
    encode = ("--encode", f"{SUFFIX}=json", "--on-error", "skip", "--max-bad", "100%")
    allow = ("--allow", "fractions.Fraction")
    assert cli.build(*encode).code == 0
    table = cli.snapshot().left_out()
    assert table is not None
    reasons = {entry["name"]: entry["error"] for entry in table.to_pylist()}
    assert "fractions.Fraction, which is not on the safe list" in reasons["sample.0005"]
    for more in (allow, ("--allow-pickle",)):
        plan = cli.plan(*encode, *more)
        assert {shard["fate"] for shard in plan["shards"]} == {"new"}  # part of the recipe
        assert cli.build(*encode, *more).code == 0
        table = cli.snapshot().left_out()
        assert table is not None
        reasons = {entry["name"]: entry["error"] for entry in table.to_pylist()}
        assert "safe list" not in reasons["sample.0005"]


def test_prefix_reaches_build_plan_and_compact(cli: Cli, dray: Dray) -> None:
    """Two datasets in one folder are independent."""
    cli.build("--prefix", "a")
    assert {shard["fate"] for shard in cli.plan("--prefix", "a")["shards"]} == {"reused"}
    assert {shard["fate"] for shard in cli.plan("--prefix", "b")["shards"]} == {"new"}
    assert "no dataset with prefix 'b'" in dray("compact", cli.out, "--prefix", "b").err
    assert dray("compact", cli.out, "--prefix", "a").code == 0
