"""What the DataModules have in common: under a plain Trainer they train what an uninterrupted run would.

The state is in the DataModule, because Lightning sizes an epoch before it loads a loader's own state, and loads that
only where it restarts inside an epoch.
"""

from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import WeakSet

import lightning
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from dray.loaders.lightning.epoch_loader import EpochLoader

_TRAIN = "train"  # in a state


TrainLoader = TypeVar("TrainLoader", bound=EpochLoader)


class ExactDataModule(lightning.LightningDataModule):
    """Keeps the state of the training loader, and hands it to the loader of a resumed run."""

    def __init__(self) -> None:
        super().__init__()
        self._train_loader: EpochLoader | None = None  # the one that a Trainer drives, or without one the last
        self._pending: dict[str, Any] | None = None  # a loaded state that no loader has begun with
        self._reload_every_n_epochs: int | None = None  # the Trainer's own value, while it is replaced
        self._open: WeakSet[EpochLoader] = WeakSet()  # loaders to close

    def state_dict(self) -> dict[str, Any]:
        """Returns where training goes on: Lightning saves it with every checkpoint.

        A batch that the Trainer still works on does not count: after an error in `training_step` it comes again. Where
        the Trainer is done with an epoch, whatever is left of it, the state is the start of the next one.
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
        """Let training go on from there, also on another number of ranks: the rest of the epoch comes first.

        Stages other than `fit` have no use for it.

        Raises:
            CallError: It was saved over other data or with another seed; names the difference. Raised when the
                training loader is opened.
        """
        saved = state_dict.get(_TRAIN)
        if self.trainer is None and self._train_loader is not None and saved is not None:
            self._train_loader.position.load(saved)
        elif self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            self._pending = saved

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """End the loaders' worker processes and threads; Lightning calls this at the end of a stage."""
        self._restore_reloading()
        for loader in list(self._open):
            loader.close()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        """The same where a stage fails."""
        self.teardown("")

    def _forget_training(self) -> None:
        """Begin another fit: what the Trainer restores from its checkpoint comes after this."""
        self._train_loader = None
        if self.trainer is not None:
            self._pending = None

    def _begin_training(self, loader: TrainLoader) -> TrainLoader:
        """Let a fresh loader go on where training is; a Trainer then says which epoch comes."""
        self._open.add(loader)
        whole, state = loader.position.length(), self.state_dict().get(_TRAIN)
        if state is not None:
            loader.position.load(state)
        if not self._is_fitting():
            self._follow(loader)
            return loader
        loader.keep_by(self._follow)
        if loader.sampler is None:  # a loader without a length tells nobody when its epochs begin
            self._follow(loader)
        self._restore_reloading()
        if loader.position.length() != whole:
            self._reload_for_next_epoch()
        return loader

    def _follow(self, loader: EpochLoader) -> None:
        """Note the loader that training gets its batches from."""
        self._train_loader, self._pending = loader, None

    def _reload_for_next_epoch(self) -> None:
        """Let the Trainer ask for another loader: it counts the batches of an epoch only when it gets one."""
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
        """Whether the Trainer wants the same few batches in each epoch."""
        trainer: Any = self.trainer
        return trainer is not None and trainer.overfit_batches > 0
