"""ShardDataModule, and WebDataModule in the same uses: the loaders of each stage, states, and calls of the Trainer."""

import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from webdataset import batched

from dray.loaders import PickledDataWDS, ShardDataModule, ShardLoader, Split, WebDataModule, to_device
from dray.shards import CallError
from tests.support.datasets import pack, tensor_of
from tests.support.training import Model, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

NUM_SAMPLES, BATCH, STEPS = 61, 8, 8


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sample n is a tensor of n."""
    return pack(tmp_path_factory.mktemp("module"), NUM_SAMPLES, 5, parts={"tensor.pyd": tensor_of(3)})


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def native(url: str, **options: Any) -> ShardDataModule:
    return ShardDataModule(url, **{"batch_size": BATCH, "shuffle": True, "seed": 3, "remainder": "keep", **options})


def web(url: str, **options: Any) -> WebDataModule:
    def stack(samples: list[Any]) -> torch.Tensor:
        return torch.stack([tensor for (tensor,) in samples])

    batches = batched(BATCH, collation_fn=stack)
    given = {"pipeline_prebatch_wld": {"train": batches}, "kwargs_wds": {"train": {"shardshuffle": True, "seed": 3}}}
    return WebDataModule(None, "tensor.pyd", {"train": url}, BATCH, **{**given, **options})  # type: ignore[arg-type]


MODULES: dict[str, Callable[..., Any]] = {"ShardDataModule": native, "WebDataModule": web}


def test_each_stage_reads_its_split(url: str) -> None:
    """Training is shuffled; other splits are in order and complete, with defaults and options of their own."""
    val = {"url": url, "batch_size": 50, "limit": 30}
    data, model = ShardDataModule(url, val, url, Path(url), batch_size=BATCH, shuffle=True, num_workers=1), Model()
    trainer = trainer_of()
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    trainer.predict(model, data)
    epochs = [flat(model.epoch(epoch)) for epoch in (0, 1)]
    assert [len(set(epoch)) for epoch in epochs] == [56, 56]  # the remainder is dropped
    assert epochs[0] != epochs[1]
    assert model.epoch(1, "val") == [list(range(30))]
    for stage in ("test", "predict"):
        assert flat(batch for _, batch in model.seen[stage]) == list(range(NUM_SAMPLES))


@pytest.mark.parametrize("module", MODULES)
def test_the_training_split_alone_is_enough(url: str, module: str) -> None:
    """The Trainer warns that it does not validate."""
    model = Model()
    with pytest.warns(UserWarning, match="have no `val_dataloader`. Skipping val loop"):
        trainer_of().fit(model, MODULES[module](url))
    assert sorted(flat(model.epoch(1))) == list(range(NUM_SAMPLES))
    assert model.seen["val"] == []


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("overfit", [3, 0.5])
def test_overfit_batches_takes_the_same_batches_in_each_epoch(url: str, module: str, overfit: float) -> None:
    """Shuffling is off, without a warning."""
    model = Model()
    trainer_of(overfit_batches=overfit, limit_val_batches=0).fit(model, MODULES[module](url))
    assert model.epoch(0) == model.epoch(1)
    assert len(model.epoch(0)) == int(overfit if overfit > 1 else overfit * STEPS)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("limit", [3, 1.0])
def test_the_state_after_an_epoch_is_the_start_of_the_next(url: str, module: str, limit: float) -> None:
    """Also if the Trainer ended the epoch early."""
    data = MODULES[module](url)
    trainer_of(max_epochs=2, limit_train_batches=limit).fit(Model(), data)
    state = data.state_dict()["train"]
    cursor = state.get("cursor", state)
    assert (cursor["epoch"], cursor["consumed"], cursor["steps"]) == (2, 0, 0)


@pytest.mark.parametrize("module", MODULES)
def test_one_trainer_goes_on_where_it_stopped(url: str, tmp_path: Path, module: str) -> None:
    """It starts the next epoch. A state that another stage loaded does not reach the next fit."""
    make = MODULES[module]
    whole, model, data = Model(), Model(), make(url)
    trainer_of(max_epochs=3).fit(whole, make(url))
    trainer = trainer_of(max_epochs=2, max_steps=3)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "inside.ckpt")
    trainer_of().validate(
        model, datamodule=ShardDataModule(val=url, batch_size=BATCH), ckpt_path=tmp_path / "inside.ckpt"
    )
    again = Model()
    second = trainer_of(max_epochs=2)
    second.fit(again, data)
    second.fit_loop.max_epochs = 3
    second.fit(again, data)
    assert [again.epoch(epoch) for epoch in range(3)] == [whole.epoch(epoch) for epoch in range(3)]


@pytest.mark.parametrize("module", MODULES)
def test_each_fit_begins_with_epoch_0_of_its_trainer(url: str, module: str) -> None:
    """Also after a fit that failed. No worker outlives a fit."""
    workers = {"kwargs_wld": {"train": {"num_workers": 2}}} if module == "WebDataModule" else {"num_workers": 2}
    data, whole, others = MODULES[module](url, **workers), Model(), set(multiprocessing.active_children())
    trainer_of(max_epochs=1).fit(whole, MODULES[module](url))
    for fails_at in (None, 4, None):
        model = Model(fails_at)
        with nullcontext() if fails_at is None else pytest.raises(ZeroDivisionError):
            trainer_of(max_epochs=1).fit(model, data)
        assert model.epoch(0) == whole.epoch(0)[: None if fails_at is None else fails_at + 1]
        assert set(multiprocessing.active_children()) <= others


def test_a_state_loaded_by_another_stage_does_not_wait_for_a_fit(url: str, tmp_path: Path) -> None:
    """`Trainer.test(ckpt_path=...)` loads the DataModule's state as well."""
    data = native(url, test=url)
    model, whole = Model(), Model()

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    trainer_of(max_epochs=1, callbacks=[Stop()]).fit(whole, data)
    trainer_of().test(model, data, ckpt_path=tmp_path / "inside.ckpt", verbose=False)
    trainer_of(max_epochs=1).fit(model, data)
    assert model.epoch(0) == whole.epoch(0)


@pytest.mark.parametrize("module", MODULES)
def test_a_look_at_a_batch_moves_nothing(url: str, tmp_path: Path, module: str) -> None:
    """`next(iter(data.train_dataloader()))`, before or inside a fit, changes neither epochs nor checkpoints."""
    make = MODULES[module]
    whole, model, data = Model(), Model(), make(url)
    trainer_of().fit(whole, make(url))

    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                next(iter(trainer.datamodule.train_dataloader()))
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    data.setup("fit")
    next(iter(data.train_dataloader()))
    trainer_of(callbacks=[Look()]).fit(model, data)
    assert model.seen == whole.seen
    rest = Model()
    trainer_of().fit(rest, make(url), ckpt_path=tmp_path / "inside.ckpt")
    assert rest.seen["train"] == whole.seen["train"][-len(rest.seen["train"]) :]
    assert len(rest.seen["train"]) == STEPS - 3


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle"])
def test_loaders_side_by_side_follow_the_epoch(url: str, tmp_path: Path, mode: Any) -> None:
    """The longer one is cut at the end of the epoch, or the shorter one takes a further pass in another order."""

    def loaders() -> CombinedLoader:
        options: Any = {"shuffle": True, "remainder": "keep"}
        return CombinedLoader(
            [ShardLoader(url, batch_size=8, **options), ShardLoader(url, batch_size=16, **options)], mode
        )

    class Both(Model):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            for one in batch:
                self.note("train", one)
            return self.weight.mean()

    def fit(resumed: str | None = None, **options: Any) -> Both:
        model = Both()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "this checkpoint holds|Checkpoint directory")
            saving = lightning.pytorch.callbacks.ModelCheckpoint(
                tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1
            )
            trainer_of(max_epochs=3, callbacks=[saving], enable_checkpointing=True, **options).fit(
                model, loaders(), ckpt_path=resumed
            )
        return model

    whole = fit()
    steps = 4 if mode == "min_size" else 8
    assert [len(whole.epoch(epoch)) for epoch in range(3)] == [2 * steps] * 3
    assert len({str(whole.epoch(epoch)) for epoch in range(3)}) == 3
    if mode == "max_size_cycle":
        passes = whole.epoch(0)[1:8:2], whole.epoch(0)[9:16:2]
        assert [sorted(flat(one)) for one in passes] == [list(range(NUM_SAMPLES))] * 2
        assert passes[0] != passes[1]
    for step in (3, 6, 9):
        found = fit(str(tmp_path / f"{step=}.ckpt")).seen["train"]
        assert found == whole.seen["train"][2 * step :]


def test_a_bare_loader_warns_once_of_what_it_cannot_know(url: str, tmp_path: Path) -> None:
    """When a checkpoint is saved. Loaders of the DataModule have no state of their own."""
    loader = ShardLoader(url, batch_size=BATCH)
    with pytest.warns(UserWarning, match=r"estimated_stepping_batches.*ShardDataModule") as caught:
        trainer_of(enable_checkpointing=True, default_root_dir=tmp_path).fit(Model(), loader)
    assert len([one for one in caught if "estimated" in str(one.message)]) == 1
    data = native(url)
    trainer = trainer_of(enable_checkpointing=True, default_root_dir=tmp_path / "module")
    trainer.fit(Model(), data)
    assert trainer.train_dataloader.state_dict() == {}


def test_a_copying_loader_follows_the_epoch(url: str) -> None:
    """`to_device` passes the sampler on."""
    loader = ShardLoader(url, batch_size=BATCH, shuffle=True)
    copying: Any = to_device(loader, "meta")
    copying.sampler.set_epoch(4)
    assert [len(list(copying)), copying.state_dict()["epoch"]] == [7, 4]


def test_wrong_calls_say_what_to_give(url: str) -> None:
    """For unknown options, splits without URL or batch size, and missing splits."""
    with pytest.raises(CallError, match=r"unknown option 'batchsize' of ShardLoader; did you mean 'batch_size'\?"):
        ShardDataModule(url, batch_size=8, batchsize=8)
    with pytest.raises(
        CallError, match=r"the mapping of val: unknown option 'sede' of ShardLoader; did you mean 'seed'\?"
    ):
        ShardDataModule(url, {"url": url, "sede": 1}, batch_size=8)
    with pytest.raises(CallError, match=r"the mapping of test has no 'url'; it has \['seed'\]"):
        ShardDataModule(url, test={"seed": 1}, batch_size=8)
    with pytest.raises(CallError, match="train has no batch_size"):
        ShardDataModule(url)
    with pytest.raises(CallError, match="no split is given"):
        ShardDataModule(batch_size=8)
    with pytest.raises(CallError, match=r"no test split: give it one, such as test=URL"):
        trainer_of().test(Model(), native(url))


def test_splits_may_be_named_by_strings(url: str, tmp_path: Path) -> None:
    """In every dictionary. For any other key the error lists the splits."""
    data = web(url)
    data.setup("fit")
    assert len(data.train_dataloader()) == STEPS
    with pytest.raises(CallError, match=r"dirs_tars_wds: the key 'training' is not a split.*Split\.train or 'train'"):
        WebDataModule(None, "tensor.pyd", {"training": url}, 8)
    with pytest.raises(CallError, match=r"pipeline_wds: the key 'train' .*names one twice"):
        WebDataModule(None, "tensor.pyd", {"train": url}, 8, pipeline_wds={Split.train: [], "train": []})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.x.pyd").write_bytes(pickle.dumps(1))
    packing = PickledDataWDS(tmp_path / "in", {"test": ["a"]}, "x.pyd", {"test": tmp_path / "out"}, 1, progress=False)
    packing.prepare_data()
    packing.setup("test")
    assert len(packing.test_dataloader()) == 1


def test_a_module_keeps_the_version_that_a_stage_began_with(tmp_path: Path) -> None:
    """Also if the Trainer requests a new loader in each epoch, and a build commits in between."""
    url = pack(tmp_path / "first", 20, 2, url=str(tmp_path / "out"), parts={"tensor.pyd": tensor_of(3)})
    data, model = ShardDataModule(url, batch_size=4), Model()

    class Build(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                pack(tmp_path / "second", 40, 2, url=url, parts={"tensor.pyd": tensor_of(3)})

    trainer_of(reload_dataloaders_every_n_epochs=1, callbacks=[Build()]).fit(model, data)
    assert [len(model.epoch(0)), len(model.epoch(1))] == [5, 5]
    trainer_of(max_epochs=1).fit(again := Model(), data)
    assert len(again.epoch(0)) == 10
