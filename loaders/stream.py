"""A dataset's tars as a WebDataset pipeline: webdataset's own reader with dray's opener, sharing and decoding.

What differs from a plain `webdataset.WebDataset`: URLs are opened by dray's store and never reach a shell; a tar of a
size that its snapshot does not name is an error; samples are shared evenly by ranks and workers, whatever the number of
shards; and parts are decoded safely.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, islice
from typing import Any

import cloudpickle
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.cache import FileCache, StreamingOpen
from webdataset.compat import WebDataset
from webdataset.utils import pytorch_worker_info

from dray.loaders.decode import Decoder
from dray.shards.client import StorageOptions
from dray.shards.errors import CallError, DamagedError, NotFoundError
from dray.shards.layout import Layout
from dray.shards.log import read_head, read_version
from dray.shards.snapshot import Snapshot
from dray.shards.store import Store
from dray.shards.urls import split_version


@dataclass(frozen=True, slots=True, kw_only=True)
class Tar:
    """One tar of a split; a snapshot tells its bytes and samples, a listing neither."""

    url: str
    num_bytes: int | None = None
    first_sample: int = 0  # of the split
    num_samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tars:
    """The tars that make up one split, in order."""

    store: Store
    tars: Sequence[Tar]
    num_samples: int | None  # None where there is no snapshot to tell

    @classmethod
    def find(cls, url: str, prefix: str, storage_options: StorageOptions | None = None) -> "Tars":
        """Those of the dataset's last version, or of the one that the URL names (`?version=7`).

        Where nothing was ever committed, all called `{prefix}-*.tar`, by name.

        Raises:
            NotFoundError: There are none.
        """
        directory, version = split_version(url)
        store, layout = Store(directory, storage_options), Layout(prefix)
        if version is None and read_head(store, layout) is None:
            return cls._glob(store, prefix)
        snapshot = Snapshot.load(store, layout, read_version(store, layout, version))
        starts = accumulate((shard.num_samples for shard in snapshot.shards), initial=0)
        tars = [
            Tar(url=tar_url, num_bytes=shard.num_bytes, first_sample=start, num_samples=shard.num_samples)
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
            given, every worker of every rank gets an equal run of the samples (equal to one). Without a snapshot nobody
            knows the samples: then whole tars are dealt out, or every so many-th sample where there are too few tars.

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
        if is_shared_here and tars.num_samples is not None:
            options["empty_check"] = False  # a rank's last workers may be without a sample
        super().__init__([tar.url for tar in tars.tars], **options)
        if is_shared_here and not options.get("resampled") and options.get("mode") != "resampled":
            self.pipeline.insert(1, _SharedTars(tars))
            self.pipeline.append(_SharedSamples(tars))
        self.pipeline = [
            _Opener(tars) if isinstance(stage, StreamingOpen | FileCache) else stage for stage in self.pipeline
        ]  # files of this disk need no cache
        self.pipeline.append(_PartsOf(suffixes, decoder))


class Portable(IterableDataset[Any]):
    """A dataset that reaches workers that are not forked with the lambdas and local functions in its pipeline."""

    def __init__(self, dataset: Iterable[Any]) -> None:
        self.dataset = dataset
        self._home: tuple[int, int] | None = None  # rank and number of ranks of the trainer, in another process

    def __iter__(self) -> Iterator[Any]:
        if self._home is not None and get_worker_info() is not None:
            # This process is in no process group: these variables tell it, and webdataset in it, whose worker it is.
            os.environ.update(RANK=str(self._home[0]), WORLD_SIZE=str(self._home[1]))
        return iter(self.dataset)

    def __getstate__(self) -> tuple[bytes, tuple[int, int]]:
        rank, num_ranks, _, _ = pytorch_worker_info()
        return cloudpickle.dumps(self.dataset), self._home or (rank, num_ranks)

    def __setstate__(self, state: tuple[bytes, tuple[int, int]]) -> None:
        self.dataset, self._home = cloudpickle.loads(state[0]), state[1]


class _Opener:
    """Stage: URLs -> open tars, each of the size that the snapshot names."""

    def __init__(self, tars: Tars) -> None:
        self._store = tars.store
        self._sizes = {tar.url: tar.num_bytes for tar in tars.tars}

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for item in source:
            name = item["url"].removeprefix(f"{self._store.url}/")
            with self._store.open_stream(name, self._sizes[item["url"]]) as stream:
                yield {"url": item["url"], "stream": stream}


def _share(num_samples: int) -> range:
    """The samples of this worker: a rank's equal run, cut into equal runs for its workers."""
    rank, num_ranks, worker, num_workers = pytorch_worker_info()
    if num_samples < num_ranks:  # no rank may be without a sample: the others would wait for it
        own = range(rank % num_samples, rank % num_samples + 1)
    else:
        own = range(rank * num_samples // num_ranks, (rank + 1) * num_samples // num_ranks)
    return own[worker * len(own) // num_workers : (worker + 1) * len(own) // num_workers]


def _turn() -> tuple[int, int]:
    """This worker's number among all workers of all ranks, and how many there are."""
    rank, num_ranks, worker, num_workers = pytorch_worker_info()
    return rank * num_workers + worker, num_ranks * num_workers


class _SharedTars:
    """Stage: the tars that hold samples of this worker; before any shuffle, so that all workers agree."""

    def __init__(self, tars: Tars) -> None:
        self._tars = tars

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        if self._tars.num_samples is None:
            turn, num_turns = _turn()
            return islice(source, turn, None, num_turns) if len(self._tars.tars) >= num_turns else iter(source)
        own = _share(self._tars.num_samples)
        return (
            item
            for item, tar in zip(source, self._tars.tars, strict=True)
            if tar.first_sample < own.stop and own.start < tar.first_sample + tar.num_samples
        )


class _SharedSamples:
    """Stage: the samples of this worker, in whatever order its tars come."""

    def __init__(self, tars: Tars) -> None:
        self._tars = tars

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if self._tars.num_samples is None:
            turn, num_turns = _turn()
            return iter(source) if len(self._tars.tars) >= num_turns else islice(source, turn, None, num_turns)
        own = _share(self._tars.num_samples)
        numbers = {tar.url: count(tar.first_sample) for tar in self._tars.tars}  # of the next sample of each
        return (sample for sample in source if next(numbers[sample["__url__"]]) in own)


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
    """The part of that suffix, or the one part whose suffix ends so (`pyd` finds `tensor.pyd`); `a;b` is either.

    Raises:
        DamagedError: There is none, or more than one.
    """
    wanted = suffix.lower().split(";")  # webdataset reads suffixes in lower case
    if present := [name for name in wanted if name in sample]:
        return present[0]
    found = [name for name in sample if name.endswith(tuple(f".{name}" for name in wanted))]
    if len(found) != 1:
        parts = [name for name in sample if not name.startswith("__")]
        raise DamagedError(
            f"shard {sample['__url__']}, key {sample['__key__']!r}: {'several parts' if found else 'no part'} with "
            f"suffix {suffix!r}; it has {parts}"
        )
    return found[0]
