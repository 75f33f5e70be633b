"""A store that fails where a test wants it to: at its n-th call, in one of several ways.

The calls of a run are counted by running it once undisturbed; then each call and each fault is tried in turn.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from obstore.store import ObjectStore

from dray.shards import Store, StoreError
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.objects import ObjectInfo
from dray.shards.storage.store import Answer

WRITES = {"put_new", "delete"}


class Crash(BaseException):
    """The process is dead. Nothing catches this, and from then on every call to the store raises it."""


class Fault(StrEnum):
    """What happens at a call."""

    CRASH_BEFORE = "a crash before"  # the call is not made
    CRASH_WITHIN = "a crash within"  # in a `put_new` to disk: half the object is stored under its leftover's name
    CRASH_AFTER = "a crash after"  # the call is made
    POWER_CUT = "a power cut at"  # not made, and on a disk all names that were not synced are lost
    LUCKY_CUT = "a lucky power cut at"  # like a power cut, but the last object that was put reached the disk
    NO_REACH = "an error before"  # not made; a StoreError
    LOST_REPLY = "a lost reply at"  # made; a StoreError
    UNANSWERED = "a request without an answer at"  # made; the store sees an error, and tries again
    SENT_TWICE = "a second sending of"  # made, and again, as by a client that got no reply: a `put_new` finds its own


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store."""

    method: str
    name: str  # name of the object or folder; for a sync, the first object

    def __str__(self) -> str:
        return f"{self.method}({self.name})"


class FaultyStore(Store):
    """A store in this process that counts its calls, each object of a `delete` as one, and fails at one of them.

    `get` counts as `get_object`. A copy that was pickled is a plain store.

    Args:
        url: See `Store`.
        storage_options: See `Store`.
        at: The call, from 1; 0: none.
        fault: What happens there; a function is called, and then the call made: what others do meanwhile.

    Attributes:
        calls: All so far.
        is_dead: Whether it crashed.
    """

    def __init__(
        self,
        url: str,
        storage_options: StorageOptions | None = None,
        *,
        at: int = 0,
        fault: Fault | Callable[[], object] = Fault.CRASH_BEFORE,
    ) -> None:
        super().__init__(url, storage_options)
        self.calls: list[Call] = []
        self.is_dead = False
        self._at = at
        self._fault = fault
        self._lock = threading.Lock()
        self._unanswered = threading.local()
        self._entries_at_risk: list[str] = []  # objects put whose folder was not synced since

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        with self._call("put_new", name) as fault:
            if fault is Fault.CRASH_WITHIN and self.local_root is not None:
                torn = Path(self.local_root, f"{name}#1")
                torn.parent.mkdir(parents=True, exist_ok=True)
                torn.write_bytes(data[: len(data) // 2])
                self._die()
            super().put_new(name, data)
            self._entries_at_risk.append(name)
            if fault is Fault.SENT_TWICE:
                super().put_new(name, data)

    def call(self, verb: str, name: str, call: Callable[[ObjectStore, str], None], num_bytes: int) -> None:
        with self._call("put_new", name):
            super().call(verb, name, call, num_bytes)

    def takes_again(self, name: str, data: bytes) -> bool:
        with suppress(StoreError), self._call("put_new", name):
            return super().takes_again(name, data)
        return False

    def get(self, name: str) -> bytes:
        if self.local_root is None:  # made of a `get_object`
            return super().get(name)
        with self._call("get_object", name):
            return super().get(name)

    def get_object(self, name: str, expected_bytes: int = 0) -> tuple[bytes, ObjectInfo]:
        with self._call("get_object", name):
            return super().get_object(name, expected_bytes)

    def get_range(self, name: str, start: int, length: int) -> tuple[memoryview, ObjectInfo]:
        with self._call("get_range", name):
            return super().get_range(name, start, length)

    def get_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int], **options: Any) -> list[memoryview]:
        with self._call("get_ranges", name):
            return super().get_ranges(name, starts, lengths, **options)

    @contextmanager
    def open_stream(self, name: str, expected_bytes: int | None = None) -> Iterator[BinaryIO]:
        with self._call("open_stream", name), super().open_stream(name, expected_bytes) as stream:
            yield stream

    def head(self, name: str) -> ObjectInfo | None:
        with self._call("head", name):
            return super().head(name)

    def list_folder(self, folder: str = "") -> list[ObjectInfo]:
        with self._call("list_folder", folder):
            return super().list_folder(folder)

    def list_tree(self, folder: str = "") -> list[ObjectInfo]:
        with self._call("list_tree", folder):
            return super().list_tree(folder)

    def list_folders(self, folder: str = "") -> list[str]:
        with self._call("list_folders", folder):
            return super().list_folders(folder)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with self._call("delete", name):
                super().delete([name])

    def leftovers(self, folder: str = "") -> list[ObjectInfo]:
        with self._call("leftovers", folder):
            return super().leftovers(folder)

    def sync(self, names: Sequence[str]) -> None:
        with self._call("sync", names[0] if names else ""):
            super().sync(names)
            synced = {os.path.dirname(name) for name in names}
            self._entries_at_risk = [name for name in self._entries_at_risk if os.path.dirname(name) not in synced]

    def _ask_once(self, verb: str, name: str, request: Callable[[], Answer]) -> Answer:
        answer = super()._ask_once(verb, name, request)
        if getattr(self._unanswered, "is_next", False):
            self._unanswered.is_next = False
            raise StoreError(f"injected: cannot {verb} {self.url_of(name)}: no answer")
        return answer

    @contextmanager
    def _call(self, method: str, name: str) -> Iterator[Fault | None]:
        call = Call(method, name)
        with self._lock:
            self._check_alive()
            self.calls.append(call)
            fault = self._fault if len(self.calls) == self._at else None
        if fault is Fault.CRASH_BEFORE:
            self._die()
        if fault in (Fault.POWER_CUT, Fault.LUCKY_CUT):
            self._lose(num_lucky=1 if fault is Fault.LUCKY_CUT else 0)
            self._die()
        if fault is Fault.NO_REACH:
            raise StoreError(f"injected: {self.url_of(name)} was not reached for {call}")
        if callable(fault):
            fault()
            fault = None
        self._unanswered.is_next = fault is Fault.UNANSWERED
        try:
            yield fault
        finally:  # whatever came of the call
            if fault is Fault.CRASH_AFTER:
                self._die()
            if fault is Fault.LOST_REPLY:
                raise StoreError(f"injected: {self.url_of(name)} gave no reply to {call}")
            self._check_alive()  # another thread crashed: this one gets no answer any more

    def _lose(self, num_lucky: int) -> None:
        """Delete what may not have reached the disk."""
        lucky = self._entries_at_risk[len(self._entries_at_risk) - num_lucky :]
        super().delete([*set(self._entries_at_risk).difference(lucky)])

    def _die(self) -> None:
        self.is_dead = True
        raise Crash

    def _check_alive(self) -> None:
        if self.is_dead:
            raise Crash
