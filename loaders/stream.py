"""A dataset's tars as a WebDataset pipeline: webdataset's own reader with dray's opener, sharing and decoding.

What differs from a plain `webdataset.WebDataset`: URLs are opened by dray's store and never reach a shell; a tar of a
size that its snapshot does not name is an error; ranks and workers share samples where there are too few shards for
one each; and parts are decoded safely.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cloudpickle
from torch.utils.data import IterableDataset
from webdataset.cache import StreamingOpen
from webdataset.compat import WebDataset
from webdataset.utils import pytorch_worker_info

from dray.loaders.decode import Decoder
from dray.shards.client import StorageOptions
from dray.shards.errors import CallError, DamagedError, NotFoundError
from dray.shards.snapshot import Snapshot
from dray.shards.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Tars:
    """The tars that make up one split, in order."""

    store: Store
    names: Sequence[str]
    sizes: Mapping[str, int]  # bytes; empty where there is no snapshot to tell
    num_samples: int | None  # None where there is no snapshot to tell

    @classmethod
    def find(cls, url: str, prefix: str, storage_options: StorageOptions | None = None) -> "Tars":
        """Those of the dataset's last snapshot; without one, all that are called `{prefix}-*.tar`, by name.

        Raises:
            NotFoundError: There are none.
        """
        store = Store(url, storage_options)
        try:
            snapshot = Snapshot.latest(url, prefix, storage_options=storage_options)
        except NotFoundError:
            return cls._glob(store, prefix)
        sizes = {snapshot.layout.shard(shard.number): shard.num_bytes for shard in snapshot.shards}
        return cls(store=store, names=list(sizes), sizes=sizes, num_samples=snapshot.num_samples)

    @classmethod
    def _glob(cls, store: Store, prefix: str) -> "Tars":
        names = [info.name for info in store.list_folder()]
        names = [name for name in names if name.startswith(f"{prefix}-") and name.endswith(".tar")]
        if not names:
            raise NotFoundError(
                f"neither a dataset nor tars {prefix}-*.tar under {store.url}: check directory and prefix, or build "
                "them first: PickledDataWDS.prepare_data(), pickles_to_tars() or `dray build`"
            )
        return cls(store=store, names=names, sizes={}, num_samples=None)


class TarDataset(WebDataset):  # type: ignore[misc]  # webdataset has no types
    """Samples as tuples of decoded parts, one part a suffix.

    Args:
        tars: What to read.
        suffixes: The parts wanted, in the order of the tuples.
        decoder: How to decode them.
        options: Keyword arguments of `webdataset.WebDataset`. Where neither `nodesplitter` nor `workersplitter` is
            given, whole shards are dealt to ranks and workers, or samples where there are fewer shards than workers.

    Raises:
        CallError: `cache_dir` with a dataset on object storage.
    """

    pipeline: list[Any]  # webdataset's stages, each fed by the one before

    def __init__(
        self, tars: Tars, suffixes: Sequence[str], decoder: Decoder, options: Mapping[str, Any] | None = None
    ) -> None:
        options = {"shardshuffle": False, **(options or {})}
        if options["shardshuffle"] is True:
            options["shardshuffle"] = 100  # what webdataset makes of it, with a warning
        if options.get("cache_dir") is not None and tars.store.local_root is None:
            raise CallError("cache_dir: shards on object storage are not cached yet; leave it out")
        shares = not {"nodesplitter", "workersplitter"} & options.keys()
        if shares:
            options |= {"nodesplitter": None, "workersplitter": None}
        super().__init__([tars.store.url_of(name) for name in tars.names], **options)
        if shares:
            self.pipeline.insert(1, _ShareOfShards(len(tars.names)))
            self.append(_ShareOfSamples(len(tars.names), tars.num_samples))
        self.pipeline = [_Opener(tars) if isinstance(stage, StreamingOpen) else stage for stage in self.pipeline]
        self.append(_PartsOf(suffixes, decoder))


class Portable(IterableDataset[Any]):
    """A dataset that reaches spawned workers with the lambdas and local functions in its pipeline."""

    def __init__(self, dataset: Iterable[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)

    def __getstate__(self) -> tuple[bytes, int, int]:
        rank, num_ranks, _, _ = pytorch_worker_info()
        return cloudpickle.dumps(self.dataset), rank, num_ranks

    def __setstate__(self, state: tuple[bytes, int, int]) -> None:
        pickled, rank, num_ranks = state
        # A spawned worker is in no process group: these variables tell it, and webdataset in it, whose worker it is.
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks))
        self.dataset = cloudpickle.loads(pickled)


@dataclass(frozen=True, slots=True)
class _Opener:
    """Stage: URLs -> open tars, each of the size that the snapshot names."""

    tars: Tars

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        store = self.tars.store
        for item in source:
            name = item["url"].removeprefix(f"{store.url}/")
            self._check_size(name)
            with store.open_stream(name) as stream:
                yield {"url": item["url"], "stream": stream}

    def _check_size(self, name: str) -> None:
        expected, store = self.tars.sizes.get(name), self.tars.store
        if expected is None:
            return
        if store.local_root is not None:
            path = Path(store.local_root, name)
            found = path.stat().st_size if path.exists() else None
        else:
            info = store.head(name)
            found = info.size if info else None
        if found != expected:
            raise DamagedError(
                f"shard {store.url_of(name)}: {expected} bytes expected, found {found or 'nothing'}: it was cut, "
                "replaced or deleted; build the dataset again"
            )


def _slot() -> tuple[int, int]:
    """This worker's number among all workers of all ranks, and how many there are."""
    rank, num_ranks, worker, num_workers = pytorch_worker_info()
    return rank * num_workers + worker, num_ranks * num_workers


@dataclass(frozen=True, slots=True)
class _ShareOfShards:
    """Stage: this worker's shards; all of them where there are fewer shards than workers."""

    num_shards: int

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        slot, num_slots = _slot()
        return islice(source, slot, None, num_slots) if self.num_shards >= num_slots else iter(source)


@dataclass(frozen=True, slots=True)
class _ShareOfSamples:
    """Stage: this worker's samples, where the shards were too few to be dealt out."""

    num_shards: int
    num_samples: int | None

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        slot, num_slots = _slot()
        if self.num_shards >= num_slots:
            return iter(source)
        shares = min(num_slots, self.num_samples or num_slots)  # fewer samples than workers: some get the same one
        return islice(source, slot % shares, None, shares)


@dataclass(frozen=True, slots=True)
class _PartsOf:
    """Stage: samples -> tuples of the wanted parts, decoded; the others are not even looked at."""

    suffixes: Sequence[str]
    decoder: Decoder

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
        for sample in source:
            names = [_part_name(sample, suffix) for suffix in self.suffixes]
            place = {name: sample[name] for name in ("__key__", "__url__")}
            decoded = self.decoder({**place, **{name: sample[name] for name in names}})
            yield tuple(decoded[name] for name in names)


def _part_name(sample: Mapping[str, Any], suffix: str) -> str:
    """The part of that suffix, or the one part whose suffix ends so (`pyd` finds `tensor.pyd`).

    Raises:
        DamagedError: There is none, or more than one.
    """
    wanted = suffix.lower()  # webdataset reads suffixes in lower case
    if wanted in sample:
        return wanted
    found = [name for name in sample if name.endswith(f".{wanted}")]
    if len(found) != 1:
        parts = [name for name in sample if not name.startswith("__")]
        raise DamagedError(
            f"shard {sample['__url__']}, key {sample['__key__']!r}: {'several parts' if found else 'no part'} with "
            f"suffix {suffix!r}; it has {parts}"
        )
    return found[0]
