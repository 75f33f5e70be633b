"""The `dray` command: exit codes, the wording of errors, help and completion."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dray.cluster.cli import app
from dray.cluster.cli.commands import LazyCommand
from dray.cluster.cli.wording import in_words
from tests.conftest import Dray

PROGRAM = str(Path(sys.executable).parent / "dray")
COMMANDS = [(name, module, summary) for module, named in app.COMMANDS.items() for name, summary in named.items()]


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (1, ["build", "nowhere", "out", "--suffix", "image.pyd"], "no file \\*.image.pyd in file://.*/nowhere"),
        (2, ["build", "in", "out", "--suffix", ".pyd"], "suffix '.pyd'"),
        (
            2,
            ["build", "in", "out", "--suffix", "pyd", "--names", "missing.txt"],
            "--names missing.txt: the file cannot be read",
        ),
        (2, ["build", "in", "out", "--suffix", "pyd", "--split", "train"], "--split train: expected train=0.9"),
        (2, ["build", "in", "out", "--suffix", "pyd", "--storage-option", "hidden"], "expected KEY=VALUE"),
        (
            2,
            ["build", "in", "out", "--suffix", "pyd", "--address", "http://head:8265"],
            "dray submit build ... --address http",
        ),
        (4, ["build", "in", "out", "--suffix", "pyd", "--address", "127.0.0.1:1"], "no Ray cluster answers there"),
        (3, ["ls", "nowhere"], "no dataset in file://.*/nowhere"),
        (3, ["ls", "nowhere", "--prefix", "a"], "no dataset with prefix 'a'"),
        (2, ["ls", "ftp://host/folder"], "ftp:// is not a storage URL"),
    ],
)
def test_an_error_is_one_line_and_the_exit_code_of_its_kind(
    dray: Dray, code: int, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says what to change; there is no traceback."""
    monkeypatch.chdir(tmp_path)
    done = dray(*words)
    assert done.code == code
    assert re.fullmatch(f"dray: error: .*{message}.*\n", done.err)
    assert "hidden" not in done.err


@pytest.mark.parametrize("words", ["build .", "ls", "pack", "build in out --shards many", "gc out --keep 0"])
def test_a_command_line_that_cannot_be_parsed_is_exit_code_2(dray: Dray, words: str) -> None:
    """The message shows the usage, as in other programs."""
    done = dray(*words.split())
    assert done.code == 2
    assert "Usage: dray" in done.err


def test_the_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    """Both `--traceback` and DRAY_TRACEBACK=1 show it."""
    for words, variables in ((["--traceback"], {}), ([], {"DRAY_TRACEBACK": "1"})):
        command = [PROGRAM, *words, "ls", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, timeout=60)
        assert done.returncode == 3
        assert "Traceback (most recent call last)" in done.stderr
        assert "NotFoundError: no dataset in" in done.stderr


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
    """Keywords become options; keywords without an option, paths and quoted names stay."""
    command = LazyCommand("build", "dray.cluster.cli.building.build", "").loaded
    options = {param.name: max(param.opts, key=len) for param in command.params if param.name}
    assert in_words(text, options) == expected


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_in_the_words_of_the_command(build: Dray) -> None:
    """It does not show the line of code that issued it."""
    done = build("--encode", "auto", "--allow-pickle", "--quiet")
    assert done.err == "dray: warning: --allow-pickle: pickled parts run any code that they name\n"


def test_the_version_is_the_distributions(dray: Dray) -> None:
    """`dray --version` prints it."""
    assert re.fullmatch(r"dray \d+\.\d+\.\d+\S*\n", dray("--version").out)


def test_the_command_runs_as_a_module(tmp_path: Path) -> None:
    """`python -m dray` does what `dray` does, exit codes included."""
    done = subprocess.run([sys.executable, "-m", "dray", "ls", "nowhere"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("dray: error: ")


def test_the_package_has_its_version(dray: Dray) -> None:
    """`dray.__version__` is what `dray --version` prints."""
    assert dray("--version").out == f"dray {importlib.import_module('dray').__version__}\n"


def test_shell_completion_is_offered_and_stays_out_of_the_options(dray: Dray) -> None:
    """Bash evaluates the script, which then completes options."""
    script = subprocess.run(["bash", "-c", f"{PROGRAM} --show-completion; true"], capture_output=True, text=True)
    assert "complete -o default -F _dray_completion dray" in script.stdout
    asked = {"_DRAY_COMPLETE": "complete_bash", "COMP_WORDS": "dray ls --js", "COMP_CWORD": "2"}
    done = subprocess.run([PROGRAM], capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.split() == ["--json"]
    assert "--show-completion" not in dray("--help").out


def test_the_help_imports_no_heavy_package() -> None:
    """The help appears at once because each command imports what it needs when it is called."""
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
    """Each command shows an example; its help starts with the summary in the list of commands."""
    text = getattr(importlib.import_module(module), name).__doc__ or ""
    assert text.startswith(f"{summary}\n\n")
    examples = re.findall(r"\[cyan\](.*?)\[/\]", text, re.DOTALL)
    assert examples
    assert examples[0] in re.sub(r"\s+", " ", dray(name, "--help").out)
    for example in examples:
        words = shlex.split(example.replace("\\\n", ""))
        start = len(words) - words[::-1].index("dray")
        called, *arguments = words[start : words.index(">") if ">" in words else None]
        assert name in words  # the example may submit it
        assert app.command_line().commands[called].make_context(called, arguments)
