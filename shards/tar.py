"""Shards as tars: a writer whose bytes depend on names and contents alone, and a strict scanner for any tar.

The writer makes plain ustar headers by hand (a few microseconds a member where `tarfile` takes tens) with mtime 0,
uid and gid 0, mode 0644, and records offset, size and xxh3_64 of each member. Only a name that ustar cannot
hold gets a PAX header. The scanner raises an error for a truncated or damaged tar; it never reads as a shorter one.
"""

import re
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64, xxh3_64_intdigest

from dray.shards.errors import CallError, DamagedError
from dray.shards.parsing.arrays import ArrayLayout, layout_of

BLOCK = 512
MAX_SHARD_BYTES = 4 << 30
END = bytes(2 * BLOCK)  # two zero blocks close an archive

_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_ZEROS = bytes(BLOCK)
_PIECE_BYTES = 16 << 20  # read at a time from a member; a multiple of BLOCK
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by first bytes
_NUMBER = rb"(?:[0-7]{7}[\0 ]|[0-7]{6}[\0 ]{2})"  # eight bytes of a header, as most programs write them
_NUMBERS = re.compile(_NUMBER * 3 + rb"([0-7]{11})[\0 ][0-7]{11}[\0 ]([0-7]{6})[\0 ]{2}")  # mode to checksum
_DEVICE = re.compile(rb"(?:[0-7]{7}\0|\0{8}){2}")
_PADS = [bytes(-size % BLOCK) for size in range(BLOCK)]  # by size % 512


def _fields(kind: bytes) -> tuple[bytes, bytes, int]:
    """Returns the fields before size, those after checksum, and their sum with a blank checksum."""
    before = b"0000644\0" + b"0000000\0" + b"0000000\0"  # mode, uid, gid
    after = kind + bytes(100) + b"ustar\0" + b"00" + bytes(32) + bytes(32) + b"0000000\0" + b"0000000\0"
    return before, after, sum(before) + sum(after) + 8 * ord(" ")


_FILE = _fields(tarfile.REGTYPE)
_PAX = _fields(tarfile.XHDTYPE)


def _block(name: bytes, size: int, fields: tuple[bytes, bytes, int] = _FILE, prefix: bytes = b"") -> bytes:
    before, after, fixed_sum = fields
    size_and_mtime = b"%011o\x0000000000000\0" % size
    checksum = fixed_sum + sum(name) + sum(size_and_mtime) + sum(prefix)
    head = b"".join((name, _ZEROS[len(name) : 100], before, size_and_mtime, b"%06o\0 " % checksum, after))
    return head + prefix + _ZEROS[len(prefix) : 167]  # 155 bytes of prefix, 12 to the end of the block


def header(name: bytes, size: int) -> bytes:
    """Returns the header of one member: a ustar block, preceded by a PAX header if the name needs it.

    Args:
        name: The member's path, UTF-8.
        size: Size of its data in bytes, below 8 GiB.
    """
    if len(name) <= 100:
        return _block(name, size)
    cut = name.find(b"/", max(0, len(name) - 101), 156)
    if 0 < cut <= 155 and cut < len(name) - 1:
        return _block(name[cut + 1 :], size, prefix=name[:cut])
    record = _pax_record(b"path", name)
    return b"".join(
        (_block(b"././@PaxHeader", len(record), _PAX), record, _PADS[len(record) % BLOCK], _block(name[:100], size))
    )


def begins_as_ours(block: bytes | memoryview) -> bool:
    """Returns whether the first block of a tar is a header as `header` makes it, by the fields that are always equal.

    Other programs write owners, times or another magic.
    """
    fixed = bytes(block[100:124]), bytes(block[136:148]), bytes(block[156:345])
    return fixed in [(before, b"00000000000\0", after) for before, after, _ in (_FILE, _PAX)]


def headers(names: Sequence[bytes], sizes: NDArray[np.int64]) -> bytes:
    """Returns the headers of n members, n times 512 bytes: those of `header`, five times as fast.

    Args:
        names: n paths of at most 100 bytes.
        sizes: (n,) sizes of their data in bytes.
    """
    blocks = np.tile(np.frombuffer(_block(b"", 0), np.uint8), (len(names), 1))
    blocks[:, :100] = np.array(names, "S100").view(np.uint8).reshape(-1, 100)
    blocks[:, 124:135] = _octal(sizes, 11)
    blocks[:, 148:156] = ord(" ")
    blocks[:, 148:154] = _octal(blocks.sum(axis=1, dtype=np.int64), 6)
    blocks[:, 154] = 0
    return blocks.tobytes()


def _octal(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Returns (n, width) octal digits in ASCII."""
    shifts = np.arange(3 * (width - 1), -1, -3)
    return (numbers[:, None] >> shifts & 7).astype(np.uint8) + np.uint8(ord("0"))


def _pax_record(key: bytes, value: bytes) -> bytes:
    r"""`LENGTH key=value\n`, where LENGTH counts itself too (POSIX.1-2001 pax)."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(b"%d" % len(body))
    length = len(body) + len(b"%d" % length)
    return b"%d%b" % (length, body)


def max_member_bytes(name_bytes: int, size: int) -> int:
    """Returns an upper bound of a member's size in a tar: headers and padded data."""
    pax = BLOCK + (name_bytes + 16 + BLOCK - 1) // BLOCK * BLOCK if name_bytes > 100 else 0
    return pax + BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK


class TarWriter:
    """Builds one shard in memory and records where each member is.

    Attributes:
        offsets: Start of each member's data, in the order of `add`, uint64.
        sizes: Bytes of each member's data, uint64.
        hashes: xxh3_64 of each member's data, uint64.
    """

    def __init__(self) -> None:
        self._tar = bytearray()
        self.offsets = array("Q")
        self.sizes = array("Q")
        self.hashes = array("Q")

    def add(self, name: bytes, data: bytes) -> None:
        """Appends a member.

        Raises:
            CallError: The shard would exceed 4 GiB.
        """
        size = len(data)
        tar = self._tar
        start = header(name, size)
        if len(tar) + len(start) + size > MAX_SHARD_BYTES - 3 * BLOCK:
            raise CallError(f"a shard passes 4 GiB at {name.decode()!r}: build with more shards")
        tar += start
        self.offsets.append(len(tar))
        self.sizes.append(size)
        self.hashes.append(xxh3_64_intdigest(data))
        tar += data
        tar += _PADS[size % BLOCK]

    def extend(self, names: Sequence[bytes], sizes: NDArray[np.int64], parts: Iterable[bytes]) -> None:
        """Appends n members of known sizes; the hot path of packing, as their headers are made together.

        Args:
            names: n paths.
            sizes: (n,) sizes of the parts in bytes.
            parts: n parts, in order.

        Raises:
            CallError: The shard would exceed 4 GiB, or a part has another size.
        """
        if max(map(len, names)) > 100:
            for name, data in zip(names, parts, strict=True):
                self.add(name, data)
            return
        tar, hashes, blocks = self._tar, self.hashes, headers(names, sizes)
        ends = np.cumsum(BLOCK + (sizes + BLOCK - 1) // BLOCK * BLOCK) + len(tar)
        if ends[-1] > MAX_SHARD_BYTES - len(END):
            raise CallError(f"a shard passes 4 GiB at {names[-1].decode()!r}: build with more shards")
        for start, size, data in zip(range(0, len(blocks), BLOCK), sizes.tolist(), parts, strict=True):
            if len(data) != size:
                raise CallError(f"{names[start // BLOCK].decode()!r}: {size} bytes announced, {len(data)} given")
            hashes.append(xxh3_64_intdigest(data))
            tar += blocks[start : start + BLOCK]
            tar += data
            tar += _PADS[size % BLOCK]
        self.offsets.frombytes((ends - (sizes + BLOCK - 1) // BLOCK * BLOCK).astype(np.uint64).tobytes())
        self.sizes.frombytes(sizes.astype(np.uint64).tobytes())

    def finish(self) -> bytearray:
        """Returns the whole archive; the writer cannot be used afterwards."""
        self._tar += END
        return self._tar


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int  # where its data start
    size: int  # bytes
    xxh3_64: int
    array: ArrayLayout | None = None  # layout of a `.npy` part


def scan(stream: BinaryIO, where: str, on_other: Callable[[str, bytes], None] | None = None) -> Iterator[Member]:
    """Yields the regular files of any tar (v7, ustar, PAX, GNU long names), read to its end.

    Args:
        stream: Stream at the tar's start; it is only read forward.
        where: The tar's URL, for messages.
        on_other: Called with name and type of each member that is not a regular file: folders, links, devices.

    Raises:
        DamagedError: A header is damaged, or the tar ends early or continues after its end; names the offset.
    """
    reader = _Blocks(stream, where)
    overrides: dict[str, str] = {}
    while (info := reader.next_header()) is not None:
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            overrides |= _pax_values(reader.read(info.size), reader)
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            overrides["path"] = reader.read(info.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type in _REGULAR:
            name, size = overrides.get("path", info.name), int(overrides.get("size") or info.size)
            offset = reader.offset
            digest, head = reader.digest(size)
            yield Member(name, offset, size, digest, layout_of(name, head, size))
            overrides = {}
        elif info.type == tarfile.GNUTYPE_SPARSE:
            raise reader.damaged("a sparse member: write the tar again without it")
        elif info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):  # a comment for all members, a link's target
            reader.read(info.size)
        else:  # directories, links and devices have no data, unknown types may; WebDataset skips all of them
            reader.digest(0 if info.type in tarfile.SUPPORTED_TYPES else info.size)
            if on_other is not None:
                on_other(overrides.get("path", info.name), info.type)
            overrides = {}


class _Blocks:
    """Reads a tar block by block and keeps its offset."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream = stream
        self._where = where
        self.offset = 0

    def damaged(self, what: str) -> DamagedError:
        return DamagedError(what, url=self._where, offset=self.offset)

    def read(self, size: int) -> bytes:
        """Returns data of that size; its padding is read too."""
        if not 0 <= size <= _PIECE_BYTES:
            raise self.damaged(f"{size} bytes where at most {_PIECE_BYTES} expected: the header is damaged")
        padded = (size + BLOCK - 1) // BLOCK * BLOCK
        data = self._stream.read(padded)
        if len(data) != padded:
            raise self.damaged(f"{size} bytes of data expected, found {len(data)}: the tar was cut short")
        self.offset += padded
        return data[:size]

    def digest(self, size: int) -> tuple[int, bytes]:
        """Returns xxh3_64 of data of that size, and its beginning; memory holds one piece of it at a time."""
        data = self.read(min(size, _PIECE_BYTES))
        if len(data) == size:
            return xxh3_64_intdigest(data), data
        hasher = xxh3_64(data)
        for start in range(_PIECE_BYTES, size, _PIECE_BYTES):
            hasher.update(self.read(min(_PIECE_BYTES, size - start)))
        return hasher.intdigest(), data

    def next_header(self) -> "_Header | tarfile.TarInfo | None":
        """Returns the next header, or None at a proper end of the archive."""
        block = self._stream.read(BLOCK)
        if not block.strip(b"\0") and len(block) == BLOCK:
            self._check_end()
            return None
        try:
            info = _file_header(block) or tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as exc:
            self._check_plain(block)
            raise self.damaged(f"no tar header here ({exc}): the tar was cut short or damaged") from exc
        self.offset += BLOCK
        return info

    def _check_plain(self, block: bytes) -> None:
        kind = next((kind for magic, kind in _COMPRESSED.items() if block.startswith(magic)), None)
        if kind and not self.offset:
            raise self.damaged(f"it is compressed ({kind}), and tars are read at any offset: unpack it first")

    def _check_end(self) -> None:
        if len(block := self._stream.read(BLOCK)) != BLOCK or block.strip(b"\0"):
            raise self.damaged("one zero block where two end an archive: the tar was cut short or damaged")
        while rest := self._stream.read(1 << 20):
            if rest.strip(b"\0"):
                raise self.damaged("data after the archive's end: several tars in one file? Split them")


class _Header(NamedTuple):
    """The fields of a header that say which member follows."""

    name: str
    size: int  # bytes
    type: bytes


def _file_header(block: bytes) -> _Header | None:
    """Returns what `tarfile` would read from the header of a regular file, in a fifth of its time.

    None: another type, a size beyond 8 GiB, or anything else that is unusual; `tarfile` then decides.
    """
    kind, numbers = block[156:157], _NUMBERS.fullmatch(block, 100, 156)
    if numbers is None or kind not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not _DEVICE.fullmatch(block, 329, 345):
        return None
    if int(numbers[2], 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    if kind == tarfile.AREGTYPE and name.endswith(b"/"):  # a directory of a v7 tar
        return None
    path = prefix + b"/" + name if prefix else name
    return _Header(path.decode("utf-8", "surrogateescape"), int(numbers[1], 8), kind)


def _pax_values(data: bytes, reader: _Blocks) -> dict[str, str]:
    """The records of a PAX header that say where a member lies: its path and size."""
    values: dict[str, str] = {}
    while data.strip(b"\0"):
        length, separator, _ = data.partition(b" ")
        record = data[: int(length)] if separator and _is_number(length) and int(length) <= len(data) else b""
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not record.endswith(b"\n") or (key == b"size" and not _is_number(value[:-1])):
            raise reader.damaged("a broken PAX header")
        if key in (b"path", b"size"):
            values[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
        if key.startswith(b"GNU.sparse"):
            raise reader.damaged("a sparse member: write the tar again without it")
        data = data[int(length) :]
    return values


def _is_number(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) <= 20  # int() refuses thousands of digits with an error of its own
