"""Opens a split of a DataModule: a snapshot's samples in dray's order, or tars of other tools."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from webdataset.compat import WebLoader
from webdataset.pipeline import DataPipeline

from dray.loaders.agreement import find_agreed, to_snapshot
from dray.loaders.batching.sample_source import SampleSource
from dray.loaders.batching.skipping import skipper_of
from dray.loaders.order.epochs import Epochs
from dray.loaders.order.passes import Pass
from dray.loaders.ranks import own_rank
from dray.loaders.webloader.chunks import ChunkDataset, Chunks
from dray.loaders.webloader.loader import ChunkLoader
from dray.loaders.webloader.output_position import OutputPosition
from dray.loaders.webloader.passes import Collation, Passes, Stream
from dray.loaders.webloader.tar_stream import RankedDataset, TarDataset
from dray.loaders.workers.portable import Portable
from dray.loaders.workers.processes import TorchLoader
from dray.shards.arguments import as_seed
from dray.shards.codecs.decode import Decoder
from dray.shards.reading.foreign_tars import open_catalog
from dray.shards.reading.node_cache import BlockStore, open_blocks
from dray.shards.reading.suffixes import Missing, WantedParts, named_parts
from dray.shards.reading.tar_files import DataUrl, TarFiles
from dray.shards.snapshot import Snapshot
from dray.shards.storage.client import StorageOptions

Options = Mapping[str, Any]


class OpenSplit(Protocol):
    """Interface of a split that a DataModule uses."""

    @property
    def num_samples(self) -> int | None:
        """Number of samples in the split; None if unknown."""
        ...

    def dataset(self) -> Any:
        """Returns the samples, with webdataset's fluid interface."""
        ...

    def loader(self, dataset: Any, options: Options, batch: int | None, num_samples: int | None) -> Any:
        """Returns a `WebLoader` over the user's pipeline.

        Args:
            dataset: The pipeline.
            options: `kwargs_wld`.
            batch: The global batch size.
            num_samples: Number of samples that count as an epoch; None: an epoch is one pass.
        """
        ...


def open_split(
    url: DataUrl,
    prefix: str,
    storage_options: StorageOptions | None,
    *,
    data_url: str | os.PathLike[str] | None = None,
    data_storage_options: StorageOptions | None = None,
    suffixes: Sequence[str],
    missing: Missing,
    decoder: Decoder,
    options: Options,
    batch: int | None,
    num_workers: int,
) -> OpenSplit:
    """Returns the last version of a dataset, or the one that the URL names (`?version=7`), the same on all ranks.

    Without a dataset, or if the URL names tars, returns tars; see `find_data`.

    Raises:
        NotFoundError: There is no such version, and there are no tars.
    """
    found = find_agreed(
        url, prefix, storage_options=storage_options, data_url=data_url, data_storage_options=data_storage_options
    )
    if isinstance(found, TarFiles) and found.store.local_root is None:
        return TarSplit(found, named_parts(suffixes, None, missing, by_ending=True), decoder, options)
    snapshot = to_snapshot(found)
    wanted = named_parts(suffixes, snapshot.manifest, missing, by_ending=True)
    return ChunkSplit(snapshot, wanted, decoder, options, batch, num_workers)


class ChunkSplit:
    """Samples in dray's order.

    Args:
        snapshot: Snapshot to read.
        wanted: The parts, in the order of a sample's tuple.
        decoder: Decodes the parts.
        options: `kwargs_wds`.
        batch: The global batch size.
        num_workers: Number of workers of a rank.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        wanted: WantedParts,
        decoder: Decoder,
        options: Options,
        batch: int | None,
        num_workers: int,
    ) -> None:
        self.num_samples = snapshot.num_samples
        self._snapshot = snapshot
        self._order: dict[str, Any] = {
            "shuffle": bool(options.get("shardshuffle")),
            "seed": as_seed("seed", options.get("seed") or 0),
        }
        blocks = _blocks(options, num_workers)
        samples = SampleSource(
            partial(open_catalog, snapshot, blocks=blocks),
            wanted,
            decoder,
            blocks=blocks,
            skipper=skipper_of(options.get("handler")),
        )
        self._chunks = Chunks(samples, partial(_first_pass, snapshot, batch, self._order))

    def dataset(self) -> Any:
        """See `OpenSplit`."""
        return ChunkDataset(self._chunks)

    def loader(self, dataset: Any, options: Options, batch: int | None, num_samples: int | None) -> ChunkLoader:
        """See `OpenSplit`."""
        rank, num_ranks = own_rank()
        progress = OutputPosition(Epochs.of_chunks(self._snapshot, batch, num_ranks, **self._order), rank, num_samples)
        collation = Collation(
            batch_size=options.get("batch_size"),
            drop_last=bool(options.get("drop_last")),
            collate=options.get("collate_fn"),
        )
        workers = {name: options[name] for name in _OF_WORKERS if name in options}
        if not self._snapshot.is_local:  # connections do not survive a fork
            workers.setdefault("multiprocessing_context", "spawn")
        return ChunkLoader(
            Passes(
                Stream(self._chunks, dataset, collation),
                progress,
                options.get("num_workers") or 0,
                workers,
                pin=bool(options.get("pin_memory")),
            )
        )


_OF_WORKERS = (
    "persistent_workers",
    "prefetch_factor",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
)


def _blocks(options: Options, num_workers: int) -> BlockStore | None:
    """Returns the node's block store for `cache_dir` and `cache_size`."""
    size, (_, num_ranks) = options.get("cache_size"), own_rank()
    most = None if size is None or size < 0 else size
    return open_blocks(options.get("cache_dir"), most, num_workers=num_workers, num_ranks=num_ranks)


def _first_pass(snapshot: Snapshot, batch: int | None, order: Mapping[str, Any]) -> Pass:
    rank, num_ranks = own_rank()
    epochs = Epochs.of_chunks(snapshot, batch, num_ranks, **order)
    return epochs.pass_from(epochs.start(0), rank)


class TarLoader(WebLoader):  # type: ignore[misc]  # webdataset has no types
    """A `WebLoader` around dray's subclass of torch's DataLoader."""

    def __init__(self, loader: TorchLoader) -> None:
        DataPipeline.__init__(self, loader)


@dataclass(frozen=True, slots=True)
class TarSplit:
    """Tars on object storage that have no snapshot: streamed whole.

    Attributes:
        files: The tars.
        wanted: The parts, in the order of a sample's tuple.
        decoder: Decodes the parts.
        options: `kwargs_wds`.
    """

    files: TarFiles
    wanted: WantedParts
    decoder: Decoder
    options: Options
    num_samples: None = None

    def dataset(self) -> Any:
        """See `OpenSplit`."""
        warnings.warn(
            f"{self.files.store.url}: tars on object storage without an index are streamed whole and distributed by "
            "tar: ranks may be uneven, epochs inexact, and a resume restarts the epoch; run `dray index` on them once, "
            "which rewrites none, and all of that is exact",
            stacklevel=4,
        )
        return TarDataset(self.files.store, self.files.names, self.wanted, self.decoder, self.options)

    def loader(self, dataset: Any, options: Options, batch: int | None, num_samples: int | None) -> Any:  # noqa: ARG002
        """See `OpenSplit`."""
        options = dict(options)
        if options.get("num_workers"):
            dataset = RankedDataset(dataset)
            options.setdefault("multiprocessing_context", "spawn")  # connections do not survive a fork
            options |= {name: Portable(options[name]) for name in ("worker_init_fn", "collate_fn") if options.get(name)}
        return TarLoader(TorchLoader(dataset, **{"batch_size": None, **options}))
