"""The commands about a dataset's versions: log, diff, hold, release, rollback, gc, compact; and versions in URLs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import BuildReport, pickles_to_tars
from dray.shards import NotFoundError, Snapshot
from tests.conftest import Dray, Inputs, MakeInputs

SUFFIX = "tensor.pyd"
WRITERS = (["gc"], ["hold", "a"], ["release", "a"], ["rollback", "1"], ["compact"], ["log"], ["diff", "1"])


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    """40 samples."""
    return make_inputs(40)


Build = Callable[..., BuildReport]


@pytest.fixture
def build(inputs: Inputs, tmp_path: Path) -> Build:
    """Builds the inputs to `out` in four shards, without some samples and with more options."""

    def run(*without: str, **options: Any) -> BuildReport:
        names = [name for name in inputs.names if name not in without]
        options = {"min_num_shards": 4, "address": "none", "progress": False, **options}
        return pickles_to_tars(inputs.folder, names, SUFFIX, tmp_path / "out", "wdshards", **options)

    return run


@pytest.fixture
def out(build: Build, inputs: Inputs, tmp_path: Path) -> Path:
    """A dataset with three versions: 39 samples, one of them changed, one added."""
    last = inputs.names[-1]
    build(last)
    inputs.path(inputs.names[0], SUFFIX).write_bytes(b"changed")
    build(last)
    build()
    return tmp_path / "out"


def tree(folder: Path) -> set[str]:
    """Returns every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def log_rows(text: str) -> list[list[str]]:
    """Returns the cells of `dray log`'s table, without headings and times."""
    return [[cell for cell in re.split(r"  +", line.strip()) if "T" not in cell] for line in text.splitlines()[2:]]


def test_log_shows_the_newest_version_first(dray: Dray, out: Path) -> None:
    """The columns are number, operation, version, samples, shards, MB and state."""
    done = dray("log", out)
    assert done.out.splitlines()[0] == f"file://{out} wdshards"
    size = f"{Snapshot.open(out).num_bytes / 1e6:,.1f}"
    assert log_rows(done.out) == [
        ["3", "build", "3", "40", "5", size, "last"],
        ["2", "build", "2", "39", "4", size, "kept"],
        ["1", "build", "1", "39", "4", size, "kept"],
    ]


def test_log_shows_what_each_operation_did(dray: Dray, out: Path) -> None:
    """Holds, releases and gcs have a number, but no version, size or state."""
    dray("hold", out, "paper", "--version", 1)
    dray("rollback", out, 2)
    dray("gc", out, "--keep", 1, "--older-than", 0)
    dray("release", out, "paper")
    assert [row[:2] for row in log_rows(dray("log", out).out)] == [
        ["7", "release 1 as paper"],
        ["6", "gc of versions before 5"],
        ["5", "rollback to 2"],
        ["4", "hold 1 as paper"],
        ["3", "build"],
        ["2", "build"],
        ["1", "build"],
    ]
    assert [len(row) for row in log_rows(dray("log", out).out)] == [2, 2, 7, 2, 7, 7, 7]


def test_log_shows_what_the_second_operation_did(dray: Dray, build: Build, tmp_path: Path) -> None:
    """Only the first commit has none before it to compare with."""
    build()
    dray("hold", tmp_path / "out", "paper")
    rows = log_rows(dray("log", tmp_path / "out").out)
    assert [row[:2] for row in rows] == [["2", "hold 1 as paper"], ["1", "build"]]


def test_log_shows_the_state_of_each_version(dray: Dray, out: Path) -> None:
    """A version is the last, kept, held under each of its names, or dropped."""
    dray("hold", out, "paper", "--version", 1)
    dray("hold", out, "also", "--version", 1)
    dray("hold", out, "now")
    dray("gc", out, "--keep", 1, "--older-than", 0)
    states = {row[0]: row[-1] for row in log_rows(dray("log", out).out) if len(row) == 7}
    assert states == {"1": "held as also, held as paper", "2": "dropped", "3": "last, held as now"}


def test_log_as_json_lists_every_commit(dray: Dray, out: Path) -> None:
    """A program need not parse the table."""
    dray("hold", out, "paper", "--version", 1)
    found = json.loads(dray("log", out, "--json").out)
    assert [(entry["number"], entry["operation"], entry["state"]) for entry in found] == [
        (4, "hold", None),
        (3, "build", "last"),
        (2, "build", "kept"),
        (1, "build", "kept"),
    ]
    assert found[3]["held_as"] == ["paper"]
    assert found[3]["num_bytes"] == Snapshot.open(out, version=1).num_bytes


def test_diff_compares_with_the_last_version(dray: Dray, out: Path, inputs: Inputs) -> None:
    """It shows counts, shards by number, and keys."""
    assert dray("diff", out, 1).out.splitlines() == [
        f"file://{out} wdshards from version 1 to 3",
        "  samples  1 added, 0 removed, 1 changed, 38 the same",
        "  shards   3 in both, 1 only in 1 (000000), 2 only in 3 (000004, 000005)",
        "  + sample-0039",
        "  ~ sample-0000",
    ]


def test_diff_takes_two_versions_by_number_or_hold(dray: Dray, out: Path) -> None:
    """In the other direction, added samples are removed ones."""
    dray("hold", out, "new")
    found = json.loads(dray("diff", out, "new", 2, "--json").out)
    assert (found["a"], found["b"]) == (3, 2)
    assert (found["added"], found["removed"], found["changed"]) == ([], ["sample-0039"], [])
    assert (found["num_same"], found["shards_in_a"]) == (39, [5])


def test_diff_shows_twenty_keys_unless_asked_for_all(dray: Dray, out: Path, build: Build, inputs: Inputs) -> None:
    """It says how many are not shown."""
    build(*inputs.names[:25])
    short, long = dray("diff", out, 3).out, dray("diff", out, 3, "--all").out
    assert short.count("\n  - ") == 21
    assert "  - 5 more (--all)" in short
    assert "  - sample-0024" not in short
    assert long.count("\n  - ") == 25


def test_diff_shows_recipe_and_source(dray: Dray, out: Path, build: Build, inputs: Inputs, tmp_path: Path) -> None:
    """It shows the old and the new value."""
    inputs.folder.rename(tmp_path / "moved")
    pickles_to_tars(tmp_path / "moved", inputs.names, SUFFIX, out, "wdshards", min_num_shards=2, progress=False)
    lines = dray("diff", out, 3).out.splitlines()
    assert "  recipe   num_shards: 4 -> 2" in lines
    assert f"  source   file://{inputs.folder} -> file://{tmp_path}/moved" in lines
    assert "  samples  0 added, 0 removed, 0 changed, 40 the same" in lines


def test_a_version_is_the_same_as_itself(dray: Dray, out: Path) -> None:
    """The diff says so."""
    assert dray("diff", out, 2, 2).out.splitlines()[1:] == ["  the same"]


def test_a_held_version_outlives_every_gc(dray: Dray, out: Path) -> None:
    """Its name can be used wherever a version is expected."""
    assert "version 1 is held as paper" in dray("hold", out, "paper", "--version", 1).out
    dray("gc", out, "--keep", 1, "--older-than", 0)
    assert "wdshards version 1, made" in dray("ls", out, "--version", "paper").out
    assert "version 1: 39 samples in 4 shards, no damage found" in dray("verify", f"{out}?version=paper").out
    with pytest.raises(NotFoundError, match="dropped"):
        Snapshot.open(out, version=2)


def test_a_hold_is_of_the_last_version_by_default(dray: Dray, out: Path) -> None:
    """Repeating it adds nothing to the log."""
    assert "version 3 is held as now" in dray("hold", out, "now").out
    assert dray("hold", out, "now").code == 0
    assert len(json.loads(dray("log", out, "--json").out)) == 4


def test_the_next_gc_deletes_a_released_version(dray: Dray, out: Path) -> None:
    """The command says whether the version is still kept."""
    for name, version in (("old", 1), ("new", 3)):
        dray("hold", out, name, "--version", version)
    dray("gc", out, "--keep", 1, "--older-than", 0)
    assert "version 3 is still kept" in dray("release", out, "new").out
    assert "version 1 is dropped" in dray("release", out, "old").out
    assert "wdshards-000000.tar" in tree(out)
    dray("gc", out, "--keep", 1, "--older-than", 0)
    assert "wdshards-000000.tar" not in tree(out)


def test_a_rollback_makes_a_version_that_is_equal_to_an_old_one(dray: Dray, out: Path) -> None:
    """It writes no tar."""
    tars = tree(out)
    done = dray("rollback", out, 1)
    assert "version 4: the same as version 1, 39 samples in 4 shards" in done.out
    assert Snapshot.open(out).manifest == Snapshot.open(out, version=1).manifest
    assert tree(out) - tars == {"__dray__/wdshards/commits/0000000004.json"}


def test_a_rollback_says_that_the_next_build_repeats_what_it_undid(dray: Dray, out: Path, build: Build) -> None:
    """The next build does so."""
    assert "next build from the same sources will repeat what this undid" in dray("rollback", out, 1).out
    assert build().version == 5
    assert "  the same" not in dray("diff", out, 1).out
    assert json.loads(dray("diff", out, 3, "--json").out)["num_same"] == 40


def test_a_rollback_to_the_last_version_does_nothing(dray: Dray, out: Path) -> None:
    """The command says so."""
    done = dray("rollback", out, 3)
    assert "nothing to do, version 3 is the same as version 3" in done.out
    assert Snapshot.open(out).version == 3


def test_gc_keeps_two_versions_and_what_was_the_last_a_day_ago(dray: Dray, out: Path) -> None:
    """By default it keeps all three, which are only seconds old."""
    before = tree(out)
    assert "dropped versions: none; kept: 1, 2, 3; 0 objects" in dray("gc", out).out
    assert tree(out) == before


def test_a_dry_run_names_what_a_gc_then_deletes(dray: Dray, out: Path) -> None:
    """The dry run changes nothing."""
    before = tree(out)
    shown = dray("gc", out, "--keep", 1, "--older-than", 0, "--dry-run").out.splitlines()
    assert tree(out) == before
    assert "would drop versions: 1, 2; kept: 3" in shown[0]
    done = dray("gc", out, "--keep", 1, "--older-than", 0).out
    assert "dropped versions: 1, 2; kept: 3" in done
    assert len(done.splitlines()) == 1
    assert before - tree(out) == {line.strip() for line in shown[1:]}


def test_a_dry_run_names_twenty_objects_at_most(dray: Dray, out: Path, build: Build) -> None:
    """It says how many more there are; JSON lists all."""
    build(min_num_shards=20)
    build(min_num_shards=1)
    rule = ("--keep", 1, "--older-than", 0, "--dry-run")
    shown = dray("gc", out, *rule).out.splitlines()
    (report,) = json.loads(dray("gc", out, *rule, "--json").out)
    assert shown[-1] == f"  and {len(report['deleted']) - 20} more (--json lists all)"
    assert [line.strip() for line in shown[1:-1]] == report["deleted"][:20]
    assert report["dropped"] == [1, 2, 3, 4]
    assert report["is_dry_run"]


def test_compact_merges_small_shards(dray: Dray, build: Build, inputs: Inputs, tmp_path: Path) -> None:
    """It makes a version of the same samples in fewer tars; a second run changes nothing."""
    for start in (38, 39, 40):
        build(*inputs.names[start:], min_num_shards=None)
    out = tmp_path / "out"
    assert "wdshards version 4: 40 samples in 1 shard," in dray("compact", out).out
    found = json.loads(dray("diff", out, 3, "--json").out)
    assert (found["num_same"], found["shards_in_a"], found["shards_in_b"]) == (40, [0, 1, 2], [3])
    assert [row[1] for row in log_rows(dray("log", out).out)] == ["compact", "build", "build", "build"]
    assert "nothing to merge" in dray("compact", out).out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ls"], "wdshards version 2, made"),
        (["ls", "--prefix", "wdshards"], "wdshards version 2, made"),
        (["verify"], "wdshards version 2: 39 samples"),
        (["show", "sample-0000"], "wdshards version 2, key"),
    ],
)
def test_a_url_names_the_version_that_is_shown(dray: Dray, out: Path, words: list[str], text: str) -> None:
    """It has the same effect as `--version`."""
    command, *more = words
    assert text in dray(command, f"{out}?version=2", *more).out


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_two_different_versions_are_refused(dray: Dray, out: Path, command: str) -> None:
    """The URL names one, and the option another."""
    done = dray(command, f"{out}?version=2", "--version", 3)
    assert done.code == 2
    assert "give one" in done.err


@pytest.mark.parametrize("words", WRITERS, ids=lambda words: words[0])
@pytest.mark.parametrize("scheme", ["", "file://", "s3://"])
def test_a_command_about_the_whole_dataset_refuses_a_version_in_its_url(
    dray: Dray, out: Path, words: list[str], scheme: str
) -> None:
    """It does so on any store, before any request."""
    before = tree(out)
    done = dray(words[0], f"{scheme}{out}?version=2", *words[1:])
    assert done.code == 2
    assert re.fullmatch(r"dray: error: .*leave \?version=2 out\n", done.err)
    assert tree(out) == before


@pytest.mark.parametrize("words", WRITERS, ids=lambda words: words[0])
def test_a_dataset_that_is_not_there_is_one_line_and_exit_code_3(
    dray: Dray, out: Path, tmp_path: Path, words: list[str]
) -> None:
    """Nothing is created; a wrong prefix is reported like a wrong folder."""
    for place in ((tmp_path / "nowhere",), (out, "--prefix", "other")):
        done = dray(words[0], place[0], *words[1:], *place[1:])
        assert done.code == 3
        assert re.fullmatch(r"dray: error: no dataset .*\n", done.err)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, ["hold", "7up"], "a name is a letter"),
        (3, ["hold", "a", "--version", "9"], "no version 9"),
        (3, ["release", "a"], "no hold 'a'"),
        (3, ["rollback", "9"], "no version 9"),
        (3, ["diff", "9"], "no version 9"),
        (3, ["diff", "1", "paper"], "no hold 'paper'"),
        (2, ["gc", "--older-than", "soon"], "'soon': expected a time such as"),
    ],
)
def test_an_error_has_the_code_of_its_kind(dray: Dray, out: Path, code: int, words: list[str], message: str) -> None:
    """It says what to change, and the log is unchanged."""
    done = dray(words[0], out, *words[1:])
    assert done.code == code
    assert re.fullmatch(f"dray: error: .*{message}.*\n", done.err)
    assert Snapshot.open(out).commit.number == 3


def test_versions_on_s3_are_reached_by_storage_options(
    dray: Dray, inputs: Inputs, s3: SeaweedServer, s3_words: list[str]
) -> None:
    """Each command runs once, with a prefix that is not the default."""
    more = ("--prefix", "p", *s3_words)
    url = s3.url("versions/out")
    assert dray("build", inputs.folder, url, "--suffix", SUFFIX, "--shards", 4, *more).code == 0
    inputs.path(inputs.names[0], SUFFIX).write_bytes(b"changed")
    assert dray("build", inputs.folder, url, "--suffix", SUFFIX, "--shards", 4, *more).code == 0
    assert "~ sample-0000" in dray("diff", url, 1, *more).out
    assert "version 1 is held" in dray("hold", url, "old", *more, "--version", 1).out
    assert "version 4: the same as version 1" in dray("rollback", url, "old", *more).out
    assert "dropped versions: 2; kept: 1, 4" in dray("gc", url, *more, "--keep", 1, "--older-than", 0).out
    assert "version 1 is dropped" in dray("release", url, "old", *more).out
    assert "nothing to merge" in dray("compact", url, *more).out
    assert log_rows(dray("log", url, *more).out)[0] == ["6", "release 1 as old"]
