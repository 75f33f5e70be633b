"""Tars that dray did not write, and datasets that index them in place."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dray.pipelines import index_tars
from dray.shards import Snapshot, Store
from dray.shards.layout import DataPlace, Layout, Location
from dray.shards.tar import TarWriter
from dray.shards.versions import read_version
from tests.conftest import Place
from tests.support.datasets import overwrite, store_at

NAMES = ("a/00.tar", "a/01.tar", "wds-000002.tar")  # the last one is named as a shard of the dataset would be
PER_TAR = 4
Samples = Mapping[str, Mapping[str, bytes]]  # key -> suffix -> bytes


def text_of(number: int) -> dict[str, bytes]:
    """The parts of a sample: its number, in two of them."""
    return {"cls": b"%d" % number, "txt": b"text %d" % number}


def tar_of(
    numbers: Sequence[int], parts_of: Callable[[int], Mapping[str, bytes]] = text_of, kind: int = tarfile.GNU_FORMAT
) -> bytes:
    """A tar as Python writes one: with a folder, owners and times, and a name that is too long for a header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        folder = tarfile.TarInfo(f"{'long' * 30}")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in numbers:
            for suffix, data in parts_of(number).items():
                member = tarfile.TarInfo(f"{folder.name if number % 4 == 3 else 'b'}/s{number:04d}.{suffix}")
                member.size, member.mtime, member.uname = len(data), 1_700_000_000, "somebody"
                tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def own_tar() -> bytes:
    """A tar as dray writes them, to put where nobody expects one."""
    writer = TarWriter()
    writer.add(b"a.txt", b"made by dray")
    return bytes(writer.finish())


def key_of(number: int) -> str:
    """The key of a sample in `tar_of`."""
    return f"{'long' * 30 if number % 4 == 3 else 'b'}/s{number:04d}"


def put_tars(store: Store, names: Sequence[str] = NAMES, first: int = 0) -> None:
    """Write one tar a name, of `PER_TAR` samples each."""
    for place, name in enumerate(names):
        replace_tar(store, name, tar_of(range(first + place * PER_TAR, first + (place + 1) * PER_TAR)))


def replace_tar(store: Store, name: str, data: bytes) -> None:
    """Write a tar as another program does: over what is there, on a disk into the same file."""
    if store.local_root is None:
        overwrite(store, name, data)
    else:
        path = Path(store.local_root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def index_at(place: Place, names: Sequence[str] = NAMES, *, prefix: str = "wds", tars: Place | None = None) -> Snapshot:
    """The last version of a dataset that indexes the tars of these names, below `tars` or its own folder."""
    source = tars or place
    index_tars(
        source.url, [*names], prefix=prefix, into=place.url if tars else None,
        storage_options=source.storage_options, into_storage_options=place.storage_options if tars else None,
        allow_removal="100%", keep=None, address="none", progress=False,
    )  # fmt: skip
    data = DataPlace.of(source.url, source.storage_options) if tars else None
    location = Location(store_at(place), Layout(prefix), data)
    return Snapshot.load(location, read_version(location))


def write_tar(path: Path, samples: Samples, *, mode: str = "w") -> Path:
    """A tar of samples; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for key, parts in samples.items():
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def numbered(first: int, count: int) -> Samples:
    """Samples whose part `cls` is their number."""
    return {f"s{number:04d}": {"cls": b"%d" % number} for number in range(first, first + count)}
