"""`dray quickstart`, as a newcomer runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dray.cluster.quickstart import FRACTIONS, NUM_SHARDS, digit_files, run_quickstart
from dray.shards import CallError, Snapshot

PROGRAM = str(Path(sys.executable).parent / "dray")


def run(folder: Path, *words: str) -> str:
    """The standard output of a quickstart in a folder."""
    command = [PROGRAM, "quickstart", "--dir", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracy(out: str) -> float:
    """The accuracy that a run printed, in percent."""
    found = re.search(r"Test accuracy: ([\d.]+)%", out)
    assert found, out
    return float(found[1])


def test_on_disk_it_packs_trains_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    """More than 95 % of the test digits are told right, and the three datasets lie where it says."""
    out = run(tmp_path / "start")
    assert accuracy(out) > 95
    first, again = out.split("Build again")
    assert first.count("4 packed, 0 reused") == 3
    assert again.count("nothing to do") == 3
    snapshots = [Snapshot.open(tmp_path / "start" / "shards" / split) for split in FRACTIONS]
    assert sum(snapshot.num_samples for snapshot in snapshots) == 1797
    assert [len(snapshot.shards) for snapshot in snapshots] == [NUM_SHARDS] * 3


def test_on_s3_it_does_the_same(tmp_path: Path) -> None:
    """Samples and shards are objects; on the disk lies only what the server keeps."""
    out = run(tmp_path / "start", "--store", "s3")
    assert accuracy(out) > 95
    assert out.count("s3://data/shards/test wdshards version 1") == 2
    assert [path.name for path in (tmp_path / "start").iterdir()] == ["s3"]


def test_every_digit_is_two_files() -> None:
    """A sample of 1,797 is a pickled image of its own 64 numbers, not of all images, and a label as text."""
    files = dict(digit_files())
    assert len(files) == 2 * 1797
    assert len(files["digit-0007.image.pyd"]) < 1000
    assert files["digit-0007.label.cls"] == b"7"


def test_without_scikit_learn_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is a command to type, and nothing was written."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CallError, match=r"pip install 'dray\[quickstart\]'"):
        run_quickstart(tmp_path / "start", "disk")
    assert not (tmp_path / "start").exists()
