"""A tar that is cut, changed or malformed is an error when it is scanned."""

import io
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.errors import DamagedError
from dray.shards.tar import BLOCK, END, _file_header, header, scan
from tests.shards.test_tar import Files, noted, scanned, some_files, write

FILES = [("a.txt", b"one"), ("b/" + "n" * 120 + ".txt", bytes(600)), ("p" * 60 + "/" + "n" * 60, b""), ("c.txt", b"3")]
TAR = write(FILES)


def _is_damaged(tar: bytes) -> bool:
    """True if the scanner refuses it by name and offset; any other error fails the test."""
    try:
        scanned(tar)
    except DamagedError as exc:
        return "x.tar at offset " in str(exc)
    return False


def test_every_cut_is_an_error() -> None:
    """A truncated tar never reads as a shorter one, at block boundaries or elsewhere."""
    cuts = [*range(0, len(TAR), BLOCK), *range(1, len(TAR), 97), len(TAR) - 1]
    assert [cut for cut in cuts if not _is_damaged(TAR[:cut])] == []
    assert not _is_damaged(TAR)


@given(some_files, st.data())
@settings(max_examples=50, deadline=None)
def test_any_cut_of_any_tar_is_an_error(files: Files, data: st.DataObject) -> None:
    """No truncated tar of dray reads as a shorter one."""
    tar = write(files)
    assert _is_damaged(tar[: data.draw(st.integers(0, len(tar) - 1))])


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_every_flipped_header_byte_is_an_error(flip: int) -> None:
    """Only the checksum field has several spellings; flips there keep the values of the header."""
    whole = scanned(TAR)
    starts = [0] + [at for at in range(0, len(TAR), BLOCK) if TAR[at + 257 : at + 262] == b"ustar"]
    missed = []
    for at in {start + byte for start in starts for byte in range(BLOCK)}:
        damaged = TAR[:at] + bytes([TAR[at] ^ flip]) + TAR[at + 1 :]
        if not _is_damaged(damaged) and not (148 <= at % BLOCK < 156 and scanned(damaged) == whole):
            missed.append(at)
    assert missed == []


@given(some_files.filter(bool), st.data())
@settings(max_examples=100, deadline=None)
def test_any_flip_is_an_error_or_differs_from_the_index_or_is_harmless(files: Files, data: st.DataObject) -> None:
    """An undetected flip changes neither name, offset nor bytes of a member."""
    tar = bytearray(write(files))
    tar[data.draw(st.integers(0, len(tar) - 1))] ^= data.draw(st.integers(1, 255))
    if not _is_damaged(bytes(tar)) and scanned(bytes(tar)) == noted(files):
        assert [bytes(tar[m.offset : m.offset + m.size]) for m in noted(files)] == [content for _, content in files]


@given(some_files.filter(bool), st.data())
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_no_tar_are_damaged(files: Files, data: st.DataObject) -> None:
    """Garbage anywhere in a tar gives DamagedError or members, never another error."""
    tar = bytearray(write(files))
    start = data.draw(st.integers(0, len(tar) - 1))
    garbage = data.draw(st.binary(min_size=1, max_size=600))
    tar[start : start + len(garbage)] = garbage
    _is_damaged(bytes(tar))


def _sealed(block: bytes) -> bytes:
    """Returns a header with a valid checksum."""
    body = bytearray(block)
    body[148:156] = b" " * 8
    body[148:156] = b"%06o\0 " % sum(body)
    return bytes(body)


def _with_size(size_field: bytes) -> bytes:
    block = bytearray(header(b"a.txt", 0))
    block[124:136] = size_field
    return _sealed(bytes(block)) + write([("b.txt", b"2")])


def _pax(record: bytes) -> bytes:
    block = bytearray(header(b"pax", len(record)))
    block[156:157] = tarfile.XHDTYPE
    return _sealed(bytes(block)) + record.ljust(-(-len(record) // BLOCK) * BLOCK, b"\0") + write([("b.txt", b"2")])


@pytest.mark.parametrize(
    "tar",
    [
        pytest.param(b"", id="empty file"),
        pytest.param(bytes(BLOCK), id="one zero block"),
        pytest.param(TAR[:-BLOCK], id="a single zero block at the end"),
        pytest.param(TAR[: -2 * BLOCK], id="no end"),
        pytest.param(TAR + b"x", id="a byte after the end"),
        pytest.param(TAR + bytes(BLOCK) + TAR, id="two tars"),
        pytest.param(TAR[: -2 * BLOCK] + bytes(BLOCK) + TAR, id="a zero block in the middle"),
        pytest.param(b"\x1f\x8b" + os.urandom(1022), id="gzip"),
        pytest.param(_with_size(b"\xff" * 12), id="a negative size"),
        pytest.param(_with_size(b"\xff" * 10 + b"\xfe\x01"), id="a size of minus one block"),
        pytest.param(_with_size(b"\x80" + b"\x00" * 3 + b"\xff" * 8), id="a size of 2^64"),
        pytest.param(_with_size(b"\x80" + b"\xff" * 11), id="a size of 2^88"),
        pytest.param(_with_size(b"7" * 11 + b"\0"), id="a size of 8 GiB"),
        pytest.param(_with_size(b"00000009999\0"), id="a size that is not octal"),
        pytest.param(_pax(b"22 size=9999999999999\n"), id="a PAX size beyond the tar"),
        pytest.param(_pax(b"30 size=999999999999999999999\n"), id="a PAX size beyond any tar"),
        pytest.param(_pax(b"6009 size=" + b"9" * 5998 + b"\n"), id="a PAX size of 5998 digits"),
        pytest.param(_pax(b"9" * 6000 + b" path=x\n"), id="a PAX length of 6000 digits"),
        pytest.param(_pax(b"11 size=-5\n"), id="a negative PAX size"),
        pytest.param(_pax(b"8 path=x\n"), id="a PAX length that is wrong"),
        pytest.param(_pax(b"0 path=x\n"), id="a PAX length of nothing"),
        pytest.param(_pax(b"path=x\n"), id="a PAX record without length"),
    ],
)
def test_a_broken_tar_is_damaged(tar: bytes) -> None:
    """The error names the offset; the tar never reads as a shorter one."""
    assert _is_damaged(tar)


def test_zeros_after_the_end_are_padding() -> None:
    """GNU tar and tarfile pad to 10 KiB."""
    assert scanned(TAR + bytes(10240 - BLOCK)) == scanned(TAR)
    assert scanned(END) == []


def test_a_stream_that_fails_is_not_hidden() -> None:
    """The error of the stream is raised, as it says more than a truncated tar would."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 1024:
                raise TimeoutError("no answer")
            return super().read(size)

    with pytest.raises(TimeoutError):
        list(scan(Failing(TAR), "x.tar"))


@settings(max_examples=200, deadline=None)
@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120),
    size=st.integers(0, 1 << 34),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CONTTYPE]),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
    changes=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=2),
    is_checked=st.booleans(),
)
def test_the_fast_reader_of_headers_is_never_of_another_opinion_than_tarfile(
    name: str, size: int, kind: bytes, form: int, changes: list[tuple[int, int]], is_checked: bool
) -> None:
    """Whatever the bytes, also with a right checksum over wrong ones: the same member, or tarfile decides."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.uname, info.mtime = size, kind, "somebody", 1_700_000_000
    try:
        block = bytearray(info.tobuf(form)[-512:])
    except ValueError:  # ustar cannot hold it
        return
    for offset, value in changes:
        block[offset] = value
    if is_checked:
        block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    found = _file_header(bytes(block))
    if found is not None:
        expected = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        assert found == (expected.name, expected.size, expected.type)
