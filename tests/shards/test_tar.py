"""Tars of dray are readable by tarfile, GNU tar and webdataset, and its scanner refuses damaged tars."""

import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator
from xxhash import xxh3_64_intdigest

from dray.shards.errors import CallError, DamagedError
from dray.shards.layout import check_names, check_suffixes, key_of
from dray.shards.tar import BLOCK, END, Member, TarWriter, header, headers, max_member_bytes, scan

Files = list[tuple[str, bytes]]


def write(files: Files) -> bytes:
    """Returns the tar that dray writes of these files."""
    writer = TarWriter()
    for name, data in files:
        writer.add(name.encode(), data)
    return bytes(writer.finish())


def scanned(tar: bytes) -> list[Member]:
    """Returns the members that the scanner finds."""
    return list(scan(io.BytesIO(tar), "x.tar"))


def noted(files: Files) -> list[Member]:
    """Returns the members that the writer recorded."""
    writer = TarWriter()
    for name, data in files:
        writer.add(name.encode(), data)
    return list(map(Member, [name for name, _ in files], writer.offsets, writer.sizes, writer.hashes))


def _allowed(name: str) -> bool:
    try:
        check_names([name])
    except CallError:
        return False
    return True


# Names as builds take them, 1 to 482 bytes: components of printable characters, and some at the limits of ustar.
letters = st.characters(exclude_categories=["C", "Z"], exclude_characters="/", include_characters=" ")
parts = st.text(letters, min_size=1, max_size=20) | st.integers(90, 160).map("x".__mul__) | st.just("é" * 77)
names = st.lists(parts, min_size=1, max_size=3).map("/".join).filter(_allowed)
contents = st.binary(max_size=1100) | st.sampled_from([bytes(511), bytes(512), bytes(513), b"\0" * 1024])


def _unique_files(files: Files) -> Files:
    """Each file is in its own folder, so that no path is both a file and a folder."""
    return [(f"{number}/{name}", data) for number, (name, data) in enumerate(files)]


some_files = st.lists(st.tuples(names, contents), max_size=6).map(_unique_files)


# Tars of the writer, read by other programs


@given(some_files)
@settings(max_examples=100, deadline=None)
def test_tarfile_reads_what_was_written(files: Files) -> None:
    """Names, bytes and the fixed header fields are right."""
    with tarfile.open(fileobj=io.BytesIO(write(files)), mode="r:") as tar:
        found = [(info, tar.extractfile(info)) for info in tar.getmembers()]
        assert [(info.name, file.read()) for info, file in found if file] == files
        assert {(i.mtime, i.uid, i.gid, i.mode, i.uname, i.gname) for i, _ in found} <= {(0, 0, 0, 0o644, "", "")}


@given(some_files)
@settings(max_examples=50, deadline=None)
def test_gnu_tar_reads_what_was_written(files: Files) -> None:
    """It lists the names and extracts the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tar")
        path.write_bytes(write(files))
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        list_names = ["tar", "--quoting-style=literal", "-tf", path]
        listed = subprocess.run(list_names, capture_output=True, check=True, env=environment)
        assert (listed.stdout.decode().split("\n")[:-1], listed.stderr) == ([name for name, _ in files], b"")
        extracted = subprocess.run(["tar", "-xf", path, "-C", folder], capture_output=True, check=True, env=environment)
        assert extracted.stderr == b""
        assert [(name, Path(folder, name).read_bytes()) for name, _ in files] == files


@given(st.lists(st.tuples(names, contents, contents), max_size=5), st.sampled_from(["txt", "tensor.pyd", "a.b.c"]))
@settings(max_examples=100, deadline=None)
def test_webdataset_reads_what_was_written(samples: list[tuple[str, bytes, bytes]], suffix: str) -> None:
    """Every sample has the key that a build derives from its name, and both parts."""
    keys = [key_of(f"{number}-{name}") for number, (name, _, _) in enumerate(samples)]
    written = [(key, a, b) for key, (_, a, b) in zip(keys, samples, strict=True)]
    tar = write([file for key, a, b in written for file in ((f"{key}.cls", a), (f"{key}.{suffix}", b))])
    members = ({**file, "__url__": "x.tar"} for file in tar_file_iterator(io.BytesIO(tar)))
    found = [(sample["__key__"], sample["cls"], sample[suffix]) for sample in group_by_keys(members)]
    assert found == written


@pytest.mark.parametrize(("name", "suffix"), [("__a", "x__"), ("__a__", "txt"), ("a", "__x__"), ("__a/b", "c__")])
def test_no_name_that_builds_take_is_passed_over_by_webdataset(name: str, suffix: str) -> None:
    """Readers skip members like `__meta__`, so no sample may have such a name."""
    try:
        check_names([name])
        check_suffixes([suffix])
    except CallError:
        return
    assert list(tar_file_iterator(io.BytesIO(write([(f"{key_of(name)}.{suffix}", b"x")]))))


@given(some_files)
@settings(max_examples=100, deadline=None)
def test_the_scan_finds_what_the_writer_noted(files: Files) -> None:
    """Offsets, sizes and checksums agree, and the data are at the offsets."""
    tar = write(files)
    assert scanned(tar) == noted(files)
    assert [tar[m.offset : m.offset + m.size] for m in scanned(tar)] == [data for _, data in files]
    assert [m.xxh3_64 for m in scanned(tar)] == [xxh3_64_intdigest(data) for _, data in files]


@given(some_files)
@settings(max_examples=50, deadline=None)
def test_a_tar_is_a_function_of_names_and_contents(files: Files) -> None:
    """Equal inputs give equal bytes, in whole blocks, within the planned size, with two zero blocks at the end."""
    tar = write(files)
    assert tar == write(files)
    assert len(tar) % BLOCK == 0
    assert len(tar) <= len(END) + sum(max_member_bytes(len(name.encode()), len(data)) for name, data in files)
    assert tar.endswith(END)


@pytest.mark.parametrize(
    ("name", "num_blocks"),
    [
        ("n" * 99, 1),
        ("n" * 100, 1),
        ("n" * 101, 3),  # no slash to split at: PAX
        ("é" * 50, 1),
        ("é" * 51, 3),
        ("p" * 155 + "/" + "n" * 100, 1),
        ("p" * 156 + "/" + "n" * 100, 3),
        ("p" * 155 + "/" + "n" * 101, 3),
        ("p" + "/" + "n" * 100, 1),
        ("a/" * 120 + "n", 1),
        ("p" * 120 + "/", 3),
        ("/" + "n" * 100, 3),
        ("n" * 490, 3),
        ("n" * 600, 4),
    ],
    ids=lambda value: f"{len(value.encode())} bytes" if isinstance(value, str) else None,
)
def test_a_header_takes_as_few_blocks_as_the_name_allows(name: str, num_blocks: int) -> None:
    """100 bytes fit a ustar name, 155 more its prefix, where a slash divides them; the rest needs a PAX header."""
    assert len(header(name.encode(), 0)) == num_blocks * BLOCK <= max_member_bytes(len(name.encode()), 0)
    with tarfile.open(fileobj=io.BytesIO(header(name.encode(), 0) + END)) as tar:
        assert tar.getnames() == [name.rstrip("/")]
    assert [member.name for member in scanned(header(name.encode(), 0) + END)] == [name]


@pytest.mark.parametrize("length", range(80, 120))
def test_a_pax_record_counts_its_own_length(length: int) -> None:
    """This holds even if the length itself adds a digit."""
    name = "n" * (length + 100)
    assert scanned(write([(name, b"x")]))[0].name == name


@pytest.mark.parametrize("size", [0, 1, (1 << 32) - 1, (1 << 33) - 1])
def test_tarfile_reads_the_size_of_any_member(size: int) -> None:
    """Sizes up to the 8 GiB of eleven octal digits are read."""
    assert tarfile.TarInfo.frombuf(header(b"a", size), "utf-8", "strict").size == size


class Vast(bytes):
    """Bytes that claim to have almost 4 GiB."""

    def __len__(self) -> int:
        return (4 << 30) - 2000


def test_a_shard_does_not_pass_4_gib() -> None:
    """The message names the member and the solution, and the earlier members are complete."""
    writer = TarWriter()
    writer.add(b"a", b"x")
    with pytest.raises(CallError, match="4 GiB at 'b': build with more shards"):
        writer.add(b"b", Vast())
    assert writer.finish() == write([("a", b"x")])


# The scanner on tars of other programs


LONG = "folder/" * 30 + "name.txt"


def _tarfile_tar(kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, info_type, link in [
            ("d", tarfile.DIRTYPE, ""),
            ("a.txt", tarfile.REGTYPE, ""),
            ("l" * 90, tarfile.SYMTYPE, "t" * 95),
            ("f" * 99, tarfile.FIFOTYPE, ""),
            (LONG, tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "a.txt"),
            ("ü.txt", tarfile.REGTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mtime = info_type, link, 1.5 if kind == tarfile.PAX_FORMAT else 1
            info.size = len(name) if info_type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(name.encode()[: info.size]))
    return file.getvalue()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_tarfile_is_scanned(kind: int) -> None:
    """Only regular files are found, at the offsets of tarfile."""
    tar = _tarfile_tar(kind)
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        expected = [(info.name, info.offset_data, info.size) for info in file if info.isreg()]
    assert [(m.name, m.offset, m.size) for m in scanned(tar)] == expected
    assert [name for name, _, _ in expected] == ["a.txt", LONG, "ü.txt"]


@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_a_tar_of_gnu_tar_is_scanned(kind: str, tmp_path: Path) -> None:
    """Folders, links, long names (if the format has them) and the padding to 10 KiB are handled."""
    long = "short.txt" if kind == "v7" else f"{'f' * 60}/{'g' * 60}/long.txt"
    (tmp_path / "in" / long).parent.mkdir(parents=True)
    (tmp_path / "in" / long).write_bytes(b"long")
    (tmp_path / "in" / "a.txt").write_bytes(bytes(1000))
    (tmp_path / "in" / "link").symlink_to("a.txt")
    command = ["tar", f"--format={kind}", "--sort=name", "-cf", tmp_path / "x.tar", "-C", tmp_path / "in", "."]
    subprocess.run(command, check=True)
    found = scanned((tmp_path / "x.tar").read_bytes())
    assert sorted((m.name, m.size) for m in found) == sorted([("./a.txt", 1000), (f"./{long}", 4)])


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_a_sparse_member_is_refused(kind: str, tmp_path: Path) -> None:
    """Its bytes are not contiguous, so no index can locate them."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(500_000)
        file.write(b"x")
    command = ["tar", f"--format={kind}", "-Scf", tmp_path / "x.tar", "-C", tmp_path, "sparse"]
    subprocess.run(command, check=True)
    with pytest.raises(DamagedError, match=r"x.tar at offset \d+: a sparse member"):
        scanned((tmp_path / "x.tar").read_bytes())


def test_a_global_pax_header_is_passed_over() -> None:
    """`git archive` writes one."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "abc"}) as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    assert [member.name for member in scanned(file.getvalue())] == ["a.txt"]


def test_an_unknown_type_is_skipped_with_its_data() -> None:
    """A dump directory of GNU tar is one; tarfile skips it too."""
    info = tarfile.TarInfo("dump")
    info.type, info.size = b"D", 5
    tar = info.tobuf(tarfile.GNU_FORMAT) + b"aaaaa".ljust(BLOCK, b"\0") + write([("a.txt", b"x")])
    assert [member.name for member in scanned(tar)] == ["a.txt"]


class Zeros(io.RawIOBase):
    """A stream of some bytes, many zeros, and some bytes; the zeros take no memory."""

    def __init__(self, before: bytes, num_zeros: int, after: bytes) -> None:
        self._ends = io.BytesIO(before), io.BytesIO(after)
        self._num_zeros = num_zeros
        self._piece = bytes(16 << 20)

    def read(self, size: int = -1) -> bytes:
        if found := self._ends[0].read(size):
            return found
        if count := min(size, self._num_zeros):
            self._num_zeros -= count
            return self._piece[:count]
        return self._ends[1].read(size)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_part_of_more_than_8_gib_is_scanned_piece_by_piece(kind: int) -> None:
    """Its size does not fit an octal field: GNU tar writes it in base 256, others in a PAX header."""
    info = tarfile.TarInfo("a.x")
    info.size = (8 << 30) + BLOCK
    start = info.tobuf(kind)
    found = list(scan(Zeros(start, info.size, write([("b.y", b"data")])), "x.tar"))  # type: ignore[arg-type]
    assert [(member.name, member.offset, member.size) for member in found] == [
        ("a.x", len(start), info.size),
        ("b.y", len(start) + info.size + BLOCK, 4),
    ]


def test_the_checksum_of_a_part_is_that_of_all_its_pieces() -> None:
    """This holds for a shorter last piece that is not a multiple of a block."""
    data = os.urandom((32 << 20) + 700)
    (member,) = scanned(write([("a.x", data)]))
    assert (member.size, member.xxh3_64) == (len(data), xxh3_64_intdigest(data))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab/é", min_size=1, max_size=60), st.binary(max_size=1500)), min_size=1, max_size=12))
def test_members_added_together_are_as_if_added_one_by_one(members: list[tuple[str, bytes]]) -> None:
    """Bytes and recorded members are equal, even if a name is too long for a plain header."""
    names, parts = [name.encode() for name, _ in members], [data for _, data in members]
    together, one_by_one = TarWriter(), TarWriter()
    together.extend(names, np.array([len(data) for data in parts], np.int64), parts)
    for name, data in zip(names, parts, strict=True):
        one_by_one.add(name, data)
    assert together.finish() == one_by_one.finish()
    assert [together.offsets, together.sizes, together.hashes] == [
        one_by_one.offsets,
        one_by_one.sizes,
        one_by_one.hashes,
    ]


def test_headers_of_large_members_are_as_one_by_one() -> None:
    """All sizes up to the last octal digit are covered."""
    names, sizes = [b"a", b"b" * 100], np.array([0, 8**11 - 1], np.int64)
    assert headers(names, sizes) == b"".join(header(name, int(size)) for name, size in zip(names, sizes, strict=True))


def test_a_part_of_another_size_than_announced_is_refused() -> None:
    """The layout was computed from the announced sizes."""
    with pytest.raises(CallError, match="'a': 2 bytes announced, 1 given"):
        TarWriter().extend([b"a"], np.array([2], np.int64), [b"x"])
