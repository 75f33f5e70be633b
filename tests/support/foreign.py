"""Tars that dray did not write, and datasets that index them in place."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from dray.pipelines.building.manifest import put_rows
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import Retention
from dray.shards import Shard, ShardIndex, Snapshot, Store
from dray.shards.index import digest_of
from dray.shards.layout import Layout, Location
from dray.shards.log import Intent, create_intent, new_write_id, now, numbers_in, put_content, read_head, read_intent
from dray.shards.manifest import Accounting, Kind, Manifest, part_table
from dray.shards.parsing.parquet import sample_schema
from dray.shards.tar import TarWriter, scan
from tests.conftest import Place
from tests.support.datasets import overwrite

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


def index_at(
    place: Place,
    names: Sequence[str] = NAMES,
    *,
    prefix: str = "wds",
    tars: Place | None = None,
    retention: Retention | None = None,
) -> Snapshot:
    """The next version of a dataset that indexes the tars of these names, below `tars` or its own folder."""
    location = Location(Store(place.url, place.storage_options), Layout(prefix))
    store = location.store if tars is None else Store(tars.url, tars.storage_options)
    head = read_head(location)
    last = Snapshot.load(location, head) if head else None
    intent = _announced(location, last, len(names))
    indexes = [_scanned(store, name) for name in names]
    shards = [_stored(location, store, *found) for found in zip(intent.numbers, names, indexes, strict=True)]
    parts, shown = part_table({}, shards, [index.array_types() for index in indexes])
    rows = [
        (key, shard.number, row)
        for shard, index in zip(shards, indexes, strict=True)
        for row, key in enumerate(index.keys)
    ]
    columns = zip(*sorted(rows), strict=True)
    schema = sample_schema(has_sources=False)
    table = pa.table(dict(zip(schema.names, map(pa.array, columns), strict=True)), schema=schema)
    manifest = Manifest(
        kind=Kind.INDEXED,
        base=None if tars is None else store.url,
        prefix=prefix,
        source_url="",
        recipe={},
        intent=intent.number,
        num_samples=len(rows),
        accounting=Accounting(inputs=0, packed=0),
        parts=parts,
        shards=shown,
        samples=put_rows(location, intent, table, None),
    )
    made = commit_version(location, manifest, last, retention=retention)
    assert made is not None
    return made


def _announced(location: Location, last: Snapshot | None, count: int) -> Intent:
    numbers = numbers_in(location.store, location.layout.intents)
    first = read_intent(location, numbers[-1]).numbers.stop if numbers else 0
    return create_intent(
        location,
        Intent(
            number=len(numbers) + 1, plan=digest_of(b"%d" % count), base=last.version if last else 0, first=first,
            count=count, shards=(), digests=(), write_id=new_write_id(), created=now(),
        ),
    )  # fmt: skip


def _scanned(store: Store, name: str) -> ShardIndex:
    body = store.get(name)
    members = list(scan(io.BytesIO(body), store.url_of(name)))
    return ShardIndex.of_members(members, shard_bytes=len(body), where=store.url_of(name))


def _stored(location: Location, store: Store, number: int, name: str, index: ShardIndex) -> Shard:
    body = index.to_bytes()
    put_content(location.store, location.layout.index(number), body)
    info = store.head(name)
    assert info is not None
    is_file = store.local_root is not None
    return Shard(
        number=number,
        num_bytes=index.shard_bytes,
        num_samples=len(index.keys),
        digest=digest_of(body),
        index_digest=digest_of(body),
        parts=index.parts(),
        name=name,
        etag=None if is_file else info.etag,
        mtime=Path(str(store.local_root), name).stat().st_mtime_ns if is_file else None,
    )


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
