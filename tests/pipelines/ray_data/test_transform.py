"""`build_dataset` on Ray: the same bytes as in process."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dray.pipelines import BuildReport, build_dataset
from dray.shards import CallError, ClusterError, InputError, Snapshot

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.heavy]  # a cluster; test_read_shards.py has one as well
Samples = Sequence[dict[str, Any]]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(60):
        np.save(tmp_path / "in" / f"in{number:03d}.x.npy", np.full(4, number))
    return tmp_path / "in"


def crops(samples: Samples, rng: Sequence[np.random.Generator]) -> Iterator[dict[str, Any]]:
    """None, one or two samples of each."""
    for sample, random in zip(samples, rng, strict=True):
        for number in range(int(sample["__key__"][-1]) % 3):
            yield {
                "__key__": f"{sample['__key__']}_{number}",
                "__source__": sample["__source__"],
                "y.npy": sample["x.npy"] + random.normal(size=4),
                "cls": number,
            }


class Crops:
    """As `crops`, after a set-up."""

    def __init__(self) -> None:
        self.function = crops

    def __call__(self, samples: Samples, rng: Sequence[np.random.Generator]) -> Iterator[dict[str, Any]]:
        return self.function(samples, rng)


def build(inputs: Path, transform: Any, out: str, **arguments: Any) -> BuildReport:
    chosen = {"suffixes": "x.npy", "transform_version": "1", "samples_per_shard": 7, "progress": False, **arguments}
    return build_dataset(inputs, inputs.parent / out, transform=transform, **chosen)


def tars(inputs: Path, out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((inputs.parent / out).glob("*.tar"))}


def test_workers_make_the_bytes_that_one_process_makes(inputs: Path) -> None:
    """Of a function, at first and after changes, and of the name of a class."""
    wanted = build(inputs, crops, "here", address="none")
    assert wanted.num_samples == 54
    assert build(inputs, crops, "function", batch_size=5).num_empty == wanted.num_empty
    assert tars(inputs, "function") == tars(inputs, "here")
    build(inputs, f"{__name__}:Crops", "class", concurrency=1, num_cpus=0.5)
    assert tars(inputs, "class") == tars(inputs, "here")
    np.save(inputs / "in011.x.npy", np.zeros(4))
    np.save(inputs / "in999.x.npy", np.ones(4))
    (inputs / "in022.x.npy").unlink()
    build(inputs, crops, "here", address="none")
    assert build(inputs, crops, "function").is_new
    assert tars(inputs, "function") == tars(inputs, "here")
    tables = [Snapshot.open(inputs.parent / out).sources() for out in ("here", "function")]
    assert tables[0].equals(tables[1])


def fails(samples: Samples) -> Iterator[dict[str, Any]]:
    for sample in samples:
        if sample["__key__"] == "in007":
            raise ValueError("seven")
        yield {"__key__": sample["__key__"], "y": 1}


def test_a_function_that_fails_names_its_inputs(inputs: Path) -> None:
    """Or they are left out, if they may be."""
    with pytest.raises(InputError, match=r"fails failed for 'in000', .*ValueError: seven"):
        build(inputs, fails, "out")
    report = build(inputs, fails, "out", on_error="skip")
    assert (report.num_samples, report.num_skipped, report.renamed) == (59, 1, {"y": "y.json"})


def test_a_worker_that_cannot_import_is_named(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the module that it lacks."""
    (tmp_path / "only_here.py").write_text("def one(samples):\n    return samples\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ClusterError, match=r"node .* cannot run only_here:one.*No module named 'only_here'"):
        build(inputs, "only_here:one", "out")


def test_what_only_workers_have_is_refused_in_process(inputs: Path) -> None:
    """It says what to give as well."""
    with pytest.raises(CallError, match="give address="):
        build(inputs, crops, "out", address="none", num_gpus=1)
