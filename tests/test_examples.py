"""The programs in examples/, run as their own first lines say, on the quickstart's shards."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dray.cluster.quickstart import FRACTIONS, Place, pack, write_samples
from dray.cluster.seaweed import SeaweedServer
from dray.pipelines import split_by_hash

EXAMPLES = Path(__file__).parent.parent / "examples"


def build_shards(place: Place) -> str:
    """The quickstart's datasets at a place."""
    pack(place, split_by_hash(write_samples(place), FRACTIONS))
    return place.shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The datasets train, val and test on disk."""
    folder = tmp_path_factory.mktemp("digits")
    return build_shards(Place(samples=f"{folder}/samples", shards=f"{folder}/shards", storage_options={}))


def metrics(program: str, *words: object, folder: Path, environment: dict[str, str] | None = None) -> dict[str, float]:
    """What an example's last line tells."""
    command = [sys.executable, str(EXAMPLES / program), *map(str, words)]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)(?:, |$)", done.stdout.splitlines()[-1])}


def test_lightning_on_one_process_learns_and_goes_on_from_its_checkpoint(shards: str, tmp_path: Path) -> None:
    """A second run to four epochs trains only the last two, and knows more after them."""
    first = metrics("train_lightning.py", "--data", shards, "--epochs", 2, "--checkpoint-dir", "saved", folder=tmp_path)
    then = metrics("train_lightning.py", "--data", shards, "--epochs", 4, "--checkpoint-dir", "saved", folder=tmp_path)
    assert first["val_accuracy"] > 0.7
    assert then["train_loss"] < first["train_loss"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir())[-1] == "last.ckpt"


def test_lightning_on_two_processes_learns(shards: str, tmp_path: Path) -> None:
    """DDP over gloo: both ranks do the same number of steps, or it would hang."""
    found = metrics("train_lightning.py", "--data", shards, "--devices", 2, "--epochs", 3, folder=tmp_path)
    assert found["test_accuracy"] > 0.8


def test_lightning_learns_from_s3(s3: SeaweedServer, tmp_path: Path) -> None:
    """The program takes the URL alone; the keys are in its environment, and may only read."""
    url = s3.url("examples")
    build_shards(Place(samples=f"{url}/samples", shards=f"{url}/shards", storage_options=s3.storage_options))
    keys = {
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": s3.read_only_options["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": s3.read_only_options["secret_access_key"],
    }
    words = ("--data", f"{url}/shards", "--epochs", 2)
    assert metrics("train_lightning.py", *words, folder=tmp_path, environment=keys)["test_accuracy"] > 0.7


def ray_train(shards: str, folder: Path, epochs: int, *words: object) -> tuple[dict[str, float], int]:
    """The last metrics, and how many checkpoints there are."""
    options = ("--data", shards, "--epochs", epochs, "--results", "results")
    found = metrics("train_ray.py", *options, *words, folder=folder, environment={"RAY_ADDRESS": "local"})
    return found, len(list((folder / "results").glob("*/checkpoint_*/")))


@pytest.mark.heavy
def test_ray_train_on_two_workers_learns(shards: str, tmp_path: Path) -> None:
    """Metrics come back to the driver, and three checkpoints an epoch: twice within its 22 steps, and at its end."""
    found, num_checkpoints = ray_train(shards, tmp_path, 3)
    assert found["val_accuracy"] > 0.8
    assert num_checkpoints == 9


@pytest.mark.heavy
def test_ray_train_loses_nothing_with_a_worker(shards: str, tmp_path: Path) -> None:
    """The drill: a worker dies five steps after a checkpoint, and the training ends as the undisturbed one."""
    (tmp_path / "drill").mkdir()
    assert ray_train(shards, tmp_path / "drill", 1, "--kill-at", 15) == ray_train(shards, tmp_path, 1)
