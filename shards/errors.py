"""Every error that dray raises on purpose, grouped by what the caller can do about it.

    DrayError
    |-- StoreError (OSError)                   try again: the store did not do what was asked
    |   |-- NotFoundError (FileNotFoundError)
    |   |-- ExistsError (FileExistsError)      a create-only write found an object there
    |   `-- DeniedError (PermissionError)      fix the key or its rights
    |-- CallError (ValueError)                 fix the call: an argument, a name, a size
    |   `-- PositionError (IndexError)         a sample's number beyond the last one
    |-- ClusterError (RuntimeError)            fix a node, or try again: a node is unfit, or workers died too often
    |-- ConflictError (RuntimeError)           somebody else changed the dataset meanwhile: run again
    |-- InputError (RuntimeError)              fix an input: it is missing, unreadable, changed or was not packable
    |   `-- MissingInputError (FileNotFoundError)
    |-- DamagedError (RuntimeError)            stored data is not what its index says: rebuild it
    `-- RefusedError (pickle.UnpicklingError)  a part holds something that is not on the safe list: allow it

Each takes one argument, its message, so all of them pickle: they cross process borders and Ray.
"""

import pickle


class DrayError(Exception):
    """The root: anything that dray raises on purpose."""


class StoreError(DrayError, OSError):
    """The store failed or did not answer; the message names the URL."""


class NotFoundError(StoreError, FileNotFoundError):
    """Nothing lies under that name."""


class ExistsError(StoreError, FileExistsError):
    """A create-only write found an object there."""


class DeniedError(StoreError, PermissionError):
    """The store knows the caller and says no, or does not know the caller."""


class CallError(DrayError, ValueError):
    """An argument that no input could make right."""


class PositionError(CallError, IndexError):
    """The number of a sample beyond the last one, or before the first one."""


class ClusterError(DrayError, RuntimeError):
    """A node of the Ray cluster is not fit for a task, or the cluster lost a task more often than it is retried."""


class ConflictError(DrayError, RuntimeError):
    """Another builder changed the dataset after this one had planned."""


class InputError(DrayError, RuntimeError):
    """An input sample that cannot be packed; the message names it."""


class MissingInputError(InputError, FileNotFoundError):
    """Input files that are not there or cannot be read; the message names up to 20."""


class DamagedError(DrayError, RuntimeError):
    """Stored bytes that are not what was written; the message names shard, key or offset."""


class RefusedError(DrayError, pickle.UnpicklingError):
    """A pickled part that names something outside the safe list; nothing of it ran."""
