"""Every error that dray raises on purpose, grouped by what the caller can do about it.

    DrayError
    |-- StoreError (OSError)                   try again: the store failed; the kinds below are final answers
    |   |-- NotFoundError (FileNotFoundError)
    |   |-- ExistsError (FileExistsError)      a create-only write found an object there
    |   `-- DeniedError (PermissionError)      fix the key or its rights
    |-- CallError (ValueError)                 fix the call: an argument, a name, a size
    |   `-- PositionError (IndexError)         a sample's number beyond the last one
    |-- ClusterError (RuntimeError)            fix a node, or try again: a node is unfit, or workers died too often
    |   |-- UnreachableError                   no answer: try again
    |   `-- UnknownJobError                    the cluster knows no such job: submit it again
    |-- ConflictError (RuntimeError)           another writer changed the dataset: run again
    |-- InputError (RuntimeError)              fix an input: it is missing, unreadable, changed or was not packable
    |   `-- MissingInputError (FileNotFoundError)
    |-- DamagedError (RuntimeError)            stored data differs from its index: rebuild it
    |   `-- ChangedError                       a tar of another program is not the one that was indexed: index it again
    `-- RefusedError (pickle.UnpicklingError)  a part holds something that is not on the safe list: allow it

All of them pickle with their fields: they cross process borders and Ray.
"""

import pickle
from functools import partial
from typing import Any, Self


class DrayError(Exception):
    """Base class of all errors that dray raises on purpose.

    Args:
        problem: What is wrong and what to do about it, without the place.
        url: URL of the object concerned: a shard, an index, a record; None if unknown, as are the others.
        key: Key of the sample.
        suffix: Suffix of the part.
        offset: Position in the object, in bytes.

    The message is the place and the problem. Every argument is also an attribute.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        url: str | None = None,
        key: str | None = None,
        suffix: str | None = None,
        offset: int | None = None,
    ) -> None:
        self.problem, self.url, self.key, self.suffix, self.offset = problem, url, key, suffix, offset
        super().__init__(str(self))

    @property
    def place(self) -> dict[str, Any]:
        """The fields that say where it happened."""
        return {"url": self.url, "key": self.key, "suffix": self.suffix, "offset": self.offset}

    def at(self, **place: Any) -> Self:
        """Returns the same error with the fields of its place that it lacks taken from `place`."""
        known = {name: value for name, value in self.place.items() if value is not None}
        return type(self)(self.problem, **(place | known))

    def __str__(self) -> str:
        place = (self.url or "") + ("" if self.offset is None else f" at offset {self.offset}")
        names = [f"{name} {value!r}" for name, value in (("key", self.key), ("suffix", self.suffix)) if value]
        return ": ".join(filter(None, [", ".join(filter(None, [place.strip(), *names])), self.problem]))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.problem, **self.place), (), self.__dict__


class StoreError(DrayError, OSError):
    """The store failed or did not answer; the message names the URL."""

    is_transient = True  # whether another try may succeed: requests and tasks are then retried


class NotFoundError(StoreError, FileNotFoundError):
    """No object has that name."""

    is_transient = False


class ExistsError(StoreError, FileExistsError):
    """A create-only write found an object there."""

    is_transient = False


class DeniedError(StoreError, PermissionError):
    """The store knows the caller and says no, or does not know the caller."""

    is_transient = False


class CallError(DrayError, ValueError):
    """An argument that no input could make right."""


class PositionError(CallError, IndexError):
    """The number of a sample beyond the last one, or before the first one."""


class ClusterError(DrayError, RuntimeError):
    """A node of the Ray cluster is not fit for a task, or the cluster lost a task more often than it is retried."""


class UnreachableError(ClusterError):
    """The cluster does not answer, or with an error of its own: its head restarts, or the network is down."""


class UnknownJobError(ClusterError):
    """The cluster knows no job of that id, or lost it with its head."""


class ConflictError(DrayError, RuntimeError):
    """Another builder changed the dataset after this one had planned."""


class InputError(DrayError, RuntimeError):
    """An input sample that cannot be packed; the message names it."""


class MissingInputError(InputError, FileNotFoundError):
    """Input files that are not there or cannot be read; the message names up to 20."""


class DamagedError(DrayError, RuntimeError):
    """Stored bytes that differ from what was written; names shard, key and offset."""


class ChangedError(DamagedError):
    """A tar that dray did not write is not the one that was indexed; says what was expected and found."""


class RefusedError(DrayError, pickle.UnpicklingError):
    """A pickled part that names something outside the safe list; nothing of it ran."""
