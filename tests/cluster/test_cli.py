"""The `dray` command: what it prints where, its exit codes, and that its help tells the truth."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls

from dray.cluster.cli import app
from dray.cluster.cli.building.request import parse_fractions
from dray.cluster.cli.commands import LazyCommand
from dray.cluster.cli.options import cluster_address
from dray.cluster.cli.wording import in_words
from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import BuildReport
from dray.shards import CallError, Snapshot
from tests.conftest import Dray, Inputs, MakeInputs

PROGRAM = str(Path(sys.executable).parent / "dray")
COMMANDS = [(name, module, summary) for module, named in app.COMMANDS.items() for name, summary in named.items()]


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    """60 samples of two parts."""
    return make_inputs(60, ("image.pyd", "label.cls"))


@pytest.fixture
def build(dray: Dray, inputs: Inputs, tmp_path: Path) -> Dray:
    """Runs `dray build` on the inputs, with further words."""
    words = ["build", inputs.folder, tmp_path / "out", "--suffix", "image.pyd", "--suffix", "label.cls"]
    return lambda *more, **options: dray(*words, *more, **options)


def test_build_packs_every_sample_of_the_folder(build: Dray, tmp_path: Path) -> None:
    """One line on standard output tells what was made; a rerun says that there is nothing to do."""
    first, second = build("--shards", 3), build("--shards", 3)
    assert first.code == second.code == 0
    assert "60 samples in 3 shards" in first.out
    assert "3 packed" in first.out
    assert "nothing to do" in second.out
    assert len(second.out.splitlines()) == 1
    assert Snapshot.open(tmp_path / "out").num_samples == 60


def test_plan_tells_what_a_build_would_do_and_writes_nothing(
    dray: Dray, build: Dray, inputs: Inputs, tmp_path: Path
) -> None:
    """First everything, then nothing, then the changed shard with its reason; and the build does just that."""
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
    """Fate, number, samples, bytes and reason; a dataset each."""
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
    """A list with one object for each dataset; nothing else is on standard output."""
    done = build("--split", "train=0.5,val=0.5", "--shards", 3, "--json")
    reports = json.loads(done.out)
    assert [report["url"] for report in reports] == [f"file://{tmp_path}/out/{group}" for group in ("train", "val")]
    assert sum(report["num_samples"] for report in reports) == 60
    assert [set(report) for report in reports] == [{field.name for field in fields(BuildReport)}] * 2
    assert [report["is_new"] for report in json.loads(build("--json", "--prefix", "b").out)] == [True]


def test_a_failed_build_as_json_holds_the_datasets_that_were_made(build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """The error stays on standard error, and the exit code is 1."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/val").touch()  # a file where a dataset's folder should be
    done = build("--split", "train=0.5,val=0.5", "--json")
    assert done.code == 1
    assert done.err.count("dray: error: ") == 1
    assert [report["url"] for report in json.loads(done.out)] in ([], [f"file://{tmp_path}/out/train"])


def test_left_out_inputs_are_shown_with_their_reasons(build: Dray, dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """As lines and as JSON; the report and `dray ls` name the command."""
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


def test_one_is_no_plural(dray: Dray, make_inputs: MakeInputs, tmp_path: Path) -> None:
    """In what every command prints of one sample in one shard."""
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


def test_more_shards_than_samples_are_said_to_be_as_many_as_samples(build: Dray, dray: Dray, inputs: Inputs) -> None:
    """By the build and by the plan."""
    done = build("--shards", 5000)
    assert "5,000 shards were asked for, and there are 60 samples" in done.err
    assert "60 samples in 60 shards" in done.out


def test_brackets_and_colons_of_a_path_are_printed_as_they_are(
    dray: Dray, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """They are no markup and no emoji, in results, plans and errors."""
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
    """The report stays."""
    done = build("--quiet")
    assert "60 samples" in done.out
    assert done.err == ""


def test_names_are_packed_in_the_order_of_standard_input(build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Empty lines count for nothing."""
    names = [inputs.names[row] for row in (5, 1, 40)]
    assert build("--names", "-", stdin="\n".join(names) + "\n\n").code == 0
    snapshot = Snapshot.open(tmp_path / "out")
    assert snapshot.index(snapshot.shards[0]).keys == [name.replace(".", "-") for name in names]


def test_names_come_from_a_file(build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """One a line."""
    (tmp_path / "names.txt").write_text("\n".join(inputs.names[:7]))
    assert "7 samples" in build("--names", tmp_path / "names.txt").out


def test_a_split_makes_a_dataset_of_each_group(build: Dray, tmp_path: Path) -> None:
    """Together they hold each sample once; a group without one is said and left out."""
    done = build("--split", "train=0.8,val=0.2,test=0", "--prefix", "digits", "--shards", 2)
    sizes = [Snapshot.open(tmp_path / "out" / group, "digits").num_samples for group in ("train", "val")]
    assert sum(sizes) == 60
    assert min(sizes) > 0
    assert "group 'test' of the split got none of the 60 samples" in done.err
    assert not (tmp_path / "out" / "test").exists()


def test_groups_of_a_split_that_are_one_folder_are_refused(build: Dray, tmp_path: Path) -> None:
    """By a symbolic link, say: each would take the other's samples for removed ones."""
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "val").symlink_to("train")
    outcome = build("--split", "train=0.5,val=0.5")
    assert outcome.code == 1
    assert f"{tmp_path}/out/train and file://{tmp_path}/out/val are the same directory" in outcome.err


def test_another_seed_splits_otherwise(build: Dray) -> None:
    """The same seed deals the same, so there is nothing to do."""
    split = ("--split", "train=0.5,val=0.5", "--quiet")
    assert build(*split).out.count("packed") == 2
    assert build(*split, "--seed", 0).out.count("nothing to do") == 2
    assert build(*split, "--seed", 1).out.count("nothing to do") == 0


def test_build_and_ls_reach_s3_by_the_environment(
    dray: Dray, build: Dray, inputs: Inputs, s3: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys come from AWS_*, the endpoint by an option; neither output holds the secret."""
    secret = s3.storage_options["secret_access_key"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.storage_options["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    place = ("--storage-option", f"endpoint={s3.endpoint}", "--storage-option", "region=us-east-1")
    built = dray("build", inputs.folder, s3.url("cli/out"), "--suffix", "image.pyd", *place)
    listed = dray("ls", s3.url("cli"), *place)
    assert built.code == listed.code == 0, built.err + listed.err
    assert f"{s3.url('cli/out')} wdshards version 1" in listed.out
    assert secret not in built.out + built.err + listed.out + listed.err


def test_ls_tells_what_a_folder_holds(dray: Dray, build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Version, time, size, parts, source, tars, and a line a shard."""
    build("--shards", 3)
    out = dray("ls", tmp_path / "out").out
    assert re.search(r"/out wdshards version 1, made \d{4}-\d\d-\d\dT", out)
    for words in (
        "60 samples in 3 shards",
        "image.pyd, label.cls",
        str(inputs.folder),
        "wdshards-{000000..000002}.tar",
    ):
        assert words in out
    assert re.search(r"^ *shard +samples +bytes *\n *000000 +20 +[\d,]+ *$", out, re.MULTILINE)
    assert re.search(r"^ *000002 +20 +[\d,]+ *$", out, re.MULTILINE)


def test_ls_finds_every_prefix_and_the_groups_of_a_split(dray: Dray, build: Dray, tmp_path: Path) -> None:
    """Datasets right in the folder, else those one folder below."""
    build("--split", "train=0.5,val=0.5")
    assert [found["url"].rpartition("/")[2] for found in json.loads(dray("ls", tmp_path / "out", "--json").out)] == [
        "train",
        "val",
    ]
    build("--prefix", "a")
    build("--prefix", "b")
    assert [found["prefix"] for found in json.loads(dray("ls", tmp_path / "out", "--json").out)] == ["a", "b"]
    assert " b version 1" not in dray("ls", tmp_path / "out", "--prefix", "a").out


def test_ls_shows_twenty_shards_unless_asked_for_all(dray: Dray, build: Dray, tmp_path: Path) -> None:
    """It says how many it left out."""
    build("--shards", 30)
    short, long = dray("ls", tmp_path / "out").out, dray("ls", tmp_path / "out", "--all").out
    assert "10 more" in short
    assert " 000029 " not in short
    assert " 000029 " in long


def test_ls_urls_and_their_pattern_are_the_same_tars(dray: Dray, build: Dray, tmp_path: Path) -> None:
    """URLs alone on standard output, for a pipe; webdataset expands the pattern on standard error to the same."""
    build("--shards", 12)
    listed = dray("ls", tmp_path / "out", "--urls")
    urls = listed.out.splitlines()
    assert [os.path.exists(url.removeprefix("file://")) for url in urls] == [True] * 12
    assert expand_urls(listed.err.removeprefix("as one pattern: ").strip()) == urls


@pytest.mark.parametrize("name", ["a%20b", "a b#c?d", "100% {0..1}", ":cat: [red]ü"])
def test_a_dataset_in_a_folder_of_any_name_is_found(dray: Dray, inputs: Inputs, tmp_path: Path, name: str) -> None:
    """By path, by the URL that was printed, below its parent, with a version; webdataset opens the tars' URLs."""
    words = ("--suffix", "image.pyd", "--split", "train=1.0", "--shards", 1)
    assert dray("build", inputs.folder, tmp_path / name, *words).code == 0
    (url,) = (found["url"] for found in json.loads(dray("ls", tmp_path / name, "--json").out))
    listed = dray("ls", url, "--urls")
    (tar,) = listed.out.splitlines()
    with gopen(tar) as file:
        assert file.read() == (tmp_path / name / "train/wdshards-000000.tar").read_bytes()
    assert all(expand_urls(line.removeprefix("as one pattern: ")) == [tar] for line in listed.err.splitlines())
    assert dray("verify", f"{url}?version=1").code == 0


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
    """Also by way of a link, and for a group of a split; nothing is written."""
    (tmp_path / "link").symlink_to(inputs.folder)
    before = sorted(tmp_path.rglob("*"))
    done = dray(command, tmp_path / source, tmp_path / destination, "--suffix", "image.pyd", *more)
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"dray: error: the destination .* the source .*; choose a folder beside the source\n", done.err)
    assert sorted(tmp_path.rglob("*")) == before


def test_ls_shows_an_older_version(dray: Dray, build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """A rebuild after one file changed: version 1 still lists its own shards, which were not touched."""
    build("--shards", 3)
    inputs.path(inputs.names[0], "image.pyd").write_bytes(b"changed")
    build("--shards", 3)
    old, new = (dray("ls", tmp_path / "out", "--urls", "--version", version) for version in (1, 2))
    assert old.out.splitlines()[1:] == new.out.splitlines()[1:]
    assert old.out.splitlines()[0] != new.out.splitlines()[0]
    assert "as one pattern" not in new.err
    assert "no version 3 of prefix" in dray("ls", tmp_path / "out", "--version", 3).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "nowhere", "out", "--suffix", "image.pyd"], "no file \\*.image.pyd in file://.*/nowhere"),
        (["build", "in", "out", "--suffix", ".pyd"], "suffix '.pyd'"),
        (["build", "in", "out", "--suffix", "pyd", "--names", "missing.txt"], "'missing.txt'"),
        (["build", "in", "out", "--suffix", "pyd", "--split", "train"], "--split train: expected train=0.9"),
        (["build", "in", "out", "--suffix", "pyd", "--storage-option", "hidden"], "expected KEY=VALUE"),
        (["build", "in", "out", "--suffix", "pyd", "--address", "http://head:8265"], "ray job submit --address http"),
        (["build", "in", "out", "--suffix", "pyd", "--address", "127.0.0.1:1"], "no Ray cluster answers there"),
        (["ls", "nowhere"], "no dataset in file://.*/nowhere"),
        (["ls", "nowhere", "--prefix", "a"], "no dataset with prefix 'a'"),
        (["ls", "ftp://host/folder"], "ftp:// is not a storage URL"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_1(
    dray: Dray, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback; the line says what to mend."""
    monkeypatch.chdir(tmp_path)
    done = dray(*words)
    assert done.code == 1
    assert re.fullmatch(f"dray: error: .*{message}.*\n", done.err)
    assert "hidden" not in done.err


@pytest.mark.parametrize("words", [["build", "."], ["ls"], ["pack"], ["build", "in", "out", "--shards", "many"]])
def test_a_command_line_that_cannot_be_read_is_exit_code_2(dray: Dray, words: list[str]) -> None:
    """As with other programs; the message shows the usage."""
    done = dray(*words)
    assert done.code == 2
    assert "Usage: dray" in done.err


def test_the_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    """By `--traceback` or DRAY_TRACEBACK=1."""
    for words, variables in ((["--traceback"], {}), ([], {"DRAY_TRACEBACK": "1"})):
        command = [PROGRAM, *words, "ls", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, timeout=60)
        assert done.returncode == 1
        assert "Traceback (most recent call last)" in done.stderr
        assert "NotFoundError: no dataset in" in done.stderr


def interrupt(command: list[object], when: Callable[[], bool]) -> tuple[int, str]:
    """The exit code and standard error of a command that gets Ctrl-C as soon as something holds."""

    def listen() -> None:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a shell lets what it starts in the background ignore it

    words = list(map(str, (PROGRAM, *command)))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        while process.poll() is None and not when():
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ctrl_c_says_what_is_kept_and_a_rerun_goes_on(make_inputs: MakeInputs, tmp_path: Path, dray: Dray) -> None:
    """Exit code 130, one line, no traceback; the shards that were stored are the rerun's."""
    inputs, out = make_inputs(400, ("x.pyd",)), tmp_path / "out"
    words = ["build", inputs.folder, out, "--suffix", "x.pyd", "--shards", 400]
    code, err = interrupt(words, lambda: (out / "wdshards-000002.tar").exists())
    assert code == 130
    assert err.splitlines()[-1].startswith(
        "dray: interrupted; every shard that was stored is kept: run the same command"
    )
    assert "Traceback" not in err
    assert int(re.findall(r"([\d,]+) reused", dray(*words).out)[0].replace(",", "")) >= 3


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["build", ".", "../out", "--suffix", "pyd", "--names"], "every shard that was stored is kept"),
        (["plan", ".", "../out", "--suffix", "pyd", "--names"], "nothing was changed"),
    ],
)
def test_ctrl_c_is_exit_code_130(tmp_path: Path, words: list[str], kept: str) -> None:
    """The signal comes while the command waits for its names."""
    names = tmp_path / "names"
    os.mkfifo(names)
    opened: list[int] = []

    def is_reading() -> bool:
        with suppress(OSError):  # nobody reads yet
            opened.append(os.open(names, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    code, err = interrupt([*words, names], lambda: is_reading() and os.close(opened[0]) is None)
    assert (code, err.startswith(f"dray: interrupted; {kept}")) == (130, True)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on_error='skip' leaves it out", "--on-error skip leaves it out"),
        ("encode={'a.pyd': 'auto'} keeps", "--encode a.pyd=auto keeps"),
        ('allow=["a.B"], or allow_pickle=True for all', "--allow a.B, or --allow-pickle for all"),
        ("allow=['a b', 'c']", "--allow 'a b' --allow c"),
        ("shuffle_seed=None, address='none'", "no --shuffle-seed, --address none"),
        ("pass it by storage_options or", "pass it by --storage-option or"),
        ('storage_options={"endpoint": ...}', "--storage-option endpoint=..."),
        ("min_num_shards=0: expected", "--shards 0: expected"),
        ("keep=1, grace_s=60", "--keep 1, --older-than 60"),
        ("max_bad=5%, max_bad='5%'", "--max-bad 5%, --max-bad 5%"),
        ("allow all and keep what you encode", "allow all and keep what you encode"),
        ("file:///data/encode=auto/keep=1/x?version=2", "file:///data/encode=auto/keep=1/x?version=2"),
        ("'encode=auto' is missing", "'encode=auto' is missing"),
        ("decoders={'wav': read_wav}", "decoders={'wav': read_wav}"),
    ],
)
def test_an_error_names_the_options_of_the_command(text: str, expected: str) -> None:
    """Not the keywords of Python; what only Python has stays, and so do paths and quoted names."""
    command = LazyCommand("build", "dray.cluster.cli.building.build", "").loaded
    options = {param.name: max(param.opts, key=len) for param in command.params if param.name}
    assert in_words(text, options) == expected


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_in_the_words_of_the_command(build: Dray) -> None:
    """Without the line of dray that gave it."""
    done = build("--encode", "auto", "--allow-pickle", "--quiet")
    assert done.err == "dray: warning: --allow-pickle: pickled parts run any code that they name\n"


def test_the_version_is_the_distributions(dray: Dray) -> None:
    """`dray --version`."""
    assert re.fullmatch(r"dray \d+\.\d+\.\d+\S*\n", dray("--version").out)


def test_the_command_runs_as_a_module(tmp_path: Path) -> None:
    """`python -m dray` does what `dray` does, exit codes included."""
    done = subprocess.run([sys.executable, "-m", "dray", "ls", "nowhere"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("dray: error: ")


def test_the_package_has_its_version(dray: Dray) -> None:
    """`dray.__version__` is what `dray --version` prints."""
    assert dray("--version").out == f"dray {importlib.import_module('dray').__version__}\n"


def test_shell_completion_is_offered_and_stays_out_of_the_options(dray: Dray) -> None:
    """The script that bash evaluates, and what it then asks for."""
    script = subprocess.run(["bash", "-c", f"{PROGRAM} --show-completion; true"], capture_output=True, text=True)
    assert "complete -o default -F _dray_completion dray" in script.stdout
    asked = {"_DRAY_COMPLETE": "complete_bash", "COMP_WORDS": "dray ls --js", "COMP_CWORD": "2"}
    done = subprocess.run([PROGRAM], capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.split() == ["--json"]
    assert "--show-completion" not in dray("--help").out


def test_the_help_imports_no_heavy_package() -> None:
    """So it appears at once: each command imports what it needs when it is called."""
    heavy = {"boto3", "lightning", "numpy", "obstore", "pyarrow", "ray", "torch"}
    code = f"import atexit, sys; atexit.register(lambda: print({heavy} & sys.modules.keys(), file=sys.stderr))"
    program = f"{code}; from dray.cluster.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, timeout=60)
    assert "quickstart" in done.stdout
    assert done.stderr == "set()\n"


@pytest.mark.parametrize(("name", "module", "summary"), COMMANDS)
def test_every_example_in_the_help_is_a_command_line_that_parses(
    dray: Dray, name: str, module: str, summary: str
) -> None:
    """Each command shows at least one, in its help as printed too; its help begins as the list of commands says."""
    text = getattr(importlib.import_module(module), name).__doc__ or ""
    assert text.startswith(f"{summary}\n\n")
    examples = re.findall(r"\[cyan\](.*?)\[/\]", text, re.DOTALL)
    assert examples
    assert examples[0] in re.sub(r"\s+", " ", dray(name, "--help").out)
    for example in examples:
        words = shlex.split(example.replace("\\\n", ""))
        start = len(words) - words[::-1].index("dray")
        called, *arguments = words[start : words.index(">") if ">" in words else None]
        assert called == name
        assert LazyCommand(name, module, summary).make_context(name, arguments)


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
    """RAY_ADDRESS may be a dashboard's, set for `ray job submit`: no driver connects there."""
    monkeypatch.setenv("RAY_ADDRESS", variable or "")
    assert cluster_address(given) == expected


@pytest.mark.parametrize(
    "text", ["", "train", "train=", "train=x", "a=0.5,a=0.5", "../a=1", ".=1", "a=-1", "a=0.5,,b=0.5"]
)
def test_a_split_that_is_no_split_is_refused(text: str) -> None:
    """A group becomes a folder, so its name leads nowhere else."""
    with pytest.raises(CallError, match=r"expected train=0\.9"):
        parse_fractions(text)
