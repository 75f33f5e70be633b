"""Input files as a source of Ray Data. Their fingerprints are known before, so that blocks have even bytes."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.inputs.sources import Sources, try_files
from dray.pipelines.ray_data.columns import PartDecoder, bytes_column
from dray.pipelines.ray_data.datasource import BLOCK_BYTES, KEY, SOURCE, Blocks, SampleDatasource
from dray.shards.errors import InputError
from dray.shards.layout import key_of
from dray.shards.storage.store import Store

FILE_BYTES = 8 << 10  # bytes that take about as long as opening a file: it bounds the number of files of a task


class PicklesDatasource(SampleDatasource):
    """Reads input samples: `__key__` and one column for each suffix.

    Args:
        store: The folder of the files.
        sources: The samples; no file of a suffix that is required is missing.
        decoder: Decodes the files; None: columns hold their bytes.
        with_source: Whether there is a column `__source__` with the key of each sample's source.
    """

    def __init__(
        self, store: Store, sources: Sources, decoder: PartDecoder | None, *, with_source: bool = False
    ) -> None:
        sizes = (sources.sizes.clip(0) + FILE_BYTES).sum(axis=1)
        super().__init__([*([KEY, SOURCE] if with_source else [KEY]), *sources.suffixes], np.ones_like(sizes), sizes)
        self._store, self._sources, self._decoder = store, sources, decoder
        self._may_lack = frozenset(
            suffix for suffix, column in zip(sources.suffixes, sources.sizes.T, strict=True) if (column < 0).any()
        )

    def get_name(self) -> str:
        """Returns the name in Ray Data's progress."""
        return "Pickles"

    def open_task(self, start: int, stop: int, columns: Sequence[str]) -> Callable[[], Blocks]:
        """See the base class."""
        chosen = [place for place, suffix in enumerate(self._sources.suffixes) if suffix in columns]
        rows = self._sources.take(np.arange(start, stop))
        sources = replace(
            rows,
            suffixes=tuple(self._sources.suffixes[place] for place in chosen),
            sizes=rows.sizes[:, chosen],
            stamps=rows.stamps[:, chosen],
        )
        reader = _FileReader(store=self._store, columns=tuple(columns), decoder=self._decoder, may_lack=self._may_lack)
        return partial(reader.blocks, sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileReader:
    """How files become blocks, in a worker.

    Attributes:
        store: The folder of the files.
        columns: Names of the columns in demand, in order.
        decoder: Decodes the files; None: they stay bytes.
        may_lack: Suffixes of files that some sample lacks.
    """

    store: Store
    columns: tuple[str, ...]
    decoder: PartDecoder | None
    may_lack: Collection[str]

    def blocks(self, sources: Sources) -> Blocks:
        """Yields the samples in order, in blocks of about `BLOCK_BYTES`; the next files are fetched meanwhile.

        Raises:
            InputError: A file is missing or cannot be read, or was changed; names it.
            RefusedError: A pickle holds something that is not on the safe list; names the file and `allow`.
            DamagedError: A file is not what its suffix says.
        """
        files, num_suffixes = try_files(self.store, sources), len(sources.suffixes)
        for start, stop in pairwise(_bounds(sources.sizes)):
            names = sources.names[start:stop]
            parts = [self._checked(data) for data in islice(files, len(names) * num_suffixes)]
            keys = pa.array(map(key_of, names), pa.string())
            columns = {KEY: keys, SOURCE: keys}
            for place, suffix in enumerate(sources.suffixes):
                columns[suffix] = self._column(suffix, parts[place::num_suffixes], names)
            yield pa.table({name: columns[name] for name in self.columns})

    def _checked(self, data: bytes | InputError | None) -> bytes | None:
        if isinstance(data, InputError):
            raise data.at(url=self.store.url)
        return data

    def _column(self, suffix: str, parts: Sequence[bytes | None], names: Sequence[str]) -> pa.Array:
        if self.decoder is None:
            return bytes_column(parts)

        def place_of(row: int) -> dict[str, str]:
            return {"url": self.store.url_of(f"{names[row]}.{suffix}"), "key": key_of(names[row])}

        return self.decoder.column(parts, [suffix] * len(parts), place_of, may_lack=suffix in self.may_lack)


def _bounds(sizes: NDArray[np.int64]) -> list[int]:
    """Returns the first sample of each block and the end of the last one.

    Args:
        sizes: (n, s) size of each file; negative for one that is absent.
    """
    number_of_block = np.cumsum(sizes.clip(0).sum(axis=1)) // BLOCK_BYTES
    return [0, *(np.flatnonzero(np.diff(number_of_block)) + 1).tolist(), len(sizes)]
