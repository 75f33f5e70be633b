"""`write_shards`: the rows of a pipeline as a version, whole and in order, or nothing."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.data.extensions import ArrowTensorArray
from xxhash import xxh3_64_intdigest

from dray.loaders import ShardLoader
from dray.pipelines import read_shards, write_shards
from dray.pipelines.ray_data.sink import store_dataset
from dray.pipelines.ray_data.storing.flight import Flight
from dray.pipelines.ray_data.storing.watch import Watch
from dray.pipelines.writing.announce import announce_writing
from dray.pipelines.writing.shard import ShardSize
from dray.shards import CallError, InputError, Snapshot, Store
from dray.shards.layout import Layout, Location
from tests.conftest import Place

pytestmark = pytest.mark.usefixtures("ray_local")


def dataset_of(num_rows: int = 50, override_num_blocks: int = 4) -> Any:
    rows = ray.data.range(num_rows, override_num_blocks=override_num_blocks)

    def columns(batch: Any) -> Any:
        number = batch["id"]
        return {
            "__key__": np.array([f"s{one:04d}" for one in number]),
            "x": np.stack([np.full((2, 3), one, "f4") for one in number]),
            "y.npy": np.stack([np.arange(4) + one for one in number]),
            "cls": number,
            "note": np.array([f"no. {one}" for one in number]),
            "meta": np.array([{"n": int(one)} for one in number], object),
            "raw.bin": np.array([bytes([one % 256]) * 3 for one in number], object),
        }

    return rows.map_batches(columns, batch_size=7)


def location_of(folder: Path) -> Location:
    return Location(Store(folder), Layout("wdshards"))


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_rows_become_samples_in_order(place: Place) -> None:
    """Columns without an extension get one by their type, and the report says which."""
    if place.url.startswith("memory"):
        pytest.skip("Ray's workers do not share this process's memory")
    options: dict[str, Any] = {"storage_options": place.storage_options}
    report = write_shards(dataset_of(), place.url, samples_per_shard=20, **options)
    assert (report.num_samples, report.num_shards, report.num_added) == (50, 3, 50)
    assert report.renamed == {"x": "x.npy", "note": "note.txt", "meta": "meta.json"}
    assert "x as x.npy" in str(report)
    version = Snapshot.open(place.url, **options)
    assert [shard.num_samples for shard in version.shards] == [20, 20, 10]
    assert [key for shard in version.shards for key in version.index(shard).keys] == [f"s{n:04d}" for n in range(50)]
    assert version.read("s0007")["raw.bin"] == b"\x07" * 3
    read = read_shards(place.url, **options).take_all()
    assert [(row["cls"], row["note.txt"], row["meta.json"]) for row in read] == [
        (n, f"no. {n}", {"n": n}) for n in range(50)
    ]
    assert all((row["x.npy"] == np.full((2, 3), n)).all() for n, row in enumerate(read))
    assert all((row["y.npy"] == np.arange(4) + n).all() for n, row in enumerate(read))


def test_a_trainer_reads_what_was_written(tmp_path: Path) -> None:
    """Arrays are stacked from the tar without decoding."""
    write_shards(dataset_of(), tmp_path, samples_per_shard=8)
    loader = ShardLoader(tmp_path, parts=["x.npy", "cls"], batch_size=5)
    assert sum(int(batch["cls"].sum()) for batch in loader) == sum(range(50))


def test_a_trainer_reads_the_values_of_parquet_files(tmp_path: Path) -> None:
    """Tensors, numbers, text, lists and bytes, each under the suffix that the report names."""
    columns: dict[str, Any] = {
        "__key__": [f"r{number}" for number in range(10)],
        "x": ArrowTensorArray.from_numpy(np.arange(60, dtype="f4").reshape(10, 2, 3)),
        "cls": range(10),
        "note": [f"no. {number}" for number in range(10)],
        "list": [[number, -number] for number in range(10)],
        "bin": [bytes([number]) for number in range(10)],
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=3)
    report = write_shards(ray.data.read_parquet(str(tmp_path / "rows.parquet")), tmp_path / "out", samples_per_shard=4)
    assert report.renamed == {"x": "x.npy", "note": "note.txt", "list": "list.json"}
    (batch,) = ShardLoader(tmp_path / "out", batch_size=10)
    assert batch["x.npy"].dtype == torch.float32
    assert batch["x.npy"].flatten().tolist() == [*range(60)]
    assert batch["cls"].tolist() == [*range(10)]
    assert (batch["note.txt"], batch["list.json"], batch["bin"]) == (columns["note"], columns["list"], columns["bin"])


def test_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    """Not on the number of blocks, nor on an actor pool between."""

    class Same:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.02 * (batch["cls"][0] % 3))
            return batch

    write_shards(dataset_of(), tmp_path / "one", samples_per_shard=16)
    pipeline = dataset_of(override_num_blocks=9).map_batches(Same, batch_size=5, concurrency=2, num_cpus=0.25)
    write_shards(pipeline, tmp_path / "two", samples_per_shard=16)
    assert tars(tmp_path / "one") == tars(tmp_path / "two")


def test_the_dataset_keeps_its_settings(tmp_path: Path) -> None:
    """The order of its rows is only kept while they are written."""
    dataset = dataset_of(4)
    dataset.context.execution_options.preserve_order = False
    write_shards(dataset, tmp_path, samples_per_shard=2, progress=True)
    assert not dataset.context.execution_options.preserve_order
    assert not dataset.context.custom_execution_callback_classes


@pytest.mark.heavy  # Ray starts workers of their own for a sort
def test_a_seed_shuffles_over_all_shards(tmp_path: Path) -> None:
    """In the order of a hash of the key, as builds do."""
    write_shards(dataset_of(), tmp_path, samples_per_shard=10, shuffle_seed=3)
    version = Snapshot.open(tmp_path)
    keys = [key for shard in version.shards for key in version.index(shard).keys]
    assert keys == sorted((f"s{n:04d}" for n in range(50)), key=lambda key: xxh3_64_intdigest(key.encode(), 3))


def test_shards_are_cut_by_their_bytes(tmp_path: Path) -> None:
    """As few as possible, each below the limit."""
    report = write_shards(dataset_of(), tmp_path, shard_bytes=64 << 10)
    sizes = [shard.num_bytes for shard in Snapshot.open(tmp_path).shards]
    assert report.num_shards > 1
    assert all(60 << 10 < size <= 64 << 10 for size in sizes[:-1])


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([{"x": 1}], r"expected a column '__key__' in what .* gives, found 'x'"),
        ([{"__key__": "a"}], "expected a column for each part"),
        ([{"__key__": "a", "x": 1, "__extra__": 2}], "'__extra__' .* cannot be a part"),
        ([{"__key__": "a", "b/c": 1}], "suffix 'b/c'"),
        ([{"__key__": 1, "x": 1}], "expected text in the column '__key__', found 1"),
        ([{"__key__": "../a", "x": 1}], "the key '../a' is not a name"),
        ([{"__key__": "a", "x": None}, {"__key__": "b", "x": 1}], "key 'a': all its columns are null"),
        ([{"__key__": "a", "x.npy": "text"}], "key 'a', suffix 'x.npy': part 'x.npy' is builtins.str"),
        ([{"__key__": "a.b", "x": 1}, {"__key__": "a-b", "x": 1}], "samples share a key: 'a-b'"),
    ],
)
def test_rows_that_are_no_samples_are_an_error_and_no_version(
    tmp_path: Path, rows: list[dict[str, Any]], error: str
) -> None:
    """Of dray's own, and nothing of it is left."""
    with pytest.raises(InputError, match=error):
        write_shards(ray.data.from_items(rows), tmp_path, samples_per_shard=1)
    assert not tars(tmp_path)
    assert not (tmp_path / "__dray__/wdshards/commits").exists()


def test_a_null_leaves_its_part_out(tmp_path: Path) -> None:
    """The manifest counts who has it."""
    table = pa.table({"__key__": ["a", "b"], "txt": ["one", None], "cls": [1, 2]})
    write_shards(ray.data.from_arrow(table), tmp_path, samples_per_shard=2)
    version = Snapshot.open(tmp_path)
    assert version.read("b") == {"cls": b"2"}
    assert {part.name: part.num_stored for part in version.manifest.parts} == {"txt": 1, "cls": 2}


def test_an_empty_dataset_is_an_error(tmp_path: Path) -> None:
    """A version without samples would end a training run."""
    with pytest.raises(InputError, match="no sample was given"):
        write_shards(
            dataset_of().map_batches(lambda batch: {name: column[:0] for name, column in batch.items()}),
            tmp_path,
            samples_per_shard=1,
        )


def test_errored_blocks_are_not_tolerated(tmp_path: Path) -> None:
    """They would be left out silently."""
    dataset = dataset_of()
    dataset.context.max_errored_blocks = 1
    with pytest.raises(CallError, match="max_errored_blocks=1"):
        write_shards(dataset, tmp_path, samples_per_shard=1)


def test_an_error_of_a_step_names_it_and_leaves_nothing(tmp_path: Path) -> None:
    """What the first tasks stored is deleted."""

    def fail(row: dict[str, Any]) -> dict[str, Any]:
        if row["cls"] == 40:
            raise ValueError("bad row 40")
        return row

    with pytest.raises(InputError, match=r"^the step .*Map\(fail\) failed: ValueError: bad row 40"):
        write_shards(dataset_of().map(fail), tmp_path, samples_per_shard=5)
    assert not tars(tmp_path)


def test_a_rerun_of_a_committed_build_id_does_nothing(tmp_path: Path) -> None:
    """The pipeline is not run."""

    def refuse(_: Any) -> Any:
        raise AssertionError("it ran")

    write_shards(dataset_of(), tmp_path, samples_per_shard=20, build_id="one")
    report = write_shards(dataset_of().map(refuse), tmp_path, samples_per_shard=20, build_id="one")
    assert (report.is_new, report.num_samples) == (False, 50)


def test_a_dataset_of_another_kind_is_refused(tmp_path: Path, make_inputs: Any) -> None:
    """A build would not know these samples."""
    from dray.pipelines import pickles_to_tars

    inputs = make_inputs(3)
    pickles_to_tars(inputs.folder, inputs.names, inputs.suffixes, tmp_path / "out", "wds", address="none")
    with pytest.raises(CallError, match=r"was made by a build.* choose another url or prefix"):
        write_shards(dataset_of(), tmp_path / "out", prefix="wds", samples_per_shard=1)


def test_a_step_that_depends_on_chance_is_named(tmp_path: Path) -> None:
    """A rerun of a dead write finds other bytes than it stored, and says whose they are."""

    def noisy(batch: Any) -> Any:
        return batch | {"x": np.random.default_rng().random((len(batch["cls"]), 2))}

    writing = announce_writing(location_of(tmp_path), {"a": 1}, None, build_id="one", progress=False)
    size = ShardSize.of(20, None)
    dead = store_dataset(dataset_of().map_batches(noisy), writing, size)
    with pytest.raises(InputError, match=r"made by ReadRange.*MapBatches\(noisy\): it is not deterministic"):
        store_dataset(dataset_of().map_batches(noisy), writing, size)
    assert [len(shard.keys) for shard in dead.shards] == [20, 20, 10]
    assert not tars(tmp_path)


def test_a_rerun_adopts_what_a_dead_write_stored(tmp_path: Path) -> None:
    """Under the same `build_id`: the bytes are equal, so the shards are kept."""
    recipe = {
        "writer": "write_shards", "shuffle_seed": None, "shard_samples": 20, "shard_bytes": 4 << 30,
        "keep_pickles": False,
    }  # fmt: skip
    writing = announce_writing(location_of(tmp_path), recipe, None, build_id="one", progress=False)
    store_dataset(dataset_of(40), writing, ShardSize.of(20, None))
    report = write_shards(dataset_of(), tmp_path, samples_per_shard=20, build_id="one")
    assert (report.num_reused, report.num_shards, report.num_samples) == (2, 3, 50)


def test_samples_know_their_source(tmp_path: Path) -> None:
    """By the column `__source__`, which every step must pass on."""
    sources = {f"in{n}": (n, 100 + n) for n in range(5)}
    writing = announce_writing(location_of(tmp_path), {"a": 1}, None, progress=False)

    def with_source(batch: Any) -> Any:
        return batch | {"__source__": np.array([f"in{one % 5}" for one in batch["cls"]])}

    stored = store_dataset(dataset_of().map_batches(with_source), writing, ShardSize.of(20, None), sources=sources)
    found = [int(number) for shard in stored.shards if shard.sources is not None for number in shard.sources]
    assert found == [n % 5 for n in range(50)]
    assert "__source__" not in stored.shards[0].parts
    with pytest.raises(InputError, match=r"expected a column '__source__' in what .*MapBatches\(columns\) gives"):
        store_dataset(dataset_of(), writing, ShardSize.of(20, None), sources=sources)
    with pytest.raises(InputError, match="'in1', which is no source of this plan"):
        store_dataset(dataset_of().map_batches(with_source), writing, ShardSize.of(20, None), sources={"in0": (0, 1)})


def test_what_is_waited_for_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """With what the cluster has, and the way out."""
    with Watch(ray, "Read -> MapBatches(Embed)", show=True, silent_s=0.05) as watch:
        with watch.waiting_for(["shard 1", "shard 2"]):
            _until(lambda: "waiting for shard 1, shard 2" in capsys.readouterr().err)
        _until(
            lambda: "waiting for rows of Read -> MapBatches(Embed)" in (said := capsys.readouterr().err) and says(said)
        )


def says(said: str) -> bool:
    return "of 2 CPUs" in said and "concurrency=" in said


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def test_an_interrupt_deletes_what_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver lives, so that it can."""
    finish = Flight.finish

    def interrupted(self: Any) -> Any:
        finish(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Flight, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(dataset_of(), tmp_path, samples_per_shard=20)
    assert not tars(tmp_path)
    assert not list(tmp_path.glob("__dray__/wdshards/index/*"))


@pytest.mark.heavy  # it waits for 30 s
def test_a_cluster_without_a_free_cpu_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The write goes on as soon as there is one."""
    remote: Any = ray.remote(Holder)
    holder = remote.options(num_cpus=2).remote()
    ray.get(holder.hold.remote())
    said: list[str] = []

    def release() -> None:
        while not any("waiting for rows of ReadRange" in text for text in said):
            time.sleep(0.2)
            said.append(capsys.readouterr().err)
        ray.kill(holder)

    thread = threading.Thread(target=release)
    thread.start()
    assert write_shards(dataset_of(), tmp_path, samples_per_shard=20).num_samples == 50
    thread.join()
    assert "all CPUs are taken" in "".join(said)
    assert "free are 0 of 2 CPUs" in "".join(said)


class Holder:
    """Holds what it asked for."""

    def hold(self) -> None:
        """Return once it is held."""
