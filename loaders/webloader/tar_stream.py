"""Streams tars on object storage that no build committed, by webdataset's own reader with dray's opener.

Without an index of their samples, tars are streamed whole and distributed tar by tar. URLs never reach a shell, and
parts are decoded safely.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset
from webdataset.cache import FileCache, StreamingOpen
from webdataset.compat import WebDataset
from webdataset.utils import pytorch_worker_info

from dray.loaders.ranks import own_rank
from dray.loaders.workers.portable import Portable
from dray.loaders.workers.processes import tell_rank
from dray.shards.codecs.decode import Decoder
from dray.shards.errors import CallError
from dray.shards.reading.suffixes import Missing, Part, WantedParts, lacking_error, several_error
from dray.shards.storage.store import Store


class TarDataset(WebDataset):  # type: ignore[misc]  # webdataset has no types
    """Yields samples as tuples of decoded parts, one part per suffix.

    Args:
        store: Store that holds the tars.
        names: Names of the tars.
        wanted: The parts, in the order of the tuples.
        decoder: Decodes the parts.
        options: `kwargs_wds`, of which `shardshuffle`, `seed`, `handler` and `empty_check` are used. The workers of
            all ranks take whole tars in turn, or samples in turn where there are fewer tars than workers.

    Raises:
        CallError: `options` has a `cache_dir`.
    """

    pipeline: list[Any]  # webdataset's stages, each fed by the one before

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        wanted: WantedParts,
        decoder: Decoder,
        options: Mapping[str, Any],
    ) -> None:
        if options.get("cache_dir") is not None:
            raise CallError("cache_dir: tars on object storage without an index are not cached; leave it out")
        kept = {name: options[name] for name in ("seed", "handler", "empty_check") if name in options}
        buffer = options.get("shardshuffle") or False
        if buffer is True:
            buffer = 100  # webdataset would choose this too, with a warning
        urls = [store.url_of(name) for name in names]
        super().__init__(urls, shardshuffle=buffer, nodesplitter=None, workersplitter=None, **kept)
        self.pipeline.insert(1, _Shared(of_tars=True, num_tars=len(names)))
        self.pipeline.append(_Shared(of_tars=False, num_tars=len(names)))
        self.pipeline = [
            _Opener(store) if isinstance(stage, StreamingOpen | FileCache) else stage for stage in self.pipeline
        ]
        self.pipeline.append(_PartsOf(wanted, decoder))


class RankedDataset(IterableDataset[Any]):
    """Sends a dataset to workers with the user's functions in its pipeline, and sets RANK and WORLD_SIZE there.

    Args:
        dataset: Pipeline to iterate over.
    """

    def __init__(self, dataset: Iterable[Any]) -> None:
        self._dataset = Portable(dataset)
        self._rank = own_rank()

    def __iter__(self) -> Iterator[Any]:
        tell_rank(*self._rank)
        return iter(self._dataset.value)


@dataclass(frozen=True, slots=True)
class _Opener:
    """Stage that opens the tars at URLs."""

    store: Store

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for item in source:
            with self.store.open_stream(item["url"].removeprefix(f"{self.store.url}/")) as stream:
                yield {"url": item["url"], "stream": stream}


@dataclass(frozen=True, slots=True)
class _Shared:
    """Stage that selects this worker's tars, or its samples if there are fewer tars than workers of all ranks."""

    of_tars: bool
    num_tars: int

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        rank, num_ranks, worker, num_workers = pytorch_worker_info()
        num_turns = num_ranks * num_workers
        if self.of_tars == (self.num_tars >= num_turns):
            return islice(source, rank * num_workers + worker, None, num_turns)
        return iter(source)


@dataclass(frozen=True, slots=True)
class _PartsOf:
    """Stage that makes a sample a tuple of its wanted parts, decoded; other parts are ignored."""

    wanted: WantedParts
    decoder: Decoder

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
        for sample in source:
            names = [_part_name(sample, part, self.wanted.missing) for part in self.wanted.parts]
            place = {name: sample[name] for name in ("__key__", "__url__")}
            decoded = self.decoder({**place, **{name: sample[name] for name in names if name}})
            yield tuple(decoded[name] if name else None for name in names)


def _part_name(sample: Mapping[str, Any], part: Part, missing: Missing) -> str | None:
    """Returns the stored suffix of a sample's part; None if the sample lacks it.

    Raises:
        CallError: The part is missing and must not be, or is stored more than once.
    """
    where = f"shard {sample['__url__']!r}, key {sample['__key__']!r}"
    stored = [name for name in sample if not name.startswith("__")]
    found = part.among(stored)
    if len(found) > 1:
        raise several_error(where, part.name, found)
    if not found and missing == Missing.ERROR:
        raise lacking_error(where, part.name, stored)
    return found[0] if found else None
