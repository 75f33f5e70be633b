"""What a build asks of a worker, and what comes back: small records, no sample's bytes."""

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
    """What all shards of a build share. It travels to every worker once."""

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
    """One shard to pack."""

    number: int
    sources: Sources
    memory_bytes: int  # what packing it takes at most
    is_stored: bool | None = False  # whether a shard of that number existed when the task was made; None: unknown
    unreadable: tuple[BadInput, ...] = ()  # samples that the driver could not read either

    @property
    def num_bytes(self) -> int:
        """Of its files."""
        return int(self.sources.sizes.clip(min=0).sum())

    def again(self) -> "PackTask":
        """For another attempt, after one that may have stored the shard."""
        return replace(self, is_stored=self.is_stored or None)

    def __str__(self) -> str:
        return f"shard {self.number} (samples {self.sources.names[0]!r} to {self.sources.names[-1]!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """What came of it: a small record, no sample's bytes.

    Attributes:
        number: The task's.
        num_bytes: Of the tar; 0 where none was stored.
        index_digest: Of the index.
        is_packed: (n,) which of the task's samples the shard holds; none where none was stored.
        source_hashes: (m, s) xxh3_64 of each input file of the m samples it holds.
        adopted: Whether it was already stored, complete.
        bad: The samples that cannot be packed.
        unread: Those of them that this worker could not read; then the shard waits for the driver to try.
        node: Where it was packed, if there are any of those.
        parts: Stored suffix -> number of samples that have it.
        arrays: Stored suffix -> dtype and shape, where all parts are such arrays.
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

    @property
    def num_samples(self) -> int:
        """That it holds."""
        return int(self.is_packed.sum())
