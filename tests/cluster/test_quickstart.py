"""`dray quickstart` and the programs in examples/, run on its shards as their first lines say."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dray.cluster.quickstart.quickstart import FRACTIONS, NUM_SHARDS, digit_files, run_quickstart
from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards import CallError, Snapshot

PROGRAM = str(Path(sys.executable).parent / "dray")
EXAMPLES = Path(__file__).parent.parent.parent / "examples"


class Quickstart(NamedTuple):
    """Output and folder of a quickstart."""

    out: str
    folder: Path

    @property
    def accuracy(self) -> float:
        """Test accuracy in percent."""
        found = re.search(r"Test accuracy: ([\d.]+)%", self.out)
        assert found, self.out
        return float(found[1])


def run(folder: Path, *words: str) -> Quickstart:
    command = [PROGRAM, "quickstart", "--dir", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return Quickstart(done.stdout, folder)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    return run(tmp_path_factory.mktemp("disk") / "start")


@pytest.fixture(scope="module")
def on_s3(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    return run(tmp_path_factory.mktemp("s3") / "start", "--store", "s3")


def test_on_disk_it_packs_trains_and_then_has_nothing_to_do(on_disk: Quickstart) -> None:
    """The test accuracy exceeds 95 %, and the three datasets are complete."""
    assert on_disk.accuracy > 95
    first, again = on_disk.out.split("Build again")
    assert first.count("4 packed, 0 reused") == 3
    assert again.count("nothing to do") == 3
    snapshots = [Snapshot.open(on_disk.folder / "shards" / split) for split in FRACTIONS]
    assert sum(snapshot.num_samples for snapshot in snapshots) == 1797
    assert [len(snapshot.shards) for snapshot in snapshots] == [NUM_SHARDS] * 3


@pytest.mark.heavy
def test_on_s3_it_does_the_same(on_s3: Quickstart) -> None:
    """Samples and shards are objects; only the server's folder is on disk."""
    assert on_s3.accuracy > 95
    assert on_s3.out.count("s3://data/shards/test wdshards version 1") == 2
    assert [path.name for path in on_s3.folder.iterdir()] == ["s3"]


def test_every_digit_is_two_files() -> None:
    """Each of 1,797 samples is a pickled image with its own 64 numbers only, and a label as text."""
    files = dict(digit_files())
    assert len(files) == 2 * 1797
    assert len(files["digit-0007.image.pyd"]) < 1000
    assert files["digit-0007.label.cls"] == b"7"


def test_without_scikit_learn_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the command, and nothing is written."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CallError, match=r"pip install 'dray\[quickstart\]'"):
        run_quickstart(tmp_path / "start", "disk")
    assert not (tmp_path / "start").exists()


def metrics(program: str, *words: object, folder: Path, environment: dict[str, str] | None = None) -> dict[str, float]:
    """Returns the metrics in an example's last line."""
    command = [sys.executable, str(EXAMPLES / program), *map(str, words)]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)(?:, |$)", done.stdout.splitlines()[-1])}


def test_lightning_learns_on_two_processes_and_resumes_on_one(on_disk: Quickstart, tmp_path: Path) -> None:
    """With DDP over gloo, a second run to four epochs trains only the last two, and improves."""
    words = ("--data", on_disk.folder / "shards", "--checkpoint-dir", "saved")
    first = metrics("train_lightning.py", *words, "--epochs", 2, "--devices", 2, folder=tmp_path)
    then = metrics("train_lightning.py", *words, "--epochs", 4, folder=tmp_path)
    assert first["val_accuracy"] > 0.7
    assert then["train_loss"] < first["train_loss"]
    assert then["test_accuracy"] > 0.8
    assert sorted(path.name for path in (tmp_path / "saved").iterdir())[-1] == "last.ckpt"


@pytest.mark.heavy
def test_lightning_learns_from_s3(on_s3: Quickstart, tmp_path: Path) -> None:
    """The program takes only the URL; the read-only keys are in its environment."""
    with SeaweedServer(on_s3.folder / "s3") as server:
        keys = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": server.read_only_options["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": server.read_only_options["secret_access_key"],
        }
        words = ("--data", server.url("shards"), "--epochs", 2)
        assert metrics("train_lightning.py", *words, folder=tmp_path, environment=keys)["test_accuracy"] > 0.7


RAY_TRAIN = pytest.mark.parametrize("program", ["train_ray.py", "train_ray_lightning.py"])


def ray_train(
    program: str, start: Quickstart, folder: Path, epochs: int, *words: object
) -> tuple[dict[str, float], int]:
    """Returns the last metrics and the number of checkpoints."""
    options = ("--data", start.folder / "shards", "--epochs", epochs, "--results", "results")
    found = metrics(program, *options, *words, folder=folder, environment={"RAY_ADDRESS": "local"})
    return found, len(list((folder / "results").glob("*/checkpoint_*/")))


@pytest.mark.heavy
@RAY_TRAIN
def test_ray_train_on_two_workers_learns(program: str, on_disk: Quickstart, tmp_path: Path) -> None:
    """The driver gets metrics and three checkpoints per epoch: two within its 22 steps, and one at its end."""
    found, num_checkpoints = ray_train(program, on_disk, tmp_path, 3)
    assert found["val_accuracy"] > 0.8
    assert num_checkpoints == 9


@pytest.mark.heavy
@RAY_TRAIN
def test_ray_train_loses_nothing_with_a_worker(program: str, on_disk: Quickstart, tmp_path: Path) -> None:
    """A worker dies five steps after a checkpoint, and the training ends like an undisturbed one."""
    (tmp_path / "drill").mkdir()
    disturbed = ray_train(program, on_disk, tmp_path / "drill", 1, "--kill-at", 15)
    assert disturbed == ray_train(program, on_disk, tmp_path, 1)
