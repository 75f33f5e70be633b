"""`dray build` and `dray plan`: what they make, print and refuse."""

import json
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from dray.cluster.cli.building.request import parse_fractions
from dray.cluster.cli.options import cluster_address
from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import BuildReport
from dray.shards import CallError, Snapshot
from tests.conftest import Dray, Inputs, MakeInputs


def test_build_packs_every_sample_of_the_folder(build: Dray, tmp_path: Path) -> None:
    """One line on standard output reports the dataset; a rerun reports that there is nothing to do."""
    first, second = build("--shards", 3), build("--shards", 3)
    assert first.code == second.code == 0
    assert "60 samples in 3 shards" in first.out
    assert "3 packed" in first.out
    assert "nothing to do" in second.out
    assert len(second.out.splitlines()) == 1
    assert Snapshot.open(tmp_path / "out").num_samples == 60


def test_plan_shows_what_a_build_would_do_and_writes_nothing(
    dray: Dray, build: Dray, inputs: Inputs, tmp_path: Path
) -> None:
    """It shows all shards, then none, then the changed one with its reason; the build does the same."""
    words = ["plan", inputs.folder, tmp_path / "out", "--suffix", "image.pyd", "--suffix", "label.cls", "--shards", 3]
    assert "0 shards stay, 0 rewritten, 3 new" in dray(*words).out
    assert not (tmp_path / "out").exists()
    build("--shards", 3)
    assert "nothing to do, 3 shards stay" in dray(*words).out
    inputs.path(inputs.names[30], "label.cls").write_bytes(b"changed")
    before = sorted((tmp_path / "out").rglob("*"))
    out = dray(*words).out
    assert "2 shards stay, 1 rewritten, 0 new" in out
    assert "of 000001: 1 changed, 0 removed" in out
    assert sorted((tmp_path / "out").rglob("*")) == before
    assert "1 packed, 2 reused" in build("--shards", 3).out


def test_plan_as_json_lists_every_shard(dray: Dray, build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Each dataset lists fate, number, samples, bytes and reason of its shards."""
    build("--shards", 3)
    words = ["plan", inputs.folder, tmp_path / "out", "--suffix", "image.pyd", "--suffix", "label.cls", "--json"]
    [plan] = json.loads(dray(*words, "--shards", 3).out)
    assert [(shard["fate"], shard["number"], shard["samples"]) for shard in plan["shards"]] == [
        ("reused", number, 20) for number in range(3)
    ]
    [rebuild] = json.loads(dray(*words, "--shards", 2).out)
    assert [shard["number"] for shard in rebuild["dropped"]] == [0, 1, 2]
    assert rebuild["shards"][0]["reason"] == "num_shards was 3, is 2"


def test_a_build_as_json_is_its_whole_report(build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Standard output holds only a list with one object per dataset."""
    done = build("--split", "train=0.5,val=0.5", "--shards", 3, "--json")
    reports = json.loads(done.out)
    assert [report["url"] for report in reports] == [f"file://{tmp_path}/out/{group}" for group in ("train", "val")]
    assert sum(report["num_samples"] for report in reports) == 60
    assert [set(report) for report in reports] == [{field.name for field in fields(BuildReport)}] * 2
    assert [report["is_new"] for report in json.loads(build("--json", "--prefix", "b").out)] == [True]


def test_a_failed_build_as_json_holds_the_datasets_that_were_made(build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """The error is printed on standard error, and the exit code is that of its kind."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/val").touch()  # a file where a dataset's folder should be
    done = build("--split", "train=0.5,val=0.5", "--json")
    assert done.code == 3
    assert done.err.count("dray: error: ") == 1
    assert [report["url"] for report in json.loads(done.out)] in ([], [f"file://{tmp_path}/out/train"])


def test_left_out_inputs_are_shown_with_their_reasons(build: Dray, dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """They are listed as lines and as JSON; the report and `dray ls` name the command."""
    inputs.path(inputs.names[7], "image.pyd").unlink()
    (tmp_path / "names").write_text("\n".join(inputs.names))
    done = build("--on-error", "skip", "--names", tmp_path / "names")
    command = f"dray ls file://{tmp_path}/out --left-out"
    assert f"1 skipped, 0 quarantined: {command}" in done.out
    assert "see --left-out" in dray("ls", tmp_path / "out").out
    lines = dray(*shlex.split(command)[1:]).out.splitlines()
    assert lines == [
        f"file://{tmp_path}/out wdshards version 1: 1 input is left out",
        "  sample.0007  skipped: 'sample.0007.image.pyd' is missing or unreadable",
    ]
    (facts,) = json.loads(dray(*shlex.split(command)[1:], "--json").out)
    (entry,) = facts["left_out"]
    assert (entry["name"], entry["fate"], entry["stage"]) == ("sample.0007", "skipped", "find")
    inputs.path(inputs.names[7], "image.pyd").touch()
    build("--on-error", "skip", "--names", tmp_path / "names")
    assert dray(*shlex.split(command)[1:]).out.endswith("version 2: 0 inputs are left out\n")
    assert json.loads(dray(*shlex.split(f"{command} --version 1 --json")[1:]).out) == [facts]


def test_one_is_singular(dray: Dray, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """No command prints "1 samples" or "1 shards"."""
    inputs = make_inputs(1, ("x.pyd",))
    words = [inputs.folder, tmp_path / "out", "--suffix", "x.pyd"]
    said = [dray("plan", *words), dray("build", *words), dray("plan", *words)]
    inputs.path(inputs.names[0], "x.pyd").touch()
    said += [dray("plan", *words), dray("build", *words)]
    inputs.path(inputs.names[0], "x.pyd").write_bytes(b"changed")
    said += [dray("plan", *words), dray("build", *words)]
    commands = (
        ["ls"],
        ["log"],
        ["verify"],
        ["show", "sample-0000"],
        ["rollback", "1"],
        ["compact"],
        ["gc"],
        ["diff", "2"],
    )
    said += [dray(words[0], tmp_path / "out", *words[1:]) for words in commands]
    (tmp_path / "out/wdshards-000000.tar").unlink()
    said += [dray("verify", tmp_path / "out")]
    text = "\n".join(done.out + done.err for done in said)
    assert "1 sample in 1 shard, " in text
    assert not re.findall(r"(?<![\d,.])1 (?:\w+ )?(?:samples|shards|findings|objects|inputs|steps|bytes)\b", text)


def test_more_shards_than_samples_become_one_per_sample(build: Dray, dray: Dray, inputs: Inputs) -> None:
    """A message gives both numbers."""
    done = build("--shards", 5000)
    assert "5,000 shards were asked for, and there are 60 samples" in done.err
    assert "60 samples in 60 shards" in done.out


def test_brackets_and_colons_of_a_path_are_printed_as_they_are(
    dray: Dray, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """They are not markup or emoji, in results, plans and errors."""
    inputs = make_inputs(3, ("x.pyd",))
    folder = tmp_path / "a [red]b[/] :car: [/"
    folder.mkdir(parents=True)
    shutil.copytree(inputs.folder, folder / "in")
    first = ["build", inputs.folder, folder / "out", "--suffix", "x.pyd"]
    moved = ["plan", folder / "in", *first[2:]]
    said = [dray(*first), dray(*moved), dray("ls", folder / "out"), dray("ls", folder / "nothing"), dray("log", folder)]
    for done in said:
        assert str(folder) in done.out + done.err


def test_quiet_leaves_standard_error_empty(build: Dray) -> None:
    """The report is still printed."""
    done = build("--quiet")
    assert "60 samples" in done.out
    assert done.err == ""


def test_names_are_packed_in_the_order_of_standard_input(build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Empty lines are ignored."""
    names = [inputs.names[row] for row in (5, 1, 40)]
    assert build("--names", "-", stdin="\n".join(names) + "\n\n").code == 0
    snapshot = Snapshot.open(tmp_path / "out")
    assert snapshot.index(snapshot.shards[0]).keys == [name.replace(".", "-") for name in names]


def test_names_come_from_a_file(build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """The file has one name per line."""
    (tmp_path / "names.txt").write_text("\n".join(inputs.names[:7]))
    assert "7 samples" in build("--names", tmp_path / "names.txt").out


def test_a_split_makes_a_dataset_of_each_group(build: Dray, tmp_path: Path) -> None:
    """Together they hold each sample once; a group without samples is named and left out."""
    done = build("--split", "train=0.8,val=0.2,test=0", "--prefix", "digits", "--shards", 2)
    sizes = [Snapshot.open(tmp_path / "out" / group, "digits").num_samples for group in ("train", "val")]
    assert sum(sizes) == 60
    assert min(sizes) > 0
    assert "group 'test' of the split got none of the 60 samples" in done.err
    assert not (tmp_path / "out" / "test").exists()


def test_groups_of_a_split_that_are_one_folder_are_refused(build: Dray, tmp_path: Path) -> None:
    """With a symbolic link, each group would take the other's samples for removed ones."""
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "val").symlink_to("train")
    outcome = build("--split", "train=0.5,val=0.5")
    assert outcome.code == 2
    assert f"{tmp_path}/out/train and file://{tmp_path}/out/val are the same directory" in outcome.err


def test_another_seed_splits_differently(build: Dray) -> None:
    """The same seed gives the same groups, so there is nothing to do."""
    split = ("--split", "train=0.5,val=0.5", "--quiet")
    assert build(*split).out.count("packed") == 2
    assert build(*split, "--seed", 0).out.count("nothing to do") == 2
    assert build(*split, "--seed", 1).out.count("nothing to do") == 0


def test_build_and_ls_reach_s3_by_the_environment(
    dray: Dray, inputs: Inputs, s3: SeaweedServer, s3_words: list[str]
) -> None:
    """Keys come from AWS_*, the endpoint from an option; no output contains the secret."""
    secret = s3.storage_options["secret_access_key"]
    built = dray("build", inputs.folder, s3.url("cli/out"), "--suffix", "image.pyd", *s3_words)
    listed = dray("ls", s3.url("cli"), *s3_words)
    assert built.code == listed.code == 0, built.err + listed.err
    assert f"{s3.url('cli/out')} wdshards version 1" in listed.out
    assert secret not in built.out + built.err + listed.out + listed.err


@pytest.mark.parametrize(
    ("source", "destination", "more"),
    [
        ("inputs", "inputs", ()),
        ("inputs", "inputs/out", ()),
        ("inputs", "link/out", ()),
        ("inputs/../link", "inputs", ()),
        ("inputs", ".", ("--split", "inputs=1.0")),
    ],
)
@pytest.mark.parametrize("command", ["build", "plan"])
def test_a_destination_in_the_source_is_refused(
    dray: Dray, inputs: Inputs, tmp_path: Path, command: str, source: str, destination: str, more: tuple[str, ...]
) -> None:
    """This also holds for symbolic links and groups of a split; nothing is written."""
    (tmp_path / "link").symlink_to(inputs.folder)
    before = sorted(tmp_path.rglob("*"))
    done = dray(command, tmp_path / source, tmp_path / destination, "--suffix", "image.pyd", *more)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"dray: error: the destination .* the source .*; choose a folder beside the source\n", done.err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (None, None, None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        (None, "http://10.0.0.1:8265", None),
        ("none", "10.0.0.1:6379", "none"),
        ("local", None, "local"),
    ],
)
def test_the_address_is_the_options_then_the_jobs(
    given: str | None, variable: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAY_ADDRESS may be a dashboard's, for `ray job submit`; no driver can connect to it."""
    monkeypatch.setenv("RAY_ADDRESS", variable or "")
    assert cluster_address(given) == expected


@pytest.mark.parametrize(
    "text", ["", "train", "train=", "train=x", "a=0.5,a=0.5", "../a=1", ".=1", "a=-1", "a=0.5,,b=0.5"]
)
def test_an_invalid_split_is_refused(text: str) -> None:
    """A group becomes a folder, so its name must not be a path."""
    with pytest.raises(CallError, match=r"expected train=0\.9"):
        parse_fractions(text)
