"""What `dray show` prints: where one sample lies and what is in it, safely decoded.

Nothing that a sample holds reaches the terminal as it is: text is quoted and cut, arrays are told by type and shape,
and no control character is printed.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import typer

from dray.cluster.cli.datasets import find_datasets
from dray.pipelines.progress import WORDS
from dray.shards import DamagedError, NotFoundError, RefusedError, Snapshot
from dray.shards.codecs.decode import Decoder
from dray.shards.index import ShardIndex
from dray.shards.manifest import Shard
from dray.shards.messages import counted
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import split_version
from dray.shards.versions import read_version

MOST_CHARS = 200  # of a value
_MOST_BITS = 600  # of a whole number that is written out


def show_sample(
    url: str,
    key: str,
    *,
    prefix: str | None,
    version: str | None,
    allow: Sequence[str] = (),
    allow_pickle: bool = False,
    storage_options: StorageOptions,
) -> None:
    """Print one sample: shard, row, and of each part where it lies and what it holds.

    Raises:
        NotFoundError: There is no such dataset, version or key.
        DamagedError: Stored bytes are not what the snapshot says.
    """
    directory, pinned = split_version(url, version)
    datasets = find_datasets(directory, prefix, storage_options)
    missing: list[NotFoundError] = []
    for store, layout in datasets:
        snapshot = Snapshot.load(store, layout, read_version(store, layout, pinned))
        try:
            place = snapshot.find(key)
        except NotFoundError as exc:
            missing.append(exc)
        else:
            _print_sample(snapshot, key, *place, Decoder(allow=allow, allow_pickle=allow_pickle))
    if len(missing) == len(datasets):
        raise missing[0] if len(missing) == 1 else NotFoundError("; ".join(map(str, missing)))


def _print_sample(snapshot: Snapshot, key: str, shard: Shard, index: ShardIndex, row: int, decoder: Decoder) -> None:
    parts = snapshot.read_row(shard, index, row)
    _print(f"{snapshot.store.url} {snapshot.layout.prefix} version {snapshot.version}, key {key!r}")
    _print(f"  shard   {snapshot.store.url_of(snapshot.layout.shard(shard.number))}")
    _print(f"  sample  {row} of {shard.num_samples:,}, counted from 0")
    for column, suffix in enumerate(index.suffixes):
        if suffix in parts:
            _print(f"  {suffix}: {counted(len(parts[suffix]), 'byte')} at offset {index.offsets[row, column]}")
            _print(f"    {describe_part(suffix, parts[suffix], decoder)}")


def _print(line: str) -> None:
    typer.echo("".join(letter if letter.isprintable() else "?" for letter in line))


def describe_part(suffix: str, data: bytes, decoder: Decoder | None = None) -> str:
    """The value of a part in one line, or why there is none."""
    try:
        return describe((decoder or Decoder()).part(suffix, data))
    except RefusedError as exc:
        return f"refused: {WORDS.get()(str(exc))}"
    except (DamagedError, ModuleNotFoundError) as exc:
        return f"not decoded: {exc}"


def describe(value: Any) -> str:
    """A value in at most 200 characters."""
    text = _Short().repr(value)
    return text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 3]}..."


class _Short(reprlib.Repr):
    """`repr` that cuts long and deep values; the methods are found by the name of a value's type."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = MOST_CHARS - 20

    def repr_Tensor(self, value: torch.Tensor, _: int) -> str:  # noqa: N802  reprlib asks for that name
        return f"tensor {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"

    def repr_ndarray(self, value: np.ndarray[Any, Any], _: int) -> str:
        return f"array {value.dtype} {value.shape}"

    def repr_OrderedDict(self, value: dict[Any, Any], level: int) -> str:  # noqa: N802
        return self.repr_dict(value, level)

    def repr_bytes(self, value: bytes, _: int) -> str:
        return f"{counted(len(value), 'byte')}, {value[:16]!r}{'...' if len(value) > 16 else ''}"

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()  # Python refuses to write out thousands of digits
        return f"a whole number of {bits:,} bits" if bits > _MOST_BITS else super().repr_int(x, level)
