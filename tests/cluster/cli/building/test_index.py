"""`dray index`, and the commands that read what it made."""

import gzip
import json
from pathlib import Path

import pytest

from dray.shards import Store
from tests.conftest import Dray
from tests.support.foreign import put_tars, tar_of

NAMES = [f"t-{number:02}.tar" for number in range(3)]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars of four samples each."""
    put_tars(Store(tmp_path / "tars"), NAMES)
    return tmp_path / "tars"


def test_index_reports_and_other_commands_read_it(dray: Dray, tars: Path) -> None:
    """Report on standard output, progress on standard error."""
    made = dray("index", tars)
    assert made.code == 0
    assert "version 1: 12 samples in 3 tars" in made.out
    assert "3 tars of" in made.err
    assert "nothing to do" in dray("index", tars, "--quiet").out
    assert dray("ls", tars, "--urls").out.splitlines() == [f"file://{tars}/{name}" for name in NAMES]
    assert "t-01.tar" in dray("show", tars, "b/s0005").out
    assert dray("verify", tars, "--level", "full").code == 0
    assert "index" in dray("log", tars).out
    assert dray("loadtest", tars, "--steps", "2", "--batch-size", "2").code == 0


def test_json_has_the_report(dray: Dray, tars: Path) -> None:
    """One object."""
    (report,) = json.loads(dray("index", tars, "t-{00..01}.tar", "--json").out)
    assert (report["num_tars"], report["num_samples"], report["num_added"]) == (2, 8, 2)
    assert report["oddities"] == {"folder": 2}


def test_the_shell_may_expand_the_pattern(dray: Dray, tars: Path) -> None:
    """Names in the folder, and whole paths."""
    assert "in 2 tars" in dray("index", tars, "t-00.tar", "t-01.tar").out
    assert "in 3 tars" in dray("index", *(tars / name for name in NAMES)).out
    assert "in 1 tar," in dray("index", tars / "t-00.tar", "--prefix", "one").out


def test_errors_are_in_the_words_of_the_command(dray: Dray, tars: Path) -> None:
    """Options, not keywords."""
    (tars / "bad.tar").write_bytes(tar_of(range(9))[:3000])
    failed = dray("index", tars)
    assert failed.code == 1
    assert "bad.tar: " in failed.err
    assert "leave them out by --on-error skip" in failed.err
    assert dray("index", tars, "--on-error", "skip").code == 0
    for name in NAMES[:2]:
        (tars / name).unlink()
    refused = dray("index", tars, "--on-error", "skip")
    assert refused.code == 2
    assert "give --allow-removal 100%" in refused.err


def test_the_index_may_be_elsewhere(dray: Dray, tars: Path, tmp_path: Path) -> None:
    """Readers then say where the tars are."""
    assert f"of file://{tars}" in dray("index", tars, "--into", tmp_path / "index").out
    assert not (tars / "__dray__").exists()
    assert dray("show", tmp_path / "index", "b/s0005", "--data-url", tars).code == 0
    again = dray("index", tmp_path / "index")
    assert again.code == 2
    assert f"give that URL, and --into file://{tmp_path}/index" in again.err


def test_compressed_tars_are_unpacked_by_an_option(dray: Dray, tmp_path: Path) -> None:
    """The error names it."""
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar_of(range(4))))
    assert "unpack them by --unpack-to URL" in dray("index", tmp_path).err
    assert "4 samples in 1 tar," in dray("index", tmp_path, "*.tgz", "--unpack-to", tmp_path / "out").out
