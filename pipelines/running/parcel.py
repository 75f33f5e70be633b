"""What the tasks of a build share, pickled for other processes.

Storage options may hold secrets. Ray keeps large objects in its object store, which it may spill to disk, and small
arguments of a task in memory: so the stores are sent apart from the rest, as an argument of each task.
"""

import io
import pickle
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dray.pipelines.running.node import node_name
from dray.shards.errors import ClusterError
from dray.shards.layout import DataPlace
from dray.shards.storage.store import Store


@dataclass(frozen=True, slots=True)
class Witness:
    """An object of the build that every worker must see before it writes, as proof that all write to one place."""

    store: Store
    name: str

    def check(self) -> None:
        """Check that the object is visible here.

        Raises:
            ClusterError: It is not; names the node.
        """
        if self.store.head(self.name) is None:
            raise ClusterError(
                f"node {node_name()} does not see {self.store.url_of(self.name)}, which this build has just written: "
                f"{self.store.url} must be on a disk that all nodes share, under the same path, or on object storage"
            )


@dataclass(frozen=True, slots=True)
class Parcel:
    """A function, what its tasks share, and a witness or None, pickled.

    Attributes:
        body: Everything but the stores.
        stores: The stores and data places with their options: at most a few kB.
    """

    body: bytes
    stores: bytes

    @classmethod
    def of(cls, *contents: Any) -> "Parcel":
        """Pickle any values."""
        file = io.BytesIO()
        packer = _Packer(file)
        packer.dump(contents)
        return cls(file.getvalue(), pickle.dumps(packer.stores))


@lru_cache(maxsize=2)
def open_parcel(body: bytes, stores: bytes) -> Any:
    """Returns the values, unpickled once in a process: opening a store of object storage takes milliseconds."""
    return _Opener(io.BytesIO(body), pickle.loads(stores)).load()  # noqa: S301  our own driver's


class _Packer(pickle.Pickler):
    """Replaces what has storage options by its position in `stores`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.stores: list[Store | DataPlace] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Store | DataPlace):
            return None
        self.stores.append(obj)
        return len(self.stores) - 1


class _Opener(pickle.Unpickler):
    """Puts the stores back."""

    def __init__(self, file: io.BytesIO, stores: list[Store | DataPlace]) -> None:
        super().__init__(file)
        self._stores = stores

    def persistent_load(self, pid: Any) -> Store | DataPlace:
        return self._stores[int(pid)]
