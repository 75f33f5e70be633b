"""How loaders follow a Lightning Trainer: the Trainer decides which epoch is next, the state where it is resumed.

Lightning 2.6 calls `len(loader)`, then `load_state_dict` (only if it restarts inside an epoch), then `iter`, and only
then `loader.sampler.set_epoch(number of finished epochs)`. Nothing is decided before `set_epoch`: a loaded state is
kept until then, and used if it belongs to the epoch that the Trainer asks for.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import SequentialSampler

from dray.loaders.order.position import EpochPosition


class EpochSampler:
    """The `sampler` of a loader, which tells it the Trainer's epoch.

    Args:
        position: Position of the loader.
        on_epoch: Function to call after each `set_epoch`.
    """

    def __init__(self, position: EpochPosition, on_epoch: Callable[[], None] | None = None) -> None:
        self._position = position
        self._on_epoch = on_epoch

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch with the next batch, or go on inside it if a state of that epoch was loaded.

        Iterating again without another call takes another pass of the same epoch, in an order of its own.
        """
        if not (self._position.is_loaded and self._position.epoch == epoch):
            self._position.go_to(epoch)
        self._position.repeats_epoch = True
        if self._on_epoch is not None:
            self._on_epoch()


class SequentialEpochSampler(EpochSampler, SequentialSampler):
    """Sampler of a loader that does not shuffle, so that `overfit_batches` does not replace it."""


class EpochLoader:
    """Base of the loaders: epochs and states, for users and for Lightning."""

    batch_sampler = None  # Lightning reads it if there is a sampler
    _keeper: Callable[["EpochLoader"], None] | None = None  # called at each epoch if a DataModule keeps the state
    _has_warned = False

    @property
    def position(self) -> EpochPosition:
        """Position of the loader in its epochs."""
        raise NotImplementedError

    @property
    def sampler(self) -> EpochSampler | None:
        """Sampler whose `set_epoch` a Trainer calls; None without a length, as Lightning then reads ahead of it."""
        position, keeper = self.position, self._keeper
        if position.length() is None:
            return None
        kind = EpochSampler if position.epochs.shuffle else SequentialEpochSampler
        return kind(position, None if keeper is None else lambda: keeper(self))

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, numbered from 0, with the next `iter()`."""
        self.position.go_to(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the trainer: JSON-able, small, equal on all ranks.

        Empty for a loader that a DataModule gave to a Trainer, as the DataModule keeps the state.
        """
        if self._keeper is not None:
            return {}
        if self.position.repeats_epoch and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"this checkpoint holds the state of a {type(self).__name__} that was given to a Trainer without its "
                "DataModule: the resume is exact only with the same global batch size, if configure_optimizers does "
                "not read trainer.estimated_stepping_batches, and if training did not stop inside a step; "
                "dray.loaders.ShardDataModule resumes exactly in these cases too",
                stacklevel=2,
            )
        return self.position.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at a state with the next `iter()`; if the state is at the end of an epoch, start the next epoch.

        A loader that a DataModule gave to a Trainer has the state of the DataModule. It takes this one only if there is
        none, because a loader without its DataModule saved the checkpoint.

        Raises:
            CallError: The state was saved over other data or in another order; names the difference.
        """
        if self._keeper is None or (state and not self.position.is_loaded):
            self.position.load(state)

    def keep_by(self, keeper: Callable[["EpochLoader"], None]) -> None:
        """Leave the state to a DataModule, whose `keeper` is called when a Trainer starts an epoch."""
        self._keeper = keeper

    @property
    def is_kept(self) -> bool:
        """Whether a DataModule keeps the state."""
        return self._keeper is not None

    def close(self) -> None:
        """Stop worker processes, threads and the running iterator. The next `iter()` starts new ones."""
        raise NotImplementedError
