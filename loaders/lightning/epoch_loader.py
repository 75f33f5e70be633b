"""What a loader shows a Lightning Trainer: which epoch comes is the Trainer's decision, where it resumes the state's.

Lightning 2.6 calls `len(loader)` first, then `load_state_dict` (only where it restarts inside an epoch), then `iter`,
and only then `loader.sampler.set_epoch(number of epochs that are done)`. So nothing is decided before `set_epoch`: a
loaded state waits, and is used if it belongs to the epoch that the Trainer asks for.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import SequentialSampler

from dray.loaders.order.position import EpochPosition


class EpochSampler:
    """The `sampler` of a loader, by which a Trainer says which epoch comes.

    Args:
        position: The loader's.
        on_epoch: Called after each `set_epoch`.
    """

    def __init__(self, position: EpochPosition, on_epoch: Callable[[], None] | None = None) -> None:
        self._position = position
        self._on_epoch = on_epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next batch be the first of an epoch, or the next one inside it if a state of it was loaded.

        Iterating again without another call takes another pass of the same epoch, in an order of its own.
        """
        if not (self._position.is_loaded and self._position.epoch == epoch):
            self._position.go_to(epoch)
        self._position.repeats_epoch = True
        if self._on_epoch is not None:
            self._on_epoch()


class SequentialEpochSampler(EpochSampler, SequentialSampler):
    """The same for a loader that does not shuffle: `overfit_batches` has nothing to turn off."""


class EpochLoader:
    """Base of the loaders: their place among the epochs, as their users and Lightning see it."""

    batch_sampler = None  # Lightning looks for it beside a sampler
    _keeper: Callable[["EpochLoader"], None] | None = None  # of a DataModule that keeps the state; told of each epoch
    _has_warned = False

    @property
    def position(self) -> EpochPosition:
        """Where the loader is in its epochs."""
        raise NotImplementedError

    @property
    def sampler(self) -> EpochSampler | None:
        """Follows a Trainer: `sampler.set_epoch(epoch)`. None without a length, as Lightning then reads ahead of it."""
        position, keeper = self.position, self._keeper
        if position.length() is None:
            return None
        kind = EpochSampler if position.epochs.shuffle else SequentialEpochSampler
        return kind(position, None if keeper is None else lambda: keeper(self))

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` start an epoch, from 0."""
        self.position.go_to(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the trainer is: JSON-able, small, the same on every rank.

        Empty for a loader that a DataModule has given a Trainer, as the DataModule keeps the state.
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
        """Let the next `iter()` go on from there; at the end of an epoch, with the next one.

        A loader that a DataModule has given a Trainer has the DataModule's state already. It takes this one only where
        there is none: the checkpoint was saved by a loader without its DataModule.

        Raises:
            CallError: It was saved over other data or with another seed; names the difference.
        """
        if self._keeper is None or (state and not self.position.is_loaded):
            self.position.load(state)

    def keep_by(self, keeper: Callable[["EpochLoader"], None]) -> None:
        """Leave the state to a DataModule, which is told when a Trainer starts an epoch."""
        self._keeper = keeper

    @property
    def is_kept(self) -> bool:
        """Whether a DataModule keeps the state."""
        return self._keeper is not None

    def close(self) -> None:
        """End worker processes, threads and the iterator that runs. The next `iter()` starts others."""
        raise NotImplementedError
