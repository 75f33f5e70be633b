"""WebDataModule and PickledDataWDS: code written for bionemo-webdatamodule runs with only its imports changed."""

# Long: every test calls the module as its documentation does, on the same pickles.

import os
import pickle
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from webdataset import batched, ignore_and_continue, shuffle

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import PickledDataWDS, Split, WebDataModule
from dray.loaders.webloader.tar_stream import RankedDataset
from dray.shards import CallError, DamagedError, NotFoundError, RefusedError, Snapshot, Store
from tests.support.processes import call_at_once, meet
from tests.support.training import Model, trainer_of

COUNTS = {Split.train: 50, Split.val: 11, Split.test: 12}
SUFFIX = "tensor.pyd"
BATCH = 8


@pytest.fixture(scope="module")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """73 samples: a tensor that holds the sample's number, and that number as text."""
    folder = tmp_path_factory.mktemp("pickles")
    for number in range(sum(COUNTS.values())):
        (folder / f"sample.{number}.{SUFFIX}").write_bytes(pickle.dumps(torch.full((1, 4), float(number))))
        (folder / f"sample.{number}.label.cls").write_text(str(number))
    return folder


def names_of(split: Split) -> list[str]:
    return [f"sample.{number}" for number in numbers_of(split)]


def numbers_of(split: Split) -> range:
    starts = {Split.train: 0, Split.val: 50, Split.test: 61}
    return range(starts[split], starts[split] + COUNTS[split])


def untuple(source: Iterable[tuple[Any]]) -> Iterator[Any]:
    return (sample for (sample,) in source)


def stack(samples: list[Tensor]) -> Tensor:
    return torch.vstack(samples)


batch = batched(BATCH, collation_fn=stack)
PER_SPLIT = dict.fromkeys(Split, batch)


def module(pickles: Path, output: Path | str, **options: Any) -> PickledDataWDS:
    """The documented call; `options` replace its keywords."""
    options = {
        "n_tars_wds": 3,
        "prefix_tars_wds": "myshards",
        "pipeline_wds": dict.fromkeys(Split, untuple),
        "pipeline_prebatch_wld": PER_SPLIT,
        **options,
    }
    directories = {split: f"{output}/{split.name}" for split in Split}
    suffixes = options.pop("suffixes", SUFFIX)
    names = {split: names_of(split) for split in Split}
    return PickledDataWDS(pickles, names, suffixes, directories, BATCH, **options)


def ready(pickles: Path, output: Path | str, **options: Any) -> PickledDataWDS:
    prepared = module(pickles, output, **options)
    prepared.prepare_data()
    prepared.setup("fit")
    prepared.setup("test")
    return prepared


def numbers_in(loader: Iterable[Tensor]) -> list[int]:
    return [int(row[0]) for rows in loader for row in rows]


def test_the_documented_example_trains_on_every_sample(pickles: Path, tmp_path: Path) -> None:
    """With two shuffles, workers, batching in the training process, and the documented keywords."""
    rng = random.Random(3)
    splitter = wds.split_by_node
    with pytest.warns(UserWarning, match=r"^kwargs_wds: not needed here and ignored: nodesplitter \(the order"):
        data = ready(
            pickles,
            tmp_path,
            pipeline_wds={Split.train: [untuple, shuffle(50, rng=rng)], Split.val: untuple, Split.test: [untuple]},
            pipeline_prebatch_wld={Split.train: [shuffle(50, rng=rng), batch], Split.val: batch, Split.test: batch},
            kwargs_wds={s: {"shardshuffle": s == Split.train, "nodesplitter": splitter, "seed": 7} for s in Split},
            kwargs_wld={split: {"num_workers": 2} for split in Split},
        )
    train = numbers_in(data.train_dataloader())
    assert sorted(train) == list(numbers_of(Split.train))
    assert train != sorted(train)
    assert sorted(numbers_in(data.val_dataloader())) == list(numbers_of(Split.val))
    assert sorted(numbers_in(data.predict_dataloader())) == list(numbers_of(Split.test))


def test_a_trainer_fits_validates_tests_and_predicts(pickles: Path, tmp_path: Path) -> None:
    """Each stage sees its split once per epoch."""
    data, model = module(pickles, tmp_path), Model()
    trainer = trainer_of()
    trainer.fit(model, data)
    trainer.validate(model, data, verbose=False)
    trainer.test(model, data, verbose=False)
    trainer.predict(model, data)
    assert model.samples("train") == sorted([*numbers_of(Split.train)] * 2)
    assert model.samples("val") == sorted([*numbers_of(Split.val)] * 3)
    assert model.samples("test") == model.samples("predict") == list(numbers_of(Split.test))
    assert trainer.num_training_batches == 7


def test_several_suffixes_come_as_tuples_in_their_order(pickles: Path, tmp_path: Path) -> None:
    """Each part decoded by its suffix."""
    data = ready(pickles, tmp_path, suffixes=("label.cls", SUFFIX), pipeline_wds=None, pipeline_prebatch_wld=None)
    samples = list(data.val_dataloader())
    assert all(isinstance(label, int) and tensor.shape == (1, 4) for label, tensor in samples)
    everything = ready(pickles, tmp_path, suffixes=["label.cls", SUFFIX], pipeline_wds=None,
                       pipeline_prebatch_wld=None, n_tars_wds=3)  # fmt: skip
    everything._global_batch_size = None
    assert [label for label, _ in everything.val_dataloader()] == list(numbers_of(Split.val))


def test_without_a_global_batch_size_an_epoch_is_one_pass(pickles: Path, tmp_path: Path) -> None:
    """Counts come from the snapshot if none are given; the value of a split may be missing or None."""
    ready(pickles, tmp_path)
    directories = {split: tmp_path / split.name for split in Split}
    data = WebDataModule(
        n_samples=None, suffix_keys_wds=SUFFIX, dirs_tars_wds=directories, global_batch_size=None,
        prefix_tars_wds="myshards", pipeline_wds={Split.val: untuple, Split.test: None},
        kwargs_wds={Split.val: None}, kwargs_wld={},
    )  # fmt: skip
    data.setup("fit")
    data.setup("test")
    assert [int(sample[0, 0]) for sample in data.val_dataloader()] == list(numbers_of(Split.val))
    assert [int(sample[0][0, 0]) for sample in data.test_dataloader()] == list(numbers_of(Split.test))
    data._global_batch_size = BATCH
    assert len(data.val_dataloader()) == 2


def test_invoked_methods_come_last(pickles: Path, tmp_path: Path) -> None:
    """On the dataset and on the loader, each on the result of the one before; the length follows."""
    data = ready(
        pickles, tmp_path, invoke_wds={Split.val: [("map", {"f": lambda tensor: tensor + 1})]},
        invoke_wld={Split.val: [("with_epoch", {"nbatches": 5})], Split.test: None},
    )  # fmt: skip
    assert len(data.val_dataloader()) == 5 == len(list(data.val_dataloader()))
    assert min(numbers_in(data.val_dataloader())) == min(numbers_of(Split.val)) + 1


def read_share(directory: Path, context: str, meeting: Path) -> list[int]:
    """Returns what one of two ranks reads in workers."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=meet(), world_size=2)
    pipeline = {Split.val: lambda source: (tensor for (tensor,) in source)}
    workers = {Split.val: {"num_workers": 2, "multiprocessing_context": context}}
    data = WebDataModule(None, SUFFIX, {Split.val: directory}, None, "myshards", pipeline, kwargs_wld=workers)
    data.setup("validate")
    found = sorted(numbers_in(data.val_dataloader()))
    dist.destroy_process_group()
    return found


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.heavy)])
def test_workers_of_two_ranks_know_whose_they_are(pickles: Path, tmp_path: Path, context: str) -> None:
    """Forked or spawned, and without RANK in the environment: each sample is on one rank."""
    ready(pickles, tmp_path / "shards")
    found = call_at_once(2, read_share, tmp_path / "shards" / "val", context, tmp_path / "meeting")
    assert sorted(number for share in found for number in share) == list(numbers_of(Split.val))
    assert sorted(map(len, found)) == [5, 6]


class Ranks(IterableDataset[Any]):
    """The rank that a worker knows."""

    def __iter__(self) -> Iterator[tuple[str | None, str | None]]:
        yield os.environ.get("RANK"), os.environ.get("WORLD_SIZE")


@pytest.mark.heavy
def test_a_spawned_worker_of_a_streamed_dataset_knows_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the rank of the process that pickled the dataset, without RANK in its environment."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = pickle.dumps(RankedDataset(Ranks()))
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    loader = DataLoader(pickle.loads(data), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert [tuple(found) for found in loader] == [("1", "2")]


def test_a_cache_directory_hides_no_damage(pickles: Path, tmp_path: Path) -> None:
    """Local files are not cached, and their sizes are checked when they are opened."""
    data = ready(pickles, tmp_path, kwargs_wds={Split.val: {"cache_dir": str(tmp_path)}})
    shard = tmp_path / "val" / "myshards-000001.tar"
    shard.write_bytes(shard.read_bytes()[:1536])
    with pytest.raises(DamagedError, match=r"myshards-000001\.tar"):
        list(data.val_dataloader())


def test_tars_of_others_on_object_storage_are_dealt_out_to_workers(tmp_path: Path, s3: SeaweedServer) -> None:
    """The workers are spawned, and lambdas reach them."""
    store = Store(s3.url("foreign"), s3.storage_options)
    for name in "abc":
        with tarfile.open(tmp_path / "one.tar", "w") as tar:
            (tmp_path / "part").write_text(str(ord(name)))
            tar.add(tmp_path / "part", f"{name}.label.cls")
        store.put_new(f"wdshards-{name}.tar", (tmp_path / "one.tar").read_bytes())
    note = lambda worker: os.environ.update(DRAY_TEST_WORKER=str(worker))  # noqa: E731
    pipe = lambda source: ((sample, os.environ["DRAY_TEST_WORKER"]) for (sample,) in source)  # noqa: E731
    wld = {"num_workers": 2, "worker_init_fn": note, "collate_fn": lambda pair: [*pair, "collated"]}
    data = WebDataModule(
        None, "label.cls", {Split.val: store.url}, None, pipeline_wds={Split.val: pipe},
        kwargs_wld={Split.val: wld}, storage_options=s3.storage_options,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="streamed whole"):
        data.setup("validate")
    found = sorted(data.val_dataloader())
    assert found == [[97, "0", "collated"], [98, "1", "collated"], [99, "0", "collated"]]


def test_a_cache_directory_keeps_what_was_read_from_object_storage(
    pickles: Path, tmp_path: Path, s3: SeaweedServer
) -> None:
    """Under a budget of bytes; with 0 there is none."""
    options = {"storage_options": s3.storage_options}
    for size, found in ((0, 0), (1 << 30, 1), (-1, 1)):
        cache = tmp_path / f"cache{size}"
        kwargs_wds = {Split.val: {"cache_dir": cache, "cache_size": size}}
        data = ready(pickles, s3.url("cached"), kwargs_wds=kwargs_wds, **options)
        assert sorted(numbers_in(data.val_dataloader())) == list(numbers_of(Split.val))
        assert bool(list(cache.rglob("*.tar-*"))) == bool(found)


def test_plain_tars_without_a_snapshot_are_found_by_their_names(tmp_path: Path) -> None:
    """The number of samples in tars of other tools is counted on disks; for object storage it must be given."""
    with tarfile.open(tmp_path / "wdshards-a.tar", "w") as tar:
        for number in range(5):
            (tmp_path / "part").write_text(str(number))
            tar.add(tmp_path / "part", f"key{number}.label.cls")
    data = WebDataModule({Split.val: 5}, "label.cls", {Split.val: str(tmp_path)}, 1, pipeline_wds={Split.val: untuple})
    data.setup("validate")
    assert list(data.val_dataloader()) == [0, 1, 2, 3, 4]
    untold = WebDataModule(None, "label.cls", {Split.val: str(tmp_path)}, 2)
    untold.setup("validate")
    assert len(untold.val_dataloader()) == 3
    Store("memory://tars").put_new("wdshards-a.tar", (tmp_path / "wdshards-a.tar").read_bytes())
    unknown = WebDataModule(None, "label.cls", {Split.val: "memory://tars"}, 1, pipeline_wds={Split.val: untuple})
    with pytest.warns(UserWarning, match="streamed whole"):
        unknown.setup("validate")
    with pytest.raises(RuntimeError, match="give n_samples"):
        unknown.val_dataloader()
    unknown._global_batch_size = None
    assert list(unknown.val_dataloader()) == [0, 1, 2, 3, 4]


def test_wrong_calls_say_what_is_wrong(tmp_path: Path) -> None:
    """RuntimeError and NotImplementedError as documented; if nothing is found, the error says what to do."""
    with pytest.raises(RuntimeError, match="n_samples has the splits"):
        WebDataModule({Split.train: 1}, SUFFIX, {Split.val: str(tmp_path)}, 1)
    data = WebDataModule({Split.val: 1}, SUFFIX, {Split.val: str(tmp_path)}, 1)
    with pytest.raises(NotImplementedError, match="unheard"):
        data.setup("unheard")
    with pytest.raises(RuntimeError, match="'test' has no directory"):
        data.setup("test")
    with pytest.raises(NotFoundError, match=r"wdshards-\*\.tar.*prepare_data"):
        data.setup("validate")
    with pytest.raises(RuntimeError, match="not set up"):
        data.val_dataloader()


def test_subclasses_reach_the_arguments_under_their_old_names(pickles: Path, tmp_path: Path) -> None:
    """They are private, but subclasses use them."""
    data = ready(pickles, tmp_path, kwargs_wld={Split.train: {"num_workers": 0}})
    assert data._n_samples == COUNTS
    assert data._suffix_keys_wds == SUFFIX
    assert data._prefix_tars_wds == "myshards"
    assert data._dirs_tars_wds[Split.train] == f"{tmp_path}/train"
    assert (data._global_batch_size, data._n_tars_wds, data._dir_pickles) == (BATCH, 3, pickles)
    assert data._kwargs_wld == {Split.train: {"num_workers": 0}}
    assert set(data._dataset) == set(Split)
    assert set(data._names_subset) == set(Split)
    assert data._pipeline_prebatch_wld is PER_SPLIT
    assert data._kwargs_wds is None


def test_preparing_again_writes_nothing(pickles: Path, tmp_path: Path) -> None:
    """The same samples make no new version."""
    for _ in range(2):
        module(pickles, tmp_path).prepare_data()
    assert Snapshot.open(tmp_path / "train", "myshards").version == 1


class Unsafe:
    """A class that no safe list knows."""


def test_a_pickle_of_a_foreign_class_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """The error names shard, key and suffix; one keyword allows the class."""
    (tmp_path / "in").mkdir()
    (tmp_path / f"in/a.{SUFFIX}").write_bytes(pickle.dumps(Unsafe()))
    name = f"{Unsafe.__module__}.Unsafe"

    def first_sample(**options: Any) -> Any:
        output = {Split.val: str(tmp_path / "out")}
        data = PickledDataWDS(tmp_path / "in", {Split.val: ["a"]}, SUFFIX, output, 1, **options)
        data.prepare_data()
        data.setup("validate")
        return next(iter(data.val_dataloader()))[0]

    with pytest.raises(RefusedError, match=rf"wdshards-000000\.tar.*'a'.*{name}.*allow"):
        first_sample()
    assert isinstance(first_sample(allow=[name]), Unsafe)
    with pytest.warns(UserWarning, match="run any code"):
        assert isinstance(first_sample(allow_pickle=True), Unsafe)


@pytest.mark.parametrize("damage", [lambda tar: tar[:-512], lambda tar: tar[: len(tar) // 1024 * 512], None])
def test_a_shard_that_is_not_as_committed_is_an_error(
    pickles: Path, tmp_path: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    """A cut or missing shard never shortens an epoch."""
    data = ready(pickles, tmp_path)
    shard = tmp_path / "val" / "myshards-000001.tar"
    body = shard.read_bytes()
    shard.unlink()
    if damage:
        shard.write_bytes(damage(body))
    with pytest.raises(DamagedError if damage else NotFoundError, match=r"myshards-000001\.tar"):
        list(data.val_dataloader())


def test_a_missing_part_names_shard_and_key(pickles: Path, tmp_path: Path) -> None:
    """The error lists the parts that exist. Handlers do not skip the sample, as it is not damaged."""
    data = ready(pickles, tmp_path, kwargs_wds={Split.val: {"handler": ignore_and_continue}})
    data._suffix_keys_wds = "other.pyd"
    data.setup("validate")
    with pytest.raises(CallError, match=r"myshards-00000\d\.tar', key 'sample-\d+'.*'other\.pyd'.*tensor\.pyd"):
        list(data.val_dataloader())


def test_readers_see_the_committed_shards_and_no_others(pickles: Path, tmp_path: Path) -> None:
    """A stray tar with the same prefix is not read, as it is not in the snapshot."""
    data = ready(pickles, tmp_path)
    Store(tmp_path / "val").put_new("myshards-000077.tar", b"stray")
    data.setup("validate")
    assert sorted(numbers_in(data.val_dataloader())) == list(numbers_of(Split.val))


def test_a_dataset_with_lost_metadata_is_an_error_and_not_a_pile_of_tars(pickles: Path, tmp_path: Path) -> None:
    """Globbing would bring back shards of older versions."""
    ready(pickles, tmp_path)
    for manifest in (tmp_path / "val" / "__dray__" / "myshards" / "manifests").glob("*.json"):
        manifest.unlink()
    data = module(pickles, tmp_path)
    with pytest.raises(DamagedError, match="manifests"):
        data.setup("validate")


def test_a_set_or_a_generator_of_suffixes_has_one_order(pickles: Path, tmp_path: Path) -> None:
    """It is the same in every process and every setup."""
    both = {SUFFIX, "label.cls"}
    assert module(pickles, tmp_path, suffixes=both)._suffix_keys_wds == ("label.cls", SUFFIX)
    data = ready(pickles, tmp_path, suffixes=(suffix for suffix in [SUFFIX, "label.cls"]), pipeline_wds=None)
    assert data._suffix_keys_wds == (SUFFIX, "label.cls")


def test_splits_that_share_a_directory_are_refused(pickles: Path, tmp_path: Path) -> None:
    """Each would replace the other's samples."""
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "up").symlink_to(tmp_path)
    names = {split: names_of(split) for split in Split}
    for other in ("x", "link", "up/x"):
        directories = {Split.train: tmp_path / "x", Split.val: tmp_path / other, Split.test: tmp_path / "test"}
        with pytest.raises(ValueError, match=f"/x and .*/{other} are the same directory: each split needs a dir"):
            PickledDataWDS(pickles, names, SUFFIX, directories, BATCH)


def test_a_split_without_samples_is_left_out_and_said(
    pickles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A split by hash may leave a small one empty."""
    names = {Split.train: names_of(Split.train), Split.test: []}
    directories = {split: f"{tmp_path}/{split.name}" for split in names}
    PickledDataWDS(pickles, names, SUFFIX, directories, BATCH).prepare_data()
    assert "split 'test' has no samples" in capsys.readouterr().err
    assert Snapshot.open(tmp_path / "train").num_samples == COUNTS[Split.train]


def test_pipe_urls_never_reach_a_shell(pickles: Path, tmp_path: Path) -> None:
    """A directory is a directory, whatever it is called."""
    command = f"pipe:touch {tmp_path}/ran; cat"
    data = WebDataModule({Split.val: 1}, SUFFIX, {Split.val: command}, 1)
    with pytest.raises(NotFoundError):
        data.setup("validate")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("encode", ["auto", {SUFFIX: "npy"}])
def test_pickles_may_be_encoded_before_they_are_streamed(
    pickles: Path, tmp_path: Path, encode: str | dict[str, str]
) -> None:
    """`suffix_keys_wds` still names the pickles; the pipelines get arrays."""
    batches = dict.fromkeys(Split, batched(BATCH, collation_fn=np.vstack))
    data = module(pickles, tmp_path, encode=encode, pipeline_prebatch_wld=batches)
    data.prepare_data()
    data.setup("test")
    found = np.vstack(list(data.test_dataloader()))
    assert found.tolist() == [[float(number)] * 4 for number in numbers_of(Split.test)]
    assert Snapshot.open(tmp_path / "test", "myshards").manifest.counts()[0] == {"tensor.npy": 4}


def test_a_part_that_became_three_kinds_is_read_in_each(tmp_path: Path) -> None:
    """With `encode="auto"`, also if another part has a suffix with the same ending."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    values: list[Any] = [torch.ones(2), {"a": torch.ones(2)}, "text", (1, 2)]
    names = [f"s{number}" for number in range(len(values))]
    for number, name in enumerate(names):
        (inputs / f"{name}.x.pyd").write_bytes(pickle.dumps(values[number]))
        (inputs / f"{name}.y.x.pyd").write_bytes(pickle.dumps(number))
    data = PickledDataWDS(
        inputs, {Split.test: names}, ["x.pyd", "y.x.pyd"], {Split.test: tmp_path / "out"}, 1, encode="auto",
        n_tars_wds=1, progress=False,
    )  # fmt: skip
    data.prepare_data()
    data.setup("test")
    found = list(data.test_dataloader())
    assert [type(value).__name__ for value, _ in found] == ["Tensor", "dict", "str", "list"]
    assert found[2][0] == "text"
    assert [int(other) for _, other in found] == [0, 1, 2, 3]


def test_a_state_that_was_taken_up_does_not_wait_for_another_fit(pickles: Path, tmp_path: Path) -> None:
    """`Trainer.test(ckpt_path=...)` loads it as well, but the next fit begins with epoch 0."""
    data = ready(pickles, tmp_path)
    data.setup("fit")
    loader = data.train_dataloader()
    list(islice(loader, 2))
    state = data.state_dict()
    whole = len(loader)
    list(loader)
    data.load_state_dict(state)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == whole
