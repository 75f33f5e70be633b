"""The records that a build and its workers exchange; they hold no sample's bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.inputs.sources import BadInput, Sources
from dray.pipelines.inputs.transform import Transform
from dray.shards.layout import Location
from dray.shards.parts import ArrayTypes, Counts
from dray.shards.storage.store import Store

TASK_BYTES = 64 << 20  # memory of a task beside the files that it holds


@dataclass(frozen=True, slots=True, kw_only=True)
class PackJob:
    """What all shards of a build share; it is sent to every worker once."""

    inputs: Store
    location: Location
    transform: Transform | None  # None: a sample's parts are its files
    encoder: Encoder | None = None  # None: pickled parts stay pickles
    leaves_out_bad: bool = False  # whether a shard is stored without the samples that cannot be packed
    is_remote: bool = False  # whether workers on other nodes pack: the driver tries what they cannot read

    @property
    def packs_files(self) -> bool:
        """Whether each part is its file, byte for byte."""
        return self.transform is None and self.encoder is None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackTask:
    """A shard to pack."""

    number: int
    sources: Sources
    memory_bytes: int  # maximum number of bytes of memory that packing needs
    is_stored: bool | None = False  # whether a shard of that number existed when the task was made; None: unknown
    unreadable: tuple[BadInput, ...] = ()  # samples that the driver could not read either

    @property
    def num_bytes(self) -> int:
        """Number of bytes of its files."""
        return int(self.sources.sizes.clip(min=0).sum())

    def again(self) -> "PackTask":
        """Returns the task for another attempt, after one that may have stored the shard."""
        return replace(self, is_stored=self.is_stored or None)

    def __str__(self) -> str:
        return f"shard {self.number} (samples {self.sources.names[0]!r} to {self.sources.names[-1]!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """The result of packing a shard.

    Attributes:
        number: The number of the task's shard.
        num_bytes: Size of the tar; 0 if none was stored.
        index_digest: Digest of the index.
        is_packed: (n,) whether the shard holds each of the task's samples; none if none was stored.
        source_hashes: (m, s) xxh3_64 of each input file of the m samples it holds.
        adopted: Whether it was already stored, complete.
        bad: Samples that cannot be packed.
        unread: Bad samples that this worker could not read; then nothing is stored until the driver has tried.
        node: The worker's node, if there are unread samples.
        parts: Stored suffix -> number of samples that have it.
        arrays: Stored suffix -> dtype and shape, if all its parts are arrays of these.
        stayed: Reason -> number of parts that stayed pickles although encode="auto" tried them.
    """

    number: int
    num_bytes: int
    index_digest: str
    is_packed: NDArray[np.bool_]
    source_hashes: NDArray[np.uint64]
    adopted: bool
    bad: tuple[BadInput, ...]
    parts: Counts = field(default_factory=dict)
    arrays: ArrayTypes = field(default_factory=dict)
    stayed: Mapping[str, int] = field(default_factory=dict)
    unread: tuple[BadInput, ...] = ()
    node: str = ""

    def detached(self) -> "PackedShard":
        """Returns it with arrays of its own: those of an unpickled record are views of the whole message from Ray."""
        return replace(self, is_packed=self.is_packed.copy(), source_hashes=self.source_hashes.copy())

    @property
    def num_samples(self) -> int:
        """Number of samples that it holds."""
        return int(self.is_packed.sum())
