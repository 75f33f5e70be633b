"""The index of a shard survives a round trip, has the documented layout, and is refused if it is damaged."""

import io
import json
import tarfile

import hypothesis.extra.numpy as hnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator

from dray.shards.errors import DamagedError
from dray.shards.index import ShardIndex
from dray.shards.parsing.arrays import ArrayLayout, layouts_in
from dray.shards.tar import BLOCK, Member, TarWriter, scan
from tests.support.datasets import npy


@st.composite
def indexes(draw: st.DrawFn) -> ShardIndex:
    """Any index, including one without samples or suffixes."""
    keys = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6))
    suffixes = draw(st.lists(st.text("abc.-é", min_size=1, max_size=4), unique=True, max_size=3))
    shape = (len(keys), len(suffixes))
    is_there = draw(hnp.arrays(bool, shape))
    sizes = draw(hnp.arrays(np.uint64, shape, elements=st.integers(0, 1 << 58))) * is_there
    blocks = (is_there * (1 + (sizes + np.uint64(BLOCK - 1)) // BLOCK)).ravel()
    ends = np.cumsum(blocks * BLOCK, dtype=np.uint64)
    starts = (ends - (blocks - is_there.ravel()) * np.uint64(BLOCK)).reshape(shape)
    has_sources, of_source = draw(st.booleans()), hnp.arrays(np.uint64, len(keys))
    return ShardIndex(
        keys=keys,
        suffixes=tuple(suffixes),
        offsets=starts * is_there,
        sizes=sizes,
        xxh3_64=draw(hnp.arrays(np.uint64, shape)) * is_there,
        shard_bytes=int(ends.max(initial=0)) + draw(st.integers(0, 1 << 40)),
        arrays=draw(arrays_of(suffixes, sizes, is_there)),
        sources=draw(of_source) if has_sources else None,
        fingerprints=draw(of_source) if has_sources else None,
    )


@st.composite
def arrays_of(draw: st.DrawFn, suffixes: list[str], sizes: np.ndarray, is_there: np.ndarray) -> dict[str, ArrayLayout]:
    """Layouts for some of the suffixes whose parts have one size."""
    found = {}
    for column, suffix in enumerate(suffixes):
        only = set(sizes[is_there[:, column], column].tolist())
        if len(only) == 1 and draw(st.booleans()):
            data_offset = draw(st.integers(0, min(only)))
            found[suffix] = ArrayLayout(dtype="|u1", shape=(1, min(only) - data_offset), data_offset=data_offset)
    return found


def same(one: ShardIndex, two: ShardIndex) -> bool:
    """True if two indexes have equal values of equal types."""
    said = [(list(index.keys), index.suffixes, index.shard_bytes, index.arrays) for index in (one, two)]
    names = ("offsets", "sizes", "xxh3_64", "sources", "fingerprints")
    columns = [(getattr(one, name), getattr(two, name)) for name in names]
    return said[0] == said[1] and all(
        a is b is None or (np.array_equal(a, b) and a.dtype == b.dtype) for a, b in columns
    )


def of_tar(tar: bytes) -> ShardIndex:
    """Returns the index of a tar."""
    return ShardIndex.of_members(scan(io.BytesIO(tar), "x.tar"), shard_bytes=len(tar), where="x.tar")


def tar_of(names: list[str]) -> bytes:
    """Returns a tar of members whose data are their names."""
    writer = TarWriter()
    for name in names:
        writer.add(name.encode(), name.encode())
    return bytes(writer.finish())


@given(indexes())
@settings(max_examples=100, deadline=None)
def test_an_index_comes_back_as_it_was(index: ShardIndex) -> None:
    """Values and types are preserved, and equal indexes give equal bytes."""
    again = ShardIndex.from_bytes(index.to_bytes(), "x")
    assert same(again, index)
    assert again.to_bytes() == index.to_bytes()


@pytest.fixture
def index() -> ShardIndex:
    """An index of 100 samples with two parts."""
    return of_tar(tar_of([f"key-{number:03d}.{suffix}" for number in range(100) for suffix in ("cls", "tensor.pyd")]))


def test_fixed_width_columns_come_before_the_keys(index: ShardIndex) -> None:
    """Each column is contiguous, part by part, so that rows can be read as a range."""
    data = index.to_bytes()
    places = []
    for column in range(2):
        for matrix in (index.offsets, index.sizes, index.xxh3_64):
            places.append(data.index(matrix[:, column].tobytes()))
    places.append(data.index(b"key-000key-001key-002"))
    assert places == sorted(places)


def test_any_arrow_reader_opens_it(index: ShardIndex) -> None:
    """The columns have descriptive names."""
    table = pa.ipc.open_file(index.to_bytes()).read_all()
    assert table.column_names == [
        *("cls/offset", "cls/size", "cls/xxh3_64"),
        *("tensor.pyd/offset", "tensor.pyd/size", "tensor.pyd/xxh3_64"),
        "key",
    ]
    assert table["key"][99].as_py() == "key-099"


def test_a_sample_takes_24_bytes_a_part_and_its_key() -> None:
    """The size of one more sample is the mean over many."""
    small, large = ([f"{number:08d}.x" for number in range(count)] for count in (1000, 2000))
    added = len(of_tar(tar_of(large)).to_bytes()) - len(of_tar(tar_of(small)).to_bytes())
    assert added / 1000 == pytest.approx(24 + 8 + 4, abs=0.5)  # Arrow stores a four-byte offset for each key


# Tars of other programs


def test_a_missing_part_is_offset_0() -> None:
    """No data starts at 0 in a tar; suffixes are in order of first appearance."""
    found = of_tar(tar_of(["a.x", "a.y", "b.y", "c.z", "c.x"]))
    assert (found.keys, found.suffixes) == (["a", "b", "c"], ("x", "y", "z"))
    assert (found.offsets > 0).tolist() == [[True, True, False], [False, True, False], [True, False, True]]
    assert found.sizes.tolist() == [[3, 3, 0], [0, 3, 0], [3, 0, 3]]


@pytest.mark.parametrize(
    "names",
    [
        ["a.x", "a.y", "b.x"],
        ["d/a.x", "d.e/a.x.y", "./b.c.d.e"],
        ["a.x", "b.x", "a.x"],  # a key that appears again later is another sample
        ["__meta__", "__meta__/a.x", "__a__.x", "a/__b__.x", "__c.x__"],
        ["noext", "d/noext", "a.", "a.x"],
        ["ü/日本.x", "a b.x"],
    ],
)
def test_samples_are_grouped_as_webdataset_groups_them(names: list[str]) -> None:
    """Keys and parts agree for any tar."""
    tar = tar_of(names)
    members = ({**file, "__url__": ""} for file in tar_file_iterator(io.BytesIO(tar)))
    expected = [
        (sample.pop("__key__"), {name: data for name, data in sample.items() if name != "__url__"})
        for sample in group_by_keys(members)
    ]
    found = of_tar(tar)
    rows = zip(found.keys, found.offsets.tolist(), found.sizes.tolist(), strict=True)
    assert expected == [
        (key, {s: tar[at : at + n] for s, at, n in zip(found.suffixes, offsets, sizes, strict=True) if at})
        for key, offsets, sizes in rows
    ]


def test_a_part_that_comes_twice_is_damage() -> None:
    """WebDataset refuses such a sample as well; the message names it."""
    with pytest.raises(DamagedError, match=r"x.tar at offset 2560: key 'a' has 'x' twice"):
        of_tar(tar_of(["a.x", "a.y", "a.x"]))


def test_a_key_that_is_not_utf_8_is_refused() -> None:
    """No index could store it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("ü.x"))
    with pytest.raises(DamagedError, match=r"x.tar at offset 512: the name .* is not UTF-8"):
        of_tar(file.getvalue())


def test_a_tar_without_samples_has_an_empty_index() -> None:
    """An empty index is written and read like any other."""
    found = ShardIndex.from_bytes(of_tar(tar_of([])).to_bytes(), "x")
    assert (found.keys, found.suffixes, found.offsets.shape, found.shard_bytes) == ([], (), (0, 0), 1024)


def test_a_part_of_more_than_4_gib_fits() -> None:
    """Offsets, sizes and their sums have 64 bits."""
    members = [Member("a.x", 512, 5 << 30, (1 << 64) - 1), Member("b.x", (5 << 30) + 1024, 1 << 40, 0)]
    shard_bytes = (5 << 30) + (1 << 40) + 2048
    index = ShardIndex.of_members(members, shard_bytes=shard_bytes, where="x")
    found = ShardIndex.from_bytes(index.to_bytes(), "x", (2, shard_bytes))
    assert found.offsets.tolist() == [[512], [(5 << 30) + 1024]]
    assert found.sizes.tolist() == [[5 << 30], [1 << 40]]


# Arrays of one dtype and shape


def tar_with(parts: dict[str, bytes]) -> bytes:
    """Returns a tar of members with these names and data."""
    writer = TarWriter()
    for name, data in parts.items():
        writer.add(name.encode(), data)
    return bytes(writer.finish())


npy_arrays = hnp.arrays(
    st.sampled_from(["?", "u1", "<i8", "<f2", "<c16", "S3", "<U2", "<M8[ns]", "<m8[25us]"]),
    hnp.array_shapes(min_dims=0),
)


@given(npy_arrays)
@settings(max_examples=100, deadline=None)
def test_the_layout_of_constant_arrays_is_noted(array: np.ndarray) -> None:
    """A reader finds dtype, shape and elements without the header."""
    tar = tar_with({"a.x.npy": npy(array), "b.x.npy": npy(array), "b.cls": b"5"})
    index = of_tar(tar)
    layout = index.arrays["x.npy"]
    assert (index.arrays.keys(), layout.shape) == ({"x.npy"}, array.shape)
    for row in range(2):
        start = int(index.offsets[row, 0]) + layout.data_offset
        end = int(index.offsets[row, 0] + index.sizes[row, 0])
        assert np.frombuffer(tar[start:end], layout.dtype).tobytes() == array.tobytes()
    assert layouts_in(tar, index.suffixes, index.offsets, index.sizes) == index.arrays
    assert ShardIndex.from_bytes(index.to_bytes(), "x").arrays == index.arrays


@pytest.mark.parametrize(
    "parts",
    {
        "two shapes": [npy(np.zeros(2)), npy(np.zeros(3))],
        "two dtypes": [npy(np.zeros(2, "<f4")), npy(np.zeros(1, "<f8"))],
        "big-endian": [npy(np.zeros(2, ">f4"))],
        "Fortran order": [npy(np.zeros((2, 3), order="F"))],
        "structures": [npy(np.zeros(2, [("a", "<f4")]))],
        "bytes that follow": [npy(np.zeros(2)) + b"1"],
        "bytes that lack": [npy(np.zeros(2))[:-1]],
        "no array": [b"", b"text"],
    }.items(),
    ids=lambda case: case[0],
)
def test_other_parts_have_no_layout(parts: tuple[str, list[bytes]]) -> None:
    """Parts that are not plain arrays of one layout are left to the decoder."""
    index = of_tar(tar_with({f"{row}.npy": part for row, part in enumerate(parts[1])}))
    assert index.arrays == {}
    assert of_tar(tar_with({"a.pyd": npy(np.zeros(2))})).arrays == {}


# Damage


def test_every_cut_is_damage(index: ShardIndex) -> None:
    """The message names the index and the next command."""
    data = index.to_bytes()
    for length in [*range(0, len(data), 61), len(data) - 1]:
        with pytest.raises(DamagedError, match=r"somewhere/x.arrow: not a whole index .* build again"):
            ShardIndex.from_bytes(data[:length], "somewhere/x.arrow")


@given(indexes(), st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_bytes_are_refused_or_say_the_same(index: ShardIndex, data: st.DataObject) -> None:
    """No value changes undetected: only bytes between the columns can be flipped."""
    body = bytearray(index.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = ShardIndex.from_bytes(bytes(body), "x")
    except DamagedError:
        return
    assert same(found, index)


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_bytes_that_are_no_index_are_damage(data: bytes) -> None:
    """This holds with and without the magic of an Arrow file."""
    for body in (data, b"ARROW1\0\0" + data + b"ARROW1"):
        with pytest.raises(DamagedError):
            ShardIndex.from_bytes(body, "x")


@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        ({"key": ["a"]}, {}),
        ({"key": ["a"]}, {"dray": "[]"}),
        ({"key": ["a"]}, {"dray": "not json"}),
        ({"key": ["a"]}, {"dray": '{"format": 2, "features": []}'}),
        ({"key": ["a"]}, {"dray": '{"format": 2, "features": [], "suffixes": 5, "shard_bytes": 1, "digest": ""}'}),
        ({"key": ["a"]}, {"dray": '{"format": 2, "features": [], "suffixes": ["x"], "shard_bytes": 1, "digest": ""}'}),
        ({"other": ["a"]}, {"dray": '{"format": 2, "features": [], "suffixes": [], "shard_bytes": 1, "digest": ""}'}),
    ],
)
def test_another_arrow_file_is_no_index(columns: dict[str, list[str]], metadata: dict[str, str]) -> None:
    """The error does not depend on what is missing."""
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(DamagedError, match="x: not a whole index"):
        ShardIndex.from_bytes(sink.getvalue().to_pybytes(), "x")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b'"format": 2', b'"format": 3', "^x: format 3 .* this one reads 2: upgrade dray"),
        (b'"format": 2', b'"format": 1', "^x: format 1 .* rebuild it"),
        (b'"features": []', b'"features": ["x"]', "^x: unknown features 'x': upgrade dray"),
    ],
)
def test_another_format_says_what_to_do(index: ShardIndex, before: bytes, after: bytes, message: str) -> None:
    """The message says whether to upgrade dray or to rebuild the index."""
    about = json.loads(pa.ipc.open_file(index.to_bytes()).schema.metadata[b"dray"])
    batch = pa.ipc.open_file(index.to_bytes()).get_batch(0)
    about = json.dumps(about).encode().replace(before, after)
    sink = pa.BufferOutputStream()
    batch = batch.replace_schema_metadata({"dray": about, "dray.digest": ""})
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(DamagedError, match=message):
        ShardIndex.from_bytes(sink.getvalue().to_pybytes(), "x")
