"""`plan_changes`: a pipeline makes only what changed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dray.pipelines import plan_changes
from dray.pipelines.ray_data.plan_changes import ChangePlan
from dray.shards import CallError, ConflictError, InputError, Snapshot
from tests.support.datasets import samples_at

pytestmark = pytest.mark.usefixtures("ray_local")


def put(folder: Path, number: int, value: int) -> None:
    """Write an input; another value gets another time."""
    folder.mkdir(exist_ok=True)
    path = folder / f"in{number:04d}.x.npy"
    np.save(path, np.full(4, value))
    os.utime(path, ns=(10**18 + value, 10**18 + value))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for number in range(200):
        put(tmp_path / "in", number, number)
    return tmp_path / "in"


def plan_of(inputs: Path, **arguments: Any) -> ChangePlan:
    chosen = {"suffixes": "x.npy", "transform_version": "1", "progress": False, **arguments}
    return plan_changes(inputs, inputs.parent / "out", **chosen)


class Embed:
    """Gives input n n % 3 samples; notes in a file which inputs it saw."""

    def __init__(self, seen: Path) -> None:
        self.seen = seen

    def __call__(self, batch: Any) -> Any:
        with self.seen.open("a") as file:
            file.writelines(f"{key}\n" for key in batch["__key__"])
        copies = np.array([int(key[-1]) % 3 for key in batch["__key__"]], int)
        rows = np.repeat(np.arange(len(copies)), copies)
        numbers = np.concatenate([np.arange(count) for count in copies] or [np.zeros(0, int)])
        keys = [f"{batch['__key__'][row]}_{number}" for row, number in zip(rows, numbers, strict=True)]
        return {
            "__key__": np.array(keys, object),
            "__source__": batch["__source__"][rows],
            "y.npy": batch["x.npy"][rows] * 2,
            "cls": numbers,
        }


def made(plan: ChangePlan, seen: Path) -> Any:
    """The rows of the pipeline."""
    seen.unlink(missing_ok=True)
    return plan.read(override_num_blocks=3).map_batches(Embed(seen).__call__, batch_size=16)


def run(plan: ChangePlan, seen: Path, dataset: Any = None) -> Any:
    """Write what the pipeline makes; returns the report, and the inputs that it saw."""
    report = plan.write(made(plan, seen) if dataset is None else dataset, samples_per_shard=20, concurrency=2)
    return report, sorted(seen.read_text().split()) if seen.exists() else []


def test_a_pipeline_makes_only_what_changed(inputs: Path, tmp_path: Path) -> None:
    """Shards of unchanged inputs stay the same objects; a rerun does nothing; another version makes all."""
    out = tmp_path / "out"
    plan = plan_of(inputs)
    actors = plan.read().map_batches(Embed, fn_constructor_args=(tmp_path / "seen",), concurrency=1, num_cpus=0.5)
    first, seen = run(plan, tmp_path / "seen", actors)
    assert len(seen) == 200
    assert (first.num_samples, first.num_empty, first.num_shards) == (180, 80, 9)
    again = plan_of(inputs)
    assert not again.has_work
    assert str(again) == "nothing to do: 120 sources unchanged"
    assert not again.write(again.read()).is_new
    before = Snapshot.open(out)
    for number in (11, 12, 25):
        put(inputs, number, 1000 + number)
    put(inputs, 998, 998)
    (inputs / "in0037.x.npy").unlink()
    plan = plan_of(inputs)
    assert (plan.num_to_make, plan.num_added, plan.num_changed, plan.num_removed) == (4, 1, 3, 1)
    report, seen = run(plan, tmp_path / "seen")
    assert seen == ["in0011", "in0012", "in0025", "in0998"]
    after = Snapshot.open(out)
    assert sum(shard in after.shards for shard in before.shards) == 7
    assert (report.num_added, report.num_changed, report.num_removed) == (2, 5, 1)
    found = dict(samples_at(out))
    _, seen = run(plan_of(inputs, transform_version="2"), tmp_path / "seen")
    assert len(seen) == 200
    assert dict(samples_at(out)) == found


def test_removed_inputs_alone_need_no_pipeline(inputs: Path, tmp_path: Path) -> None:
    """Their samples are gone, and those beside them copied."""
    run(plan_of(inputs), tmp_path / "seen")
    (inputs / "in0001.x.npy").unlink()
    report, seen = run(plan_of(inputs), tmp_path / "seen")
    assert seen == []
    assert (report.num_samples, report.num_removed, report.num_reused) == (179, 1, 8)


def shuffled(dataset: Any) -> Any:
    return dataset.random_shuffle(seed=1)


def interleaved(dataset: Any) -> Any:
    """All first samples of a batch come before all second ones."""
    return dataset.map_batches(lambda table: table.sort_by("cls"), batch_format="pyarrow", batch_size=None)


@pytest.mark.parametrize(("reorder", "num_done"), [(None, 104), (shuffled, 0), (interleaved, 0)])
def test_what_a_dead_run_stored_is_used(inputs: Path, tmp_path: Path, reorder: Any, num_done: int) -> None:
    """If samples of an input do not follow each other, nothing shows which inputs are done."""
    plan = plan_of(inputs)
    dataset = made(plan, tmp_path / "seen")
    plan.write(reorder(dataset) if reorder else dataset, samples_per_shard=20, concurrency=2)
    expected = dict(samples_at(tmp_path / "out"))
    for record in (tmp_path / "out" / "__dray__" / "wdshards" / "commits").iterdir():
        record.unlink()
    (tmp_path / "out" / "wdshards-000004.tar").unlink()
    plan = plan_of(inputs)
    report, seen = run(plan, tmp_path / "seen")
    assert plan.num_done == num_done
    assert len(seen) == 200 - plan.num_done
    assert report.num_reused == (5 if num_done else 0)
    assert dict(samples_at(tmp_path / "out")) == expected


def test_a_pipeline_that_drops_the_source_is_an_error(inputs: Path, tmp_path: Path) -> None:
    """It names the column and the steps; a column that no input has is one as well."""
    plan = plan_of(inputs)
    with pytest.raises(InputError, match=r"__source__.*MapBatches\(forget\)"):
        plan.write(plan.read().map_batches(forget))
    with pytest.raises(InputError, match=r"'other', which is no source of this plan"):
        plan.write(plan.read().map_batches(rename))
    assert not list((tmp_path / "out").glob("*.tar"))


def forget(batch: Any) -> Any:
    del batch["__source__"]
    return batch


def rename(batch: Any) -> Any:
    return batch | {"__source__": np.array(["other"] * len(batch["__key__"]), object)}


def test_a_commit_meanwhile_is_a_conflict_and_the_work_is_kept(inputs: Path, tmp_path: Path) -> None:
    """The next plan finds what was stored."""
    mine, others = plan_of(inputs), plan_of(inputs, names=[f"in{number:04d}" for number in range(30)])
    run(others, tmp_path / "seen")
    with pytest.raises(ConflictError, match="plan again"):
        run(mine, tmp_path / "seen")
    plan = plan_of(inputs)
    _, seen = run(plan, tmp_path / "seen")
    assert len(seen) < 100
    assert len(samples_at(tmp_path / "out")) == 180


def test_a_dataset_of_another_kind_is_refused(tmp_path: Path) -> None:
    """It says what to do."""
    put(tmp_path / "in", 1, 1)
    with pytest.raises(CallError, match="transform_version=''"):
        plan_of(tmp_path / "in", transform_version="")
