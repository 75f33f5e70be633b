"""A resumed fit trains the same batches as an uninterrupted one, under a plain Trainer, with every entry point."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader
from webdataset import batched

from dray.loaders import ShardDataModule, ShardLoader, Split, WebDataModule
from tests.support.datasets import pack, tensor_of
from tests.support.training import EpochNumbers, trainer_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]

NUM_SAMPLES, BATCH, STEPS, EPOCHS = 103, 8, 13, 3
VAL_BATCH = 52

Event = tuple[str, int, int, tuple[int, ...]]  # train or val, epoch, batch, samples


class Model(lightning.LightningModule):
    """Notes its training batches and validations, and behaves as the trial says."""

    def __init__(self, trial: "Trial", fails_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.events: list[Event] = []
        self.trial, self.fails_at = trial, fails_at

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.trial.cut_at else None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        values = batch["tensor.pyd"] if isinstance(batch, Mapping) else batch
        if sum(event[0] == "train" for event in self.events) == self.fails_at:
            raise ZeroDivisionError
        self.events.append(("train", self.current_epoch, batch_idx, tuple(values[:, 0].int().tolist())))
        loss: torch.Tensor = self.layer(values).square().mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.events.append(("val", self.current_epoch, 0, ()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.trial.estimates:
            assert self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["num_events"] = len(self.events)


@dataclass(frozen=True)
class Trial:
    """One way to train, to save and to be interrupted."""

    saves: Mapping[str, Any] = field(default_factory=dict)  # arguments of ModelCheckpoint
    trainer: Mapping[str, Any] = field(default_factory=dict)
    cut_at: int | None = None  # on_train_batch_start ends the epoch there
    fails_at: int | None = None  # training_step raises there, and the checkpoint is saved then
    estimates: bool = False  # configure_optimizers reads trainer.estimated_stepping_batches


class SaveOnError(Callback):
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir, "failed.ckpt"))


def fit(data: Any, trial: Trial, folder: Path, resumed: Path | None = None) -> list[Event]:
    """Returns what one process trains, from the start or from a checkpoint; saves checkpoints in the folder."""
    saving = (
        ModelCheckpoint(folder, "{step}", save_top_k=-1, **trial.saves) if trial.fails_at is None else SaveOnError()
    )
    saves = {"callbacks": [saving], "enable_checkpointing": trial.fails_at is None, "default_root_dir": folder}
    model = Model(trial, trial.fails_at if resumed is None else None)
    with contextlib.suppress(ZeroDivisionError):
        trainer_of(**{"max_epochs": EPOCHS, **saves, **trial.trainer}).fit(model, datamodule=data, ckpt_path=resumed)
    return model.events


@dataclass(frozen=True)
class Resume:
    """What is trained after a checkpoint: by the run that saved it, and by one that was resumed there."""

    before: list[Event]
    expected: list[Event]
    found: list[Event]


def numbers(events: list[Event]) -> list[tuple[str, int, int]]:
    return [event[:3] for event in events]


def resumes(make: Callable[[int], Any], trial: Trial, folder: Path, most: int = 3) -> Iterator[Resume]:
    """Yields a trial, resumed from some of its checkpoints."""
    folder.mkdir(parents=True)
    events = fit(make(BATCH), trial, folder)
    if trial.fails_at is not None:
        events = fit(make(BATCH), replace(trial, fails_at=None, saves={"every_n_epochs": 9}), folder)
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)[:most]:
        taken = torch.load(path, weights_only=False)["num_events"]
        yield Resume(events[:taken], events[taken:], fit(make(BATCH), trial, folder, path))


class Bare(lightning.LightningDataModule):
    """Loaders without a state of their DataModule."""

    def __init__(self, train: Callable[[], Any], val: Callable[[], Any]) -> None:
        super().__init__()
        self._train, self._val = train, val

    def train_dataloader(self) -> Any:
        return self._train()

    def val_dataloader(self) -> Any:
        return self._val()


def untuple(source: Any) -> Any:
    return (sample for (sample,) in source)


def shard_module(url: str, batch: int, **options: Any) -> ShardDataModule:
    val = {"url": url, "batch_size": VAL_BATCH}
    return ShardDataModule(url, val, batch_size=batch, shuffle=True, seed=1, remainder="keep", **options)


def web_module(url: str, batch: int) -> WebDataModule:
    sizes = {Split.train: batch, Split.val: batch}
    return WebDataModule(
        None, "tensor.pyd", dict.fromkeys(sizes, url), batch,
        pipeline_wds=dict.fromkeys(sizes, untuple),
        pipeline_prebatch_wld={split: batched(size, collation_fn=torch.stack) for split, size in sizes.items()},
        kwargs_wds={Split.train: {"shardshuffle": True, "seed": 1}},
    )  # fmt: skip


def bare_loader(url: str, batch: int) -> Bare:
    def train() -> ShardLoader:
        return ShardLoader(url, batch_size=batch, shuffle=True, seed=1, remainder="keep")

    return Bare(train, lambda: ShardLoader(url, batch_size=VAL_BATCH))


def torch_loader(batch: int) -> Bare:
    """Returns torch's own loader, which shows how Lightning itself counts; it is not resumed inside an epoch.

    Its training samples are the number of the epoch that Lightning asked for.
    """
    values = torch.arange(NUM_SAMPLES).float()[:, None].expand(-1, 3)
    return Bare(
        lambda: DataLoader(values, batch, sampler=EpochNumbers(NUM_SAMPLES)), lambda: DataLoader(values, VAL_BATCH)
    )


MODULES = {"ShardDataModule": shard_module, "WebDataModule": web_module}
ENTRY_POINTS = {**MODULES, "ShardLoader": bare_loader}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of different sizes; sample n is a tensor of n."""
    return pack(tmp_path_factory.mktemp("resume"), NUM_SAMPLES, 7, parts={"tensor.pyd": tensor_of(3)})


def miscounted_by_lightning(trial: Trial, resume: Resume) -> bool:
    """Whether Lightning 2.6, with any loader, resumes elsewhere than where the checkpoint was saved.

    - A validation that was due at the step of the checkpoint is left out (`every_n_train_steps` saves before it).
    - With `max_steps`, a checkpoint of an epoch's end skips the next epoch.
    - After `on_train_batch_start` ended an epoch, batches of later epochs are miscounted.
    """
    saved_before_validation = (
        "every_n_train_steps" in trial.saves and resume.expected[:1] and resume.expected[0][0] == "val"
    )
    return bool(saved_before_validation or "max_steps" in trial.trainer or trial.cut_at is not None)


def check(entry_point: str, url: str, trial: Trial, folder: Path, most: int = 3) -> int:
    """Check that a resumed run trains and validates the rest, or does what Lightning does with torch's own loader.

    Returns the number of checkpoints that were resumed.
    """
    with warnings.catch_warnings():
        if entry_point == "ShardLoader":
            warnings.filterwarnings("ignore", "this checkpoint holds the state of a ShardLoader")
        made = list(resumes(lambda batch: ENTRY_POINTS[entry_point](url, batch), trial, folder / "ours", most))
    for place, resume in enumerate(made):
        if resume.found == resume.expected:
            continue
        assert miscounted_by_lightning(trial, resume), (trial, place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = list(resumes(torch_loader, trial, folder / f"plain{place}", most))[place]
        assert plain.found != plain.expected
        assert numbers(resume.found) == numbers(plain.found)
    return len(made)


TRIALS = {
    "epoch end": Trial(estimates=True),
    "validation end": Trial({"save_on_train_epoch_end": False}, {"val_check_interval": 0.5}),
    "inside, estimated": Trial({"every_n_train_steps": 5}, {"accumulate_grad_batches": 2}, estimates=True),
    "limit": Trial({"every_n_train_steps": 4}, {"limit_train_batches": 5, "reload_dataloaders_every_n_epochs": 1}),
    "limit at epoch end": Trial({}, {"limit_train_batches": 0.5}),
    "last batch": Trial({"every_n_train_steps": STEPS}),
    "max_steps": Trial({"every_n_train_steps": 9}, {"max_steps": 33}),
    "cut": Trial({"every_n_train_steps": 3}, cut_at=4),
    "error in a step": Trial(fails_at=5, estimates=True),
    "error in the last step": Trial(fails_at=12),
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("name", TRIALS)
def test_a_resumed_fit_trains_what_an_uninterrupted_one_would(
    url: str, tmp_path: Path, entry_point: str, name: str
) -> None:
    """From any checkpoint, with any limits; cases that need the DataModule are left out for a bare loader."""
    trial = TRIALS[name]
    if entry_point == "ShardLoader":
        trial = replace(trial, estimates=False)
        if trial.fails_at is not None:
            pytest.skip("the state of a loader without its DataModule counts the step that failed")
    assert check(entry_point, url, trial, tmp_path, 2)


def test_a_checkpoint_of_a_bare_loader_goes_on_in_the_datamodule(url: str, tmp_path: Path) -> None:
    """Switching to the DataModule inside an epoch trains the rest of it."""
    trial = Trial({"every_n_train_steps": 5})
    with pytest.warns(UserWarning, match="ShardDataModule resumes exactly"):
        whole = fit(bare_loader(url, BATCH), trial, tmp_path)
    found = fit(shard_module(url, BATCH), trial, tmp_path, tmp_path / "step=5.ckpt")
    assert found == whole[5:]


saves = st.one_of(
    st.just({}),
    st.just({"save_on_train_epoch_end": False}),
    st.integers(1, 14).map(lambda steps: {"every_n_train_steps": steps}),
)
limits = st.one_of(
    st.just({}), st.sampled_from([1, 5, 12, 20, 0.2, 0.5]).map(lambda limit: {"limit_train_batches": limit})
)
reloads = st.sampled_from([{}, {"reload_dataloaders_every_n_epochs": 1}, {"reload_dataloaders_every_n_epochs": 2}])
validations = st.sampled_from(
    [{}, {"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}, {"limit_val_batches": 0}]
)
accumulations = st.sampled_from([{}, {"accumulate_grad_batches": 2}, {"accumulate_grad_batches": 5}])
ends = st.sampled_from([{}, {"max_steps": 17}, {"max_steps": 33}])
options = st.tuples(limits, reloads, validations, accumulations, ends).map(
    lambda several: {name: value for one in several for name, value in one.items()}
)
trials = st.builds(
    Trial,
    saves,
    options,
    st.sampled_from([None, None, 0, 4]),
    st.sampled_from([None, None, 0, 3, 12, 13, 20]),
    st.booleans(),
)


@pytest.mark.heavy
@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(MODULES)), trials)
@example("ShardDataModule", Trial({}, {"max_steps": 17}))  # Lightning resumes with the epoch after the next
def test_any_fit_is_resumed_exactly(
    url: str, tmp_path_factory: pytest.TempPathFactory, module: str, trial: Trial
) -> None:
    """Random checkpoints, limits, reloads, validations and ends."""
    check(module, url, trial, tmp_path_factory.mktemp("trial"))


def samples(events: list[Event], epoch: int) -> list[int]:
    return sorted(number for event in events if event[:2] == ("train", epoch) for number in event[3])


def epochs_of(events: list[Event]) -> list[int]:
    """Returns the epochs that were validated, in order."""
    return [event[1] for event in events if event[0] == "val"]


def check_other_batch(module: str, url: str, trial: Trial, batches: list[int], folder: Path) -> None:
    """Check that each epoch trains each sample once and is validated once, with several batch sizes in turn."""
    before: list[Event] = []
    resumed = None
    for number, batch in enumerate([BATCH, *batches]):
        place = folder / str(number)
        place.mkdir(parents=True)
        events = fit(MODULES[module](url, batch), trial, place, resumed)
        whole = before + events
        for epoch in range(EPOCHS):
            assert samples(whole, epoch) == list(range(NUM_SAMPLES)), (trial, batches, number, epoch)
        assert epochs_of(whole) == list(range(EPOCHS))
        paths = sorted(place.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        taken = {path: torch.load(path, weights_only=False)["num_events"] for path in paths}
        usable = [path for path in paths if "val" not in [event[0] for event in events[taken[path] :][:1]]]
        if not usable:
            break
        resumed = usable[min(number, len(usable) - 1)]  # not one saved before a validation, which Lightning leaves out
        before = whole[: len(before) + taken[resumed]]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("batches", [[16, 4], [5, 5]], ids=str)
def test_another_global_batch_trains_the_rest_of_the_epoch_and_then_whole_ones(
    url: str, tmp_path: Path, module: str, batches: list[int]
) -> None:
    """Each sample once, and one validation; also if the resumed epoch is resumed again."""
    check_other_batch(module, url, Trial({"every_n_train_steps": 5}, estimates=batches == [5, 5]), batches, tmp_path)


@pytest.mark.heavy
@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(MODULES)),
    st.one_of(st.just({}), st.integers(2, 12).map(lambda steps: {"every_n_train_steps": steps})),
    reloads,
    accumulations,
    st.booleans(),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
)
def test_any_batch_sizes_train_each_sample_once_an_epoch(
    url: str, tmp_path_factory: pytest.TempPathFactory, module: str, saves: Any, reload: Any, accumulation: Any,
    estimates: bool, batches: list[int],
) -> None:  # fmt: skip
    """One resume after another."""
    trial = Trial(saves, {**reload, **accumulation}, estimates=estimates)
    check_other_batch(module, url, trial, batches, tmp_path_factory.mktemp("batches"))
