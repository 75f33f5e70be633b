"""`write_samples` with a function, in the tasks of a Ray cluster."""

import os
from pathlib import Path
from typing import Any

import pytest

from dray.pipelines import write_samples
from dray.shards import InputError, Snapshot

pytestmark = pytest.mark.heavy  # a Ray cluster


def test_ray_makes_the_same_bytes_and_continues_after_lost_workers(tmp_path: Path) -> None:
    """A worker that dies is replaced, an input that fails is named, and repairing it continues the run."""

    def make(path: Path) -> dict[str, Any]:
        number = int(path.read_text())
        if number == 5 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(1)
        if number == 11 and not (tmp_path / "repaired").exists():
            raise ValueError("not now")
        (tmp_path / "calls").mkdir(exist_ok=True)
        (tmp_path / "calls" / f"{number}-{os.getpid()}").touch()
        return {"cls": number}

    (tmp_path / "raw").mkdir()
    for number in range(16):
        (tmp_path / "raw" / f"n{number:02d}.txt").write_text(str(number))
    inputs = sorted((tmp_path / "raw").iterdir())
    options: dict[str, Any] = {"inputs": inputs, "samples_per_shard": 4, "transform_version": "1", "progress": False}
    with pytest.raises(InputError, match="n11' of the inputs: make_sample failed: ValueError: not now"):
        write_samples(make, tmp_path / "there", address="local", **options)
    (tmp_path / "repaired").touch()
    for path in (tmp_path / "calls").iterdir():
        path.unlink()
    write_samples(make, tmp_path / "there", address="local", **options)
    assert {path.name.split("-")[0] for path in (tmp_path / "calls").iterdir()} == {"8", "9", "10", "11"}
    write_samples(make, tmp_path / "here", address="none", **options)
    for here in (tmp_path / "here").glob("*.tar"):
        assert here.read_bytes() == (tmp_path / "there" / here.name).read_bytes()
    assert Snapshot.open(tmp_path / "there").num_samples == 16
