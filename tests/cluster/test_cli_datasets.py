"""Which datasets a command is about: the one in its folder, or those of a split one folder below."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import pickles_to_tars
from dray.shards import Snapshot
from tests.conftest import Dray, Inputs

GROUPS = ("test", "train", "val")
SUFFIX = "x.pyd"


def pack(inputs: Inputs, folder: Path, *, start: int, stop: int, prefix: str = "wdshards") -> None:
    """Builds a dataset of some of the samples."""
    names = inputs.names[start:stop]
    pickles_to_tars(inputs.folder, names, SUFFIX, folder, prefix, None, 2, address="none", progress=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Nine samples."""
    inputs = Inputs(tmp_path_factory.mktemp("inputs"), [f"s{number}" for number in range(9)], (SUFFIX,))
    for number, name in enumerate(inputs.names):
        inputs.path(name, SUFFIX).write_bytes(b"\x80\x04K%c." % number)  # the number, pickled
    return inputs


@pytest.fixture(scope="module")
def template(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split of three groups with two versions each."""
    folder = tmp_path_factory.mktemp("split")
    for number, group in enumerate(GROUPS):
        for size in (2, 3):
            pack(inputs, folder / group, start=3 * number, stop=3 * number + size)
    return folder


@pytest.fixture
def split(template: Path, tmp_path: Path) -> Path:
    """A copy of the split that a test may change."""
    return Path(shutil.copytree(template, tmp_path / "split"))


@pytest.fixture(scope="module")
def several(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with two datasets."""
    folder = tmp_path_factory.mktemp("several")
    for prefix in ("a", "b"):
        pack(inputs, folder, start=0, stop=3, prefix=prefix)
    return folder


@pytest.mark.parametrize("words", [["ls"], ["log"], ["verify"], ["gc"], ["compact"]], ids=" ".join)
def test_a_command_on_the_parent_of_a_split_works_on_every_group(dray: Dray, split: Path, words: list[str]) -> None:
    """It names the groups in order."""
    done = dray(words[0], split, *words[1:])
    assert done.code == 0
    found = re.findall(rf"^file://{split}/(\w+) wdshards\b", done.out, re.MULTILINE)
    assert found == list(GROUPS)


@pytest.mark.parametrize("command", ["ls", "log", "verify", "gc"])
def test_json_of_several_datasets_is_one_list(dray: Dray, split: Path, command: str) -> None:
    """Each entry names its dataset; the result for one dataset is a list as well."""
    found = json.loads(dray(command, split, "--json").out)
    assert list(dict.fromkeys(entry["url"] for entry in found)) == [f"file://{split}/{group}" for group in GROUPS]
    assert {entry["prefix"] for entry in found} == {"wdshards"}
    alone = json.loads(dray(command, split / "val", "--json").out)
    assert {entry["url"] for entry in alone} == {f"file://{split}/val"}


def test_show_finds_the_group_that_holds_a_sample(dray: Dray, split: Path) -> None:
    """A sample in none of them is an error that names all groups."""
    assert dray("show", split, "s4").out.startswith(f"file://{split}/train wdshards version 2, key 's4'\n")
    done = dray("show", split, "s99")
    assert done.code == 3
    assert all(f"{split}/{group}" in done.err for group in GROUPS)


def test_one_damaged_group_is_exit_code_1(dray: Dray, split: Path) -> None:
    """The other groups are still checked, and a damaged record does not hide its dataset."""
    commits = sorted((split / "train/__dray__/wdshards/commits").iterdir())
    commits[-1].write_bytes(b"{")
    done = dray("verify", split)
    assert done.code == 1
    assert "not a readable commit" in done.out
    assert done.out.count("no damage found") == 2


@pytest.mark.parametrize(
    "words",
    [["hold", "paper", "--version", "1"], ["release", "paper"], ["rollback", "1"], ["diff", "1", "2"], ["loadtest"]],
    ids=lambda words: words[0],
)
def test_a_command_for_one_dataset_names_what_to_run_for_each(
    dray: Dray, split: Path, several: Path, words: list[str]
) -> None:
    """The named commands work, and nothing is changed before."""
    for folder, names in ((split, [f"file://{split}/{group}" for group in GROUPS]), (several, ["--prefix"] * 2)):
        done = dray(words[0], folder, *words[1:])
        assert done.code == 2
        assert re.match(rf"dray: error: file://{folder} holds \d datasets, and dray {words[0]} takes one: ", done.err)
        commands = [shlex.split(f"dray{text}") for text in done.err.strip().split(" dray")[2:]]
        commands = [[word.rstrip(";") for word in command] for command in commands]
        assert [name in command for name, command in zip(names, commands, strict=True)] == [True] * len(names)
        if folder == split and words[0] not in ("release", "loadtest"):
            assert [dray(*command[1:]).code for command in commands] == [0, 0, 0]


def test_names_of_several_datasets_do_not_fit_one_file(dray: Dray, split: Path, tmp_path: Path) -> None:
    """The error names a command for each dataset."""
    done = dray("verify", split, "--names", tmp_path / "names.txt")
    assert done.code == 2
    assert f"dray verify file://{split}/train --level index --names {tmp_path}/names.txt" in done.err


def test_the_only_dataset_of_a_folder_needs_no_prefix(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Its prefix may be any."""
    pack(inputs, tmp_path / "out", start=0, stop=3, prefix="digits")
    for words in (["ls"], ["log"], ["verify"], ["show", "s1"], ["hold", "paper"], ["gc"], ["compact"], ["diff", "1"]):
        done = dray(words[0], tmp_path / "out", *words[1:])
        assert (done.code, "digits" in done.out) == (0, True), done.err


def test_of_several_prefixes_each_is_shown_and_one_is_chosen(dray: Dray, several: Path) -> None:
    """--prefix chooses one of them."""
    assert [entry["prefix"] for entry in json.loads(dray("verify", several, "--json").out)] == ["a", "b"]
    assert "held as paper" in dray("hold", several, "paper", "--prefix", "a").out
    assert Snapshot.open(several, "a", version="paper").version == 1


NOTHING = ("ls", "log", "verify", "gc", "compact", "show s1", "hold a", "release a", "rollback 1", "diff 1", "loadtest")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", r"nowhere, as the folder does not exist: .* dray build SRC file://\S+/nowhere --suffix SUFFIX$"),
        (
            "empty",
            r"empty: the folder is empty or does not exist; .*: dray build SRC file://\S+/empty --suffix SUFFIX$",
        ),
        (
            "inputs",
            r"inputs; it holds 9 files \('s0\.x\.pyd', \.\.\.\); .* dray build file://\S+/inputs DEST --suffix x.pyd$",
        ),
        ("inputs/s0.x.pyd", r"this is a file, and a dataset is a folder: dray ls file://\S+/inputs$"),
        (
            "split/train/wdshards-000000.tar",
            r"this is a file, and a dataset is a folder: dray ls file://\S+/split/train$",
        ),
        ("split/train/__dray__", r"this is a folder of dray's own records: dray ls file://\S+/split/train$"),
        (
            "split/train/__dray__/wdshards/index",
            r"this is a folder of dray's own records: dray ls file://\S+/split/train$",
        ),
        ("far", r"nor in its sub-folders, but deeper: dray ls file://\S+/far/away$"),
        ("foreign", r"it holds 1 tar \('a-000000\.tar'\), not built by dray"),
        ("folders", r"nor in its sub-folders \('one', 'two'\): check the URL$"),
        ("begun", r"a build of 'wdshards' started there but made no version yet: run the same dray build again$"),
        ("split --prefix other", r"'other' in \S+/split, but there is \S+/split/test wdshards; .*leave --prefix out"),
    ],
)
def test_if_there_is_no_dataset_the_error_says_what_is_there(
    dray: Dray, inputs: Inputs, template: Path, tmp_path: Path, place: str, message: str
) -> None:
    """Every command prints one line with the command to run, and changes nothing."""
    shutil.copytree(template, tmp_path / "split")
    shutil.copytree(template, tmp_path / "far/away")
    shutil.copytree(inputs.folder, tmp_path / "inputs")
    for folder in ("empty", "foreign", "folders/one", "folders/two", "begun/__dray__/wdshards/intents"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "foreign/a-000000.tar").touch()
    (tmp_path / "begun/__dray__/wdshards/intents/0000000001.json").touch()
    before = sorted(tmp_path.rglob("*"))
    name, *more = place.split()
    for words in NOTHING:
        command, *rest = words.split()
        done = dray(command, tmp_path / name, *rest, *more)
        assert done.code == 3
        assert re.fullmatch(r"dray: error: no dataset .*\n", done.err)
        assert re.search(message, done.err.strip()), done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_on_object_storage(dray: Dray, inputs: Inputs, s3: SeaweedServer, s3_words: list[str]) -> None:
    """It covers a split's parent, a missing folder, and the URL of a tar."""
    url = s3.url("parents")
    for group in ("train", "val"):
        assert dray("build", inputs.folder, f"{url}/{group}", "--suffix", SUFFIX, "--quiet", *s3_words).code == 0
    found = [entry["url"] for entry in json.loads(dray("verify", url, "--json", *s3_words).out)]
    assert found == [f"{url}/train", f"{url}/val"]
    assert "the folder is empty or does not exist" in dray("ls", f"{url}/nowhere", *s3_words).err
    assert f"this is a file, and a dataset is a folder: dray ls {url}/val" in (
        dray("log", f"{url}/val/wdshards-000000.tar", *s3_words).err
    )
