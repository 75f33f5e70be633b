"""The private names of torch and Python that the loaders use, in one place.

tests/repo/test_private_names.py says which of them has moved when an upgrade breaks this import.
"""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import thread
from types import FrameType
from typing import Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory as torch_pin_memory
from torch.utils.data._utils.signal_handling import _remove_worker_pids  # type: ignore[attr-defined]
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

LoaderIterator = _BaseDataLoaderIter
WorkersIterator = _MultiProcessingDataLoaderIter
"""Iterator of a DataLoader, and of one with worker processes."""

pin_memory: Callable[..., Any] = torch_pin_memory
remove_worker_pids: Callable[[int], None] = _remove_worker_pids
current_frames: Callable[[], Mapping[int, FrameType]] = sys._current_frames


def new_shared_storage(num_bytes: int) -> torch.UntypedStorage:
    """Return a storage in memory that other processes can map."""
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(num_bytes)  # type: ignore[no-untyped-call]
    return storage


def forget_executor_threads() -> None:
    """Make this process end without joining the threads of executors, which a forked child does not have."""
    thread._threads_queues.clear()  # type: ignore[attr-defined]
