"""`dray show`: print the location and the safely decoded parts of one sample.

Values are never printed as they are: text is quoted and truncated, arrays are shown by dtype and shape, and control
characters are replaced.
"""

import reprlib
from typing import Annotated, Any

import numpy as np
import torch
import typer

from dray.cluster.cli.options import AllowList, AllowPickle, DataOptions, VersionOptions
from dray.pipelines.progress import WORDS
from dray.shards import DamagedError, NotFoundError, RefusedError, Snapshot
from dray.shards.codecs.decode import Decoder
from dray.shards.index import ShardIndex
from dray.shards.manifest import Shard
from dray.shards.messages import counted

MAX_CHARS = 200  # of a printed value
_MAX_BITS = 600  # of an integer that is printed with all of its digits


def show(
    dataset: VersionOptions,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Key of the sample: its name with the dots replaced by dashes.")
    ],
    *,
    data: DataOptions,
    allow: AllowList = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Show one sample: its shard, and the location and value of each part.

    Parts are decoded safely: a pickle that names anything outside the safe list is refused, and the reason is shown.

    [bold]Examples[/]

    [cyan]dray show dray-quickstart/shards/train digit-0042[/]

    As it was in version 3:

    [cyan]dray show s3://lab/digits/train a7 --version 3[/]
    """
    snapshots, missing = dataset.snapshots(data), list[NotFoundError]()
    for snapshot in snapshots:
        try:
            place = snapshot.find(key)
        except NotFoundError as exc:
            missing.append(exc)
        else:
            _print_sample(snapshot, key, *place, Decoder(allow=allow or (), allow_pickle=allow_pickle))
    if len(missing) == len(snapshots):
        raise missing[0] if len(missing) == 1 else NotFoundError("; ".join(map(str, missing)))


def _print_sample(snapshot: Snapshot, key: str, shard: Shard, index: ShardIndex, row: int, decoder: Decoder) -> None:
    parts = snapshot.read_row(shard, index, row)
    _print(f"{snapshot.store.url} {snapshot.layout.prefix} version {snapshot.version}, key {key!r}")
    _print(f"  shard   {snapshot.shard_url(shard)}")
    _print(f"  sample  {row} of {shard.num_samples:,}, counted from 0")
    if (source := snapshot.source_of(key)) is not None:
        _print(f"  source  {source}")
    for column, suffix in enumerate(index.suffixes):
        if suffix in parts:
            _print(f"  {suffix}: {counted(len(parts[suffix]), 'byte')} at offset {index.offsets[row, column]}")
            _print(f"    {describe_part(suffix, parts[suffix], decoder)}")


def _print(line: str) -> None:
    typer.echo("".join(letter if letter.isprintable() else "?" for letter in line))


def describe_part(suffix: str, data: bytes, decoder: Decoder | None = None) -> str:
    """Returns the value of a part in one line, or why it cannot be decoded."""
    try:
        return describe((decoder or Decoder()).part(suffix, data))
    except RefusedError as exc:
        return f"refused: {WORDS.get()(str(exc))}"
    except (DamagedError, ModuleNotFoundError) as exc:
        return f"not decoded: {exc}"


def describe(value: Any) -> str:
    """Returns a value in at most 200 characters."""
    text = _Short().repr(value)
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 3]}..."


class _Short(reprlib.Repr):
    """A `repr` that truncates long and deep values; reprlib finds its methods by the name of the value's type."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = MAX_CHARS - 20

    def repr_Tensor(self, value: torch.Tensor, _: int) -> str:  # noqa: N802  reprlib looks for this name
        return f"tensor {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"

    def repr_ndarray(self, value: np.ndarray[Any, Any], _: int) -> str:
        return f"array {value.dtype} {value.shape}"

    def repr_OrderedDict(self, value: dict[Any, Any], level: int) -> str:  # noqa: N802
        return self.repr_dict(value, level)

    def repr_bytes(self, value: bytes, _: int) -> str:
        return f"{counted(len(value), 'byte')}, {value[:16]!r}{'...' if len(value) > 16 else ''}"

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()  # Python refuses to format thousands of digits
        return f"an integer of {bits:,} bits" if bits > _MAX_BITS else super().repr_int(x, level)
