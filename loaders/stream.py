"""A dataset's tars as a WebDataset pipeline: webdataset's own reader with dray's opener, sharing and decoding.

What differs from a plain `webdataset.WebDataset`: URLs are opened by dray's store and never reach a shell; a tar of a
size that its snapshot does not name is an error; samples are shared evenly by ranks and workers, whatever the number of
shards; and parts are decoded safely.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
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
from dray.shards.layout import Layout
from dray.shards.log import latest_version
from dray.shards.snapshot import Snapshot
from dray.shards.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Tar:
    """One tar of a split; a snapshot tells its size and the number of its first sample, a listing neither."""

    url: str
    num_bytes: int | None = None
    first_sample: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tars:
    """The tars that make up one split, in order."""

    store: Store
    tars: Sequence[Tar]
    num_samples: int | None  # None where there is no snapshot to tell

    @classmethod
    def find(cls, url: str, prefix: str, storage_options: StorageOptions | None = None) -> "Tars":
        """Those of the dataset's last snapshot; where none was ever committed, all called `{prefix}-*.tar`, by name.

        Raises:
            NotFoundError: There are none.
        """
        store, layout = Store(url, storage_options), Layout(prefix)
        version = latest_version(store, layout)
        if not version:
            return cls._glob(store, prefix)
        snapshot = Snapshot.open(store, layout, version)
        starts = accumulate((shard.num_samples for shard in snapshot.shards), initial=0)
        tars = [
            Tar(url=tar_url, num_bytes=shard.num_bytes, first_sample=start)
            for tar_url, shard, start in zip(snapshot.urls(), snapshot.shards, starts, strict=False)
        ]
        return cls(store=store, tars=tars, num_samples=snapshot.num_samples)

    @classmethod
    def _glob(cls, store: Store, prefix: str) -> "Tars":
        names = [info.name for info in store.list_folder()]
        names = [name for name in names if name.startswith(f"{prefix}-") and name.endswith(".tar")]
        if not names:
            raise NotFoundError(
                f"neither a dataset nor tars {prefix}-*.tar under {store.url}: check directory and prefix, or build "
                "them first: PickledDataWDS.prepare_data(), pickles_to_tars() or `dray build`"
            )
        return cls(store=store, tars=[Tar(url=store.url_of(name)) for name in names], num_samples=None)


class TarDataset(WebDataset):  # type: ignore[misc]  # webdataset has no types
    """Samples as tuples of decoded parts, one part a suffix.

    Args:
        tars: What to read.
        suffixes: The parts wanted, in the order of the tuples.
        decoder: How to decode them.
        options: Keyword arguments of `webdataset.WebDataset`. Where neither `nodesplitter` nor `workersplitter` is
            given, the samples are shared out evenly among all workers of all ranks: as many whole shards as each can
            have, and the samples of the shards that are left.

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
        is_shared_here = not {"nodesplitter", "workersplitter"} & options.keys()
        if is_shared_here:
            options |= {"nodesplitter": None, "workersplitter": None}
        super().__init__([tar.url for tar in tars.tars], **options)
        if is_shared_here and not options.get("resampled") and options.get("mode") != "resampled":
            self.pipeline.insert(1, _ShareOfShards(len(tars.tars), tars.num_samples))
            self.append(_ShareOfSamples(tars))
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


class _Opener:
    """Stage: URLs -> open tars, each of the size that the snapshot names."""

    def __init__(self, tars: Tars) -> None:
        self._store = tars.store
        self._sizes = {tar.url: tar.num_bytes for tar in tars.tars}

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for item in source:
            url = item["url"]
            name = url.removeprefix(f"{self._store.url}/")
            self._check_size(url, name)
            with self._store.open_stream(name) as stream:
                yield {"url": url, "stream": stream}

    def _check_size(self, url: str, name: str) -> None:
        expected = self._sizes[url]
        if expected is None:
            return
        if self._store.local_root is not None:  # without the store's client: this may be a forked worker
            path = Path(self._store.local_root, name)
            found = path.stat().st_size if path.exists() else None
        else:
            info = self._store.head(name)
            found = info.size if info else None
        if found != expected:
            raise DamagedError(
                f"shard {url}: {expected} bytes expected, found {'nothing' if found is None else found}: it was cut, "
                "replaced or deleted; build the dataset again"
            )


def _slot(num_samples: int | None) -> tuple[int, int]:
    """This worker's number among all workers of all ranks, and how many there are.

    Where there are fewer samples than workers, some workers have the same number: none may be without a sample.
    """
    rank, num_ranks, worker, num_workers = pytorch_worker_info()
    num_slots = min(num_ranks * num_workers, num_samples or num_ranks * num_workers)
    return (rank * num_workers + worker) % num_slots, num_slots


@dataclass(frozen=True, slots=True)
class _ShareOfShards:
    """Stage: this worker's whole shards, as many as every worker can have, and then all that are left."""

    num_shards: int
    num_samples: int | None

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        slot, num_slots = _slot(self.num_samples)
        num_dealt = self.num_shards - self.num_shards % num_slots
        for number, item in enumerate(source):
            if number >= num_dealt or number % num_slots == slot:
                yield item


class _ShareOfSamples:
    """Stage: this worker's samples of the shards that all workers read; whatever the order the shards come in."""

    def __init__(self, tars: Tars) -> None:
        self._tars = tars

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        slot, num_slots = _slot(self._tars.num_samples)
        num_shared = len(self._tars.tars) % num_slots
        shared = self._tars.tars[len(self._tars.tars) - num_shared :]
        numbers = {tar.url: count(tar.first_sample) for tar in shared}  # of the next sample of each
        for sample in source:
            if (of_shard := numbers.get(sample["__url__"])) is None or next(of_shard) % num_slots == slot:
                yield sample


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
