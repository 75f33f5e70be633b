"""Base of the DataModules: a resumed run trains the same batches as an uninterrupted one, under a plain Trainer.

The DataModule holds the state, because Lightning sizes an epoch before it loads a loader's own state, and loads that
only if it restarts inside an epoch.
"""

from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import WeakSet

import lightning
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from dray.loaders.lightning.epoch_loader import EpochLoader

_TRAIN = "train"  # key of the training loader's state

TrainLoader = TypeVar("TrainLoader", bound=EpochLoader)


class ExactDataModule(lightning.LightningDataModule):
    """Keeps the state of the training loader for checkpoints, and restores it in the loader of a resumed run."""

    def __init__(self) -> None:
        super().__init__()
        self._train_loader: EpochLoader | None = None  # the loader that a Trainer reads; without a Trainer, the last
        self._pending: dict[str, Any] | None = None  # a loaded state that no loader has used
        self._reload_every_n_epochs: int | None = None  # the Trainer's own value while it is overridden
        self._open: WeakSet[EpochLoader] = WeakSet()  # loaders to close

    def state_dict(self) -> dict[str, Any]:
        """Returns the state from which training goes on; Lightning saves it in every checkpoint.

        A batch that the Trainer is still processing is not counted, so it is repeated after an error in
        `training_step`. If the Trainer has ended an epoch, even early, the state is the start of the next one.
        """
        if self._pending is not None:
            return {_TRAIN: self._pending}
        if self._train_loader is None:
            return {}
        position = self._train_loader.position
        if not self._train_loader.is_kept:
            return {_TRAIN: position.state()}
        trainer: Any = self.trainer
        batches = trainer.fit_loop.epoch_loop.batch_progress
        unfinished = int(position.steps == batches.current.processed + 1)
        is_done = batches.is_last_batch and position.steps > 0 and not unfinished
        if is_done or trainer.fit_loop.epoch_progress.current.processed > position.epoch:
            return {_TRAIN: position.state_at(position.epoch + 1)}
        return {_TRAIN: position.state(unfinished=unfinished)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume training with the rest of the saved epoch, on any number of ranks. Stages other than `fit` ignore it.

        Raises:
            CallError: The state was saved over other data or in another order; names the difference. Raised when the
                training loader is opened.
        """
        saved = state_dict.get(_TRAIN)
        if self.trainer is None and self._train_loader is not None and saved is not None:
            self._train_loader.position.load(saved)
        elif self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            self._pending = saved

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Stop the worker processes and threads of all loaders; Lightning calls this at the end of a stage."""
        self._restore_reloading()
        for loader in list(self._open):
            loader.close()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        """Do the same after a failed stage."""
        self.teardown("")

    def _forget_training(self) -> None:
        """Forget the state of an earlier fit; the Trainer restores that of a checkpoint afterwards."""
        self._train_loader = None
        if self.trainer is not None:
            self._pending = None

    def _begin_training(self, loader: TrainLoader) -> TrainLoader:
        """Resume a new loader where training is; a Trainer then sets its epoch."""
        self._open.add(loader)
        whole, state = loader.position.length(), self.state_dict().get(_TRAIN)
        if state is not None:
            loader.position.load(state)
        if not self._is_fitting():
            self._follow(loader)
            return loader
        loader.keep_by(self._follow)
        if loader.sampler is None:  # without a length there is no sampler that reports epochs
            self._follow(loader)
        self._restore_reloading()
        if loader.position.length() != whole:
            self._reload_for_next_epoch()
        return loader

    def _follow(self, loader: EpochLoader) -> None:
        """Take the state from this loader, which training reads."""
        self._train_loader, self._pending = loader, None

    def _reload_for_next_epoch(self) -> None:
        """Make the Trainer ask for a new loader, as it reads the length of an epoch only then."""
        trainer: Any = self.trainer
        self._reload_every_n_epochs = trainer.reload_dataloaders_every_n_epochs
        trainer.reload_dataloaders_every_n_epochs = 1

    def _restore_reloading(self) -> None:
        if self._reload_every_n_epochs is not None:
            trainer: Any = self.trainer
            trainer.reload_dataloaders_every_n_epochs = self._reload_every_n_epochs
            self._reload_every_n_epochs = None

    def _is_fitting(self) -> bool:
        state = None if self.trainer is None else self.trainer.state
        return state is not None and state.fn == TrainerFn.FITTING and state.status == TrainerStatus.RUNNING

    def _is_overfitting(self) -> bool:
        """Whether the Trainer repeats the same few batches in each epoch."""
        trainer: Any = self.trainer
        return trainer is not None and trainer.overfit_batches > 0
