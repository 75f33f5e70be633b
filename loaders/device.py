"""Copies batches to a GPU ahead of the trainer, from pinned memory on a separate stream.

Prefetching must not change checkpoints. The loader's state is therefore taken with each batch, and `state_dict()`
returns the state after the last batch that the trainer got, regardless of batches copied since.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch

from dray.loaders.lightning.epoch_loader import EpochLoader
from dray.loaders.workers.forks import check_process
from dray.shards.arguments import as_int
from dray.shards.errors import CallError

PIN_BYTES = 64 << 10  # smaller tensors are not pinned: their copies do not wait for the device anyway


class Batches(Protocol):
    """A loader with a length."""

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches of an epoch."""
        ...

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        ...


def to_device(batches: Batches, device: torch.device | str | int, *, ahead: int = 2) -> Batches:
    """Returns a loader that yields the same batches on a device; for the CPU, `batches` itself.

    A thread takes the next batches while the trainer works. Tensors in dicts, lists and tuples, at any depth, are
    copied without waiting for the device; other values are passed on unchanged. For CUDA, large tensors are copied from
    pinned memory on a separate stream, and the trainer's stream waits for the copies.

    The CUDA path follows PyTorch's documentation; dray's own tests have not run it on a GPU yet.

    Args:
        batches: `ShardLoader`, or any loader with a length. `set_epoch`, `state_dict`, `load_state_dict` and `stats`
            are those of the loader; the state counts the batches that the trainer got.
        device: Target device, such as "cuda" or `torch.device("cuda", local_rank)`.
        ahead: Number of batches copied to the device, or being copied, besides the trainer's current one.

    Raises:
        CallError: `ahead` is less than 1.
    """
    ahead = as_int("ahead", ahead, 1)
    place = torch.device(device)
    return batches if place.type == "cpu" else DeviceLoader(batches, place, ahead)


@dataclass(frozen=True, slots=True)
class _Copied:
    """A batch on its way to the device."""

    batch: Any
    state: dict[str, Any]  # state of the loader after this batch
    arrived: "torch.cuda.Event | None"


class DeviceLoader:
    """Yields a loader's batches on a device; see `to_device`."""

    def __init__(self, batches: Batches, device: torch.device, ahead: int) -> None:
        self._batches = batches
        self._ahead = ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._device = device if self._stream is None else self._stream.device  # includes the device index
        self._state: dict[str, Any] | None = None  # state after the trainer's last batch; None: the loader's own
        self._wait_s = 0.0

    def __reduce__(self) -> tuple[Callable[..., "DeviceLoader"], tuple[Any, ...]]:
        """Returns a copy without the batches that were copied ahead, as the trainer has not got them."""
        return _at_state, (copy(self._batches), self._device, self._ahead, self.state_dict())

    def __len__(self) -> int:
        """Returns the loader's number of steps in the epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        """Yields the loader's next epoch. An error of the loader is raised after the batches before it."""
        process, self._state = os.getpid(), self._loader_state()
        batches = iter(self._batches)
        copies = self._copied(batches)
        try:
            for copied in copies:
                self._wait_for(copied)
                self._state = copied.state
                yield copied.batch
                check_process(process)
        finally:
            if process == os.getpid():  # otherwise the thread and the loader belong to the parent
                copies.close()  # its thread first, as it may be using the loader
                if isinstance(batches, Generator):
                    batches.close()

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, numbered from 0, with the next `iter()`.

        Raises:
            CallError: The loader has no such method.
        """
        self._method("set_epoch")(epoch)
        self._state = None

    @property
    def batch_sampler(self) -> None:
        """None; Lightning reads it if there is a sampler."""

    @property
    def sampler(self) -> Any:
        """Sampler of the loader, whose `set_epoch` a Trainer calls; None if it has none."""
        return getattr(self._batches, "sampler", None)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the trainer; empty if the loader keeps no state."""
        return self._loader_state() if self._state is None else self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at a state with the next `iter()`.

        Raises:
            CallError: The loader keeps no state.
        """
        if state:
            self._method("load_state_dict")(state)
        self._state = None

    def stats(self) -> dict[str, float]:
        """Returns the loader's stats; `wait_s` is the time that the trainer waited, not the thread."""
        counted = self._method("stats")() if hasattr(self._batches, "stats") else {}
        return {**counted, "wait_s": self._wait_s}

    def _method(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self._batches, name, None)
        if found is None:
            raise CallError(f"{type(self._batches).__name__} has no {name}(), which to_device() would call")
        return found

    def _loader_state(self) -> dict[str, Any]:
        if isinstance(self._batches, EpochLoader):
            return self._batches.position.state()
        state: dict[str, Any] = self._method("state_dict")() if hasattr(self._batches, "state_dict") else {}
        return state

    def _copied(self, batches: Iterator[Any]) -> Generator[_Copied, None, None]:
        """Yields all batches of an epoch; a thread takes them and starts the copies."""
        with ThreadPoolExecutor(1, thread_name_prefix="dray-device") as thread:
            process, coming = os.getpid(), deque[Future[_Copied | None]]()
            try:
                while True:
                    while len(coming) <= self._ahead:
                        coming.append(thread.submit(self._copy_next, batches))
                    asked = perf_counter()
                    copied = coming.popleft().result()
                    self._wait_s += perf_counter() - asked
                    if copied is None:
                        return
                    yield copied
            finally:
                for future in coming if process == os.getpid() else ():  # the parent's locks may stay held
                    future.cancel()

    def _copy_next(self, batches: Iterator[Any]) -> _Copied | None:
        """Starts the copy of the loader's next batch; returns it with its state, or None after the last."""
        for batch in batches:
            state = self._loader_state()
            if self._stream is None:
                return _Copied(map_tensors(self._copy, batch), state, None)
            with torch.cuda.stream(self._stream):
                copies, arrived = map_tensors(self._copy, batch), torch.cuda.Event()  # type: ignore[no-untyped-call]
                arrived.record(self._stream)
                return _Copied(copies, state, arrived)
        return None

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._stream is not None and tensor.device.type == "cpu" and tensor.nbytes > PIN_BYTES:
            tensor = tensor.pin_memory()  # PyTorch keeps the pinned memory until the copy is done
        return tensor.to(self._device, non_blocking=True)

    def _wait_for(self, copied: _Copied) -> None:
        """Make the trainer's stream wait for the copy, and keep its memory until that stream has used it."""
        if copied.arrived is None:
            return
        trainers = torch.cuda.current_stream(self._device)
        trainers.wait_event(copied.arrived)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(trainers)
            return tensor

        map_tensors(keep, copied.batch)


def _at_state(batches: Batches, device: torch.device, ahead: int, state: Mapping[str, Any]) -> DeviceLoader:
    loader = DeviceLoader(batches, device, ahead)
    loader.load_state_dict(state)
    return loader


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Returns the value with each tensor replaced in dicts, lists, tuples and named tuples; the rest is kept."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*_map_all(function, value))
    return type(value)(_map_all(function, value)) if type(value) in (list, tuple) else value


def _map_all(function: Callable[[torch.Tensor], torch.Tensor], values: Iterable[Any]) -> list[Any]:
    return [map_tensors(function, one) for one in values]
