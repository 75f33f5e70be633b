"""`dray submit` checks a command line before it reaches a cluster."""

from pathlib import Path

import pytest

from tests.conftest import Dray

BUILD = ("build", "s3://lab/raw", "s3://lab/out", "--suffix", "x")


def name_of(dray: Dray, *words: object) -> str:
    done = dray("submit", "--dry-run", *words)
    assert done.code == 0, done.err
    return done.out.partition(":")[0]


def test_the_same_command_in_other_words_is_the_same_job(dray: Dray) -> None:
    """Order, `=`, defaults, and options of submit make no difference; others do."""
    name = name_of(dray, *BUILD)
    assert name == name_of(dray, "build", "--suffix=x", "--on-error", "fail", *BUILD[1:3], "-q", "--again")
    assert name == name_of(dray, "--", *BUILD)
    assert name == name_of(dray, *BUILD, "--log-format", "json", "--ray-metrics")
    assert name != name_of(dray, *BUILD, "--shards", 3)


def test_a_changed_script_is_another_job(dray: Dray, tmp_path: Path) -> None:
    """And so is one with other arguments."""
    script = tmp_path / "s.py"
    script.write_text("print(1)")
    first = name_of(dray, "run", script)
    assert first != name_of(dray, "run", script, "--epochs", 3)
    script.write_text("print(2)")
    assert first != name_of(dray, "run", script)


def test_options_of_reporting_reach_the_command_of_the_job(dray: Dray) -> None:
    """They are none of `dray submit`'s own."""
    assert "--log-format" not in dray("submit", "--help").out
    done = dray("submit", "--dry-run", *BUILD, "--log-format", "yaml")
    assert (done.code, "'yaml' is not one of" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ls", "s3://lab/out"), "expected one of build"),
        (("run", "missing.py"), "expected a Python script"),
        (("build", "raw", "s3://lab/out", "--suffix", "x"), "absolute path"),
        (("build", "s3://lab/raw", "memory://out", "--suffix", "x"), "memory of one process"),
        ((*BUILD, "--names", "-"), "standard input does not travel"),
        ((*BUILD, "--storage-option", "secret_access_key=planted"), "gives secret_access_key"),
        (("build", "s3://me:planted@lab/raw", *BUILD[2:]), "URL with a user or password"),
    ],
)
def test_a_command_that_cannot_run_there_is_refused(dray: Dray, words: tuple[str, ...], message: str) -> None:
    """Before anything is sent, without quoting a secret."""
    done = dray("submit", "--dry-run", *words)
    assert done.code != 0
    assert message in done.err
    assert "planted" not in done.err + done.out


def test_a_wrong_option_ends_as_the_command_itself_would(dray: Dray) -> None:
    """With the code of a command line that cannot be parsed."""
    done = dray("submit", "--dry-run", *BUILD, "--sufix", "y")
    assert (done.code, "No such option: --sufix" in done.err) == (2, True)


def test_a_local_path_is_a_warning(dray: Dray, tmp_path: Path) -> None:
    """A shared file system is a fine place, a folder of this machine is not: only the caller knows."""
    done = dray("submit", "--dry-run", "build", tmp_path, "s3://lab/out", "--suffix", "x")
    assert f"every node of the cluster must see {tmp_path}" in done.err


def test_files_are_listed_before_they_are_sent(dray: Dray, tmp_path: Path) -> None:
    """A file of names may be one of them."""
    for name in ("embed.py", "names.txt", ".env"):
        (tmp_path / name).write_text("x")
    done = dray("submit", "--dry-run", "--with", tmp_path, *BUILD, "--names", "names.txt")
    assert done.code == 0, done.err
    assert "sends 2 files" in done.err
    assert "  embed.py" in done.err
    assert "leaves out what may hold secrets, and links out of the folder: .env" in done.err
