"""Batches on a GPU before the trainer asks for them: copied from pinned memory, on a stream of their own.

Prefetching must not change what a checkpoint says. So the loader's state is taken beside each batch, and `state_dict()`
is that of the batch that the trainer got last, however many were copied since.
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

PIN_BYTES = 64 << 10  # smaller copies do not wait for the device, pinned or not


class Batches(Protocol):
    """What is wrapped: a loader with a length."""

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch."""
        ...

    def __len__(self) -> int:
        """Their number."""
        ...


def to_device(batches: Batches, device: torch.device | str | int, *, ahead: int = 2) -> Batches:
    """The same loader with its batches on a device; a loader for the CPU is handed back as it is.

    A thread takes the next batches while the trainer works. Tensors in dicts, lists and tuples, nested as they like,
    are copied without waiting for the device; anything else in a batch is handed on as it is. For CUDA large tensors go
    through pinned memory and over a stream of their own, which the trainer's stream waits for.

    The CUDA path was written by PyTorch's documentation and has not been run on a GPU by dray's own tests yet.

    Args:
        batches: A `ShardLoader`, or any loader with a length. `set_epoch`, `state_dict`, `load_state_dict` and `stats`
            are those of the loader; the state counts the batches that were handed on.
        device: Where batches go, such as "cuda" or `torch.device("cuda", local_rank)`.
        ahead: So many batches are on the device, or on their way, besides the trainer's own.

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
    state: dict[str, Any]  # of the loader when it gave the batch
    arrived: "torch.cuda.Event | None"


class DeviceLoader:
    """See `to_device`."""

    def __init__(self, batches: Batches, device: torch.device, ahead: int) -> None:
        self._batches = batches
        self._ahead = ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._device = device if self._stream is None else self._stream.device  # with its number, for every thread
        self._state: dict[str, Any] | None = None  # of the batch that was handed on last; None: the loader's own
        self._wait_s = 0.0

    def __reduce__(self) -> tuple[Callable[..., "DeviceLoader"], tuple[Any, ...]]:
        """For a copy: without what was copied ahead, which the trainer has not got yet."""
        return _at_state, (copy(self._batches), self._device, self._ahead, self.state_dict())

    def __len__(self) -> int:
        """Steps of the epoch, as the loader tells."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        """The loader's next epoch. An error of the loader comes after the batches before it."""
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
            if process == os.getpid():  # else the thread, and what it stands in, are the parent's
                copies.close()  # its thread first, which may be inside of the loader
                if isinstance(batches, Generator):
                    batches.close()

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` start an epoch, from 0.

        Raises:
            CallError: The loader has no such method.
        """
        self._method("set_epoch")(epoch)
        self._state = None

    @property
    def batch_sampler(self) -> None:
        """None: Lightning looks for it beside a sampler."""

    @property
    def sampler(self) -> Any:
        """The loader's sampler, by which a Trainer says which epoch comes; None if it has none."""
        return getattr(self._batches, "sampler", None)

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is; empty where the loader keeps no state."""
        return self._loader_state() if self._state is None else self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next `iter()` go on from there.

        Raises:
            CallError: The loader keeps no state.
        """
        if state:
            self._method("load_state_dict")(state)
        self._state = None

    def stats(self) -> dict[str, float]:
        """What the loader counted; `wait_s` is the trainer's own waiting, not that of the thread."""
        counted = self._method("stats")() if hasattr(self._batches, "stats") else {}
        return {**counted, "wait_s": self._wait_s}

    def _method(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self._batches, name, None)
        if found is None:
            raise CallError(f"{type(self._batches).__name__} has no {name}(): to_device() can only pass on what it has")
        return found

    def _loader_state(self) -> dict[str, Any]:
        if isinstance(self._batches, EpochLoader):
            return self._batches.position.state()
        state: dict[str, Any] = self._method("state_dict")() if hasattr(self._batches, "state_dict") else {}
        return state

    def _copied(self, batches: Iterator[Any]) -> Generator[_Copied, None, None]:
        """All of an epoch; a thread takes them and starts the copies."""
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
                for future in coming if process == os.getpid() else ():  # locks of the parent's may be held for ever
                    future.cancel()

    def _copy_next(self, batches: Iterator[Any]) -> _Copied | None:
        """The loader's next batch, whose copy has begun, and its state; None after the last."""
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
            tensor = tensor.pin_memory()  # PyTorch keeps it until the copy is done
        return tensor.to(self._device, non_blocking=True)

    def _wait_for(self, copied: _Copied) -> None:
        """Let the trainer's stream go on when the copy has arrived, and its memory live until that stream is done."""
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
    """The same with each tensor replaced, in dicts, lists, tuples and named tuples; the rest is kept."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*_map_all(function, value))
    return type(value)(_map_all(function, value)) if type(value) in (list, tuple) else value


def _map_all(function: Callable[[torch.Tensor], torch.Tensor], values: Iterable[Any]) -> list[Any]:
    return [map_tensors(function, one) for one in values]
