"""`ShardDataModule`: a `ShardLoader` per split for Lightning, resumed exactly by a plain Trainer."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

from dray.loaders.lightning.exact_datamodule import ExactDataModule
from dray.loaders.shard_loader import ShardLoader
from dray.shards.errors import CallError
from dray.shards.reading.tar_files import DataUrl
from dray.shards.snapshot import Snapshot
from dray.shards.storage.urls import split_version

SplitOptions = DataUrl | Mapping[str, Any]

_OPTIONS = tuple(name for name in inspect.signature(ShardLoader).parameters if name != "url")
_TRAIN = "train"


class ShardDataModule(ExactDataModule):
    """Gives a Lightning Trainer a `ShardLoader` for each split.

    A resumed run trains the same batches as an uninterrupted one, without any setting of the Trainer: from a checkpoint
    at any step, with `limit_train_batches` or `reload_dataloaders_every_n_epochs`, if `configure_optimizers` reads
    `trainer.estimated_stepping_batches`, and with another number of ranks or workers or another batch size.

    Each split is the URL of a dataset, or tars (see `ShardLoader`), or a mapping of `ShardLoader` options that includes
    `url`. Options given here are defaults for all splits, except that `shuffle` and `remainder` are those of the
    training split: other splits are read in order and completely (`shuffle=False`, `remainder="keep"`) unless their
    mapping says otherwise. With "keep", the last batch of a rank is empty if fewer samples than ranks are left.

        ShardDataModule("data/train", {"url": "data/val", "batch_size": 256}, batch_size=64, shuffle=True)

    A stage opens the latest version of each dataset, and reads it until the stage is set up again.

    Args:
        train: Training split.
        val: Validation split. If None, `fit` does not validate.
        test: Test split.
        predict: Split that `Trainer.predict` reads.
        batch_size: Number of samples per step of one rank. The attribute of this name may be changed until a loader is
            opened, as Lightning's batch size finder does.
        shuffle: Whether the training split is shuffled, differently in each epoch. Off with the Trainer's
            `overfit_batches`, so that each epoch has the same batches.
        seed: Seed of the permutation; must be equal on all ranks.
        num_workers: Number of worker processes of each loader. With 0, a thread of the training process reads.
        **options: Other options of `ShardLoader`.

    Raises:
        CallError: An option is unknown, or a split has no URL or batch size.
    """

    def __init__(
        self,
        train: SplitOptions | None = None,
        val: SplitOptions | None = None,
        test: SplitOptions | None = None,
        predict: SplitOptions | None = None,
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        _check_options("ShardDataModule", options)
        self._options = {"shuffle": shuffle, "seed": seed, "num_workers": num_workers, **options}
        splits = {_TRAIN: train, "val": val, "test": test, "predict": predict}
        self._splits = {split: _split_options(split, given) for split, given in splits.items() if given is not None}
        if not self._splits:
            raise CallError('ShardDataModule: no split is given; give a URL for one, such as train="s3://bucket/train"')
        for split, own in self._splits.items():
            if "batch_size" not in own and batch_size is None:
                raise CallError(
                    f"ShardDataModule: {split} has no batch_size; give it here or in the mapping of {split}"
                )
        self._opened: dict[str, Snapshot] = {}  # split -> what its loaders read

    def setup(self, stage: str) -> None:
        """Begin a stage: its loaders open the latest version of their datasets, or the version that is named."""
        self._opened = {}
        if stage == "fit":
            self._forget_training()

    def train_dataloader(self) -> ShardLoader:
        """Returns the loader of the training split, which goes on where the one before it was.

        Raises:
            CallError: The split is not given, an option is wrong, or the loaded state belongs to other data.
            NotFoundError: The dataset or the version does not exist.
        """
        off = {"shuffle": False} if self._is_overfitting() else {}
        return self._begin_training(self._open_split(_TRAIN, **off))

    @property  # a property, as Lightning checks whether the method is its own
    def val_dataloader(self) -> Callable[[], Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Method that returns the loader of the validation split.

        Without a validation split it is Lightning's own method, so that a Trainer does not validate.
        """
        return partial(self._open_split, "val") if "val" in self._splits else super().val_dataloader

    def test_dataloader(self) -> ShardLoader:
        """Returns the loader of the test split."""
        return self._open_split("test")

    def predict_dataloader(self) -> ShardLoader:
        """Returns the loader of the split for `Trainer.predict`."""
        return self._open_split("predict")

    def _open_split(self, split: str, **more: Any) -> ShardLoader:
        if split not in self._splits:
            raise CallError(f"ShardDataModule has no {split} split: give it one, such as {split}=URL")
        defaults = self._options if split == _TRAIN else {**self._options, "shuffle": False, "remainder": "keep"}
        options = {"batch_size": self.batch_size, **defaults, **self._splits[split], **more}
        if split in self._opened and (version := self._opened[split].version):  # tars have none
            options["url"], options["version"] = split_version(options["url"])[0], version
        loader = ShardLoader(**options)
        self._opened[split] = loader.snapshot
        self._open.add(loader)
        return loader


def _split_options(split: str, given: SplitOptions) -> dict[str, Any]:
    """Returns the options of a split, including `url`."""
    if not isinstance(given, Mapping):
        return {"url": given}
    if "url" not in given:
        raise CallError(f"ShardDataModule: the mapping of {split} has no 'url'; it has {sorted(given)}")
    _check_options(f"the mapping of {split}", [name for name in given if name != "url"])
    return dict(given)


def _check_options(where: str, names: Any) -> None:
    for name in names:
        if name not in _OPTIONS:
            similar = get_close_matches(name, _OPTIONS, 1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"options are {', '.join(_OPTIONS)}"
            raise CallError(f"{where}: unknown option {name!r} of ShardLoader; {hint}")
