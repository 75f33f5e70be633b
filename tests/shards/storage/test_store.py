"""The store: memory, disk, a real S3 and a real Azure server keep the same promises and fail in the same words."""

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards.errors import (
    CallError,
    DamagedError,
    ExistsError,
    NotFoundError,
)
from dray.shards.storage.client import Access, open_client
from dray.shards.storage.store import Store
from dray.shards.storage.urls import normal_url, split_version
from tests.conftest import Place, place_of

AZURE = pytest.param("azure", marks=pytest.mark.heavy)


@pytest.fixture(params=["memory", "disk", "s3", AZURE])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Azure as well."""
    return place_of(request, tmp_path)


@pytest.fixture
def store(place: Place) -> Store:
    """A store on a fresh place of each kind."""
    return Store(place.url, place.storage_options)


def test_what_was_put_is_got(store: Store) -> None:
    """Bytes come back as they were, with their size."""
    store.put_new("a/b", b"cargo")
    body, info = store.get_object("a/b")
    assert (body, info.name, info.size, store.get("a/b")) == (b"cargo", "a/b", 5, b"cargo")


@pytest.mark.parametrize("data", [b"", bytes(3 << 20), bytearray(b"x"), memoryview(b"xy")], ids=len)
def test_any_buffer_of_any_size_is_put(store: Store, data: bytes) -> None:
    """Empty and megabytes, bytes or a view of them."""
    store.put_new("a", data)
    assert store.get("a") == bytes(data)


@pytest.mark.parametrize("name", ["sp ace", "ü/日本", "100%", "a%20b", "q?x#y", "-", "a=b&c+d", "{0..9}", "x" * 200])
def test_a_name_is_taken_literally(store: Store, name: str) -> None:
    """Nothing in a name is decoded, split or globbed."""
    store.put_new(name, name.encode())
    folder = name.rpartition("/")[0]
    assert store.get(name) == name.encode()
    assert [info.name for info in store.list_folder(folder)] == [name]


FOLDERS = ["a b", "a%41", "a%20b", "100%", "a#b", "a?b", "ü日本", "a+b", "#1", "{0..1}", "*", "~", "a%2Fb"]


@pytest.mark.parametrize("place", ["disk", "s3", AZURE], indirect=True)
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_any_name_holds_the_objects(place: Place, folder: str) -> None:
    """Its URL leads to it, from a pickle, from a listing of its parent and with a version behind it."""
    parent = Store(place.url, place.storage_options)
    store = Store(parent.url_of(folder), place.storage_options)
    store.put_new("b/a", b"cargo")
    assert parent.get(f"{folder}/b/a") == pickle.loads(pickle.dumps(store)).get("b/a") == b"cargo"
    assert (parent.list_folders(), store.list_folders()) == ([folder], ["b"])
    assert [info.name for info in Store(store.url_of("b"), place.storage_options).list_folder()] == ["a"]
    assert split_version(f"{store.url}?version=7") == (store.url, "7")
    assert normal_url(store.url) == store.url


def test_a_second_put_is_refused_and_touches_nothing(store: Store) -> None:
    """Objects are created, never overwritten."""
    store.put_new("a", b"first")
    with pytest.raises(ExistsError, match=r"/a: the object exists already"):
        store.put_new("a", b"second")
    assert store.get("a") == b"first"


def test_one_of_eight_racing_writers_wins(store: Store) -> None:
    """The others get an error, and the winner's bytes stand."""

    def put(writer: int) -> bool:
        try:
            store.put_new("a", b"%d" % writer)
        except ExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(put, range(8)))
    assert won.count(True) == 1
    assert store.get("a") == b"%d" % won.index(True)


def test_ranges_come_back_in_the_order_asked(store: Store) -> None:
    """Near, far, overlapping, repeated and empty ones."""
    data = bytes(range(256)) * 64
    store.put_new("a", data)
    starts, lengths = [9000, 0, 3, 3, 16383, 16384, 5], [100, 4, 10, 10, 1, 0, 0]
    found = store.get_ranges("a", starts, lengths)
    assert [bytes(part) for part in found] == [data[i : i + n] for i, n in zip(starts, lengths, strict=True)]
    assert store.get_ranges("a", [], []) == []


@pytest.mark.parametrize(("start", "length"), [(5, 6), (9, 2), (10, 1), (11, 1), (1 << 40, 1)])
def test_a_range_past_the_end_is_damage(store: Store, start: int, length: int) -> None:
    """Never a shorter answer, and no error that says to try again: the object is not what its index says."""
    store.put_new("a", b"0123456789")
    with pytest.raises(DamagedError, match=rf"/a: {length} bytes expected at offset {start}, found"):
        store.get_ranges("a", [0, start], [2, length])


def test_head_tells_size_and_etag_or_none(store: Store) -> None:
    """The ETag is the one that a read and a listing tell."""
    store.put_new("a", b"cargo")
    info = store.head("a")
    assert info is not None
    assert (info.name, info.size, bool(info.etag)) == ("a", 5, True)
    assert [info] == [store.get_object("a")[1]] == store.list_folder()
    assert store.head("b") is None


def test_a_listing_is_sorted_relative_and_not_recursive(store: Store) -> None:
    """Names start at the store's URL, also those of a folder in it."""
    for name in ["d/2", "b", "a", "d/e/3", "d/1", "d.x", "da/4"]:
        store.put_new(name, name.encode())
    assert [(info.name, info.size) for info in store.list_folder()] == [("a", 1), ("b", 1), ("d.x", 3)]
    assert [info.name for info in store.list_folder("d")] == ["d/1", "d/2"]
    assert (store.list_folders(), store.list_folders("d")) == (["d", "da"], ["d/e"])


def test_a_listing_is_whole_beyond_one_page(place: Place) -> None:
    """S3 answers a thousand names at a time."""
    store = Store(place.url, place.storage_options)
    names = [f"{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put_new(name, b""), names))
    assert [info.name for info in store.list_folder()] == names


def test_a_missing_folder_is_empty(store: Store) -> None:
    """Where nothing was ever written there is nothing to read, and that is no error."""
    assert store.list_folder() == store.list_folder("a/b") == []
    assert store.list_folders() == store.list_folders("a/b") == []
    assert store.head("a") is None


def test_delete_removes_what_is_there(store: Store) -> None:
    """One that is not there is no error; a deleted name can be created again."""
    store.put_new("a", b"old")
    store.put_new("b", b"stays")
    store.delete(["a", "never"])
    store.delete([])
    assert [info.name for info in store.list_folder()] == ["b"]
    store.put_new("a", b"new")
    assert store.get("a") == b"new"


def test_a_stream_reads_an_object_to_its_end(store: Store) -> None:
    """In pieces of any size, across the chunks in which it arrives."""
    data = os.urandom(5_000_011)
    store.put_new("a", data)
    with store.open_stream("a") as stream:
        start = stream.read(7)
        middle = stream.read(4_500_000)
        assert (start + middle + stream.read(), stream.read(1)) == (data, b"")


def test_a_store_pickles(store: Store) -> None:
    """It crosses to another process as URL and options, and opens the same place there."""
    store.put_new("a", b"cargo")
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.get("a")) == (store.url, b"cargo")


def test_sync_accepts_what_was_put(store: Store) -> None:
    """On disk it reaches the disk with its folders; elsewhere there is nothing to do."""
    store.put_new("a/b/c", b"cargo")
    store.sync(["a/b/c"])
    assert store.get("a/b/c") == b"cargo"


def _stream(store: Store) -> None:
    with store.open_stream("gone") as stream:
        stream.read()


@pytest.mark.parametrize(
    "read",
    [lambda s: s.get("gone"), lambda s: s.get_object("gone"), lambda s: s.get_ranges("gone", [0], [1]), _stream],
    ids=["get", "get_object", "get_ranges", "open_stream"],
)
def test_reading_what_is_not_there_names_the_url(store: Store, read: Callable[[Store], object]) -> None:
    """The error is also Python's FileNotFoundError."""
    with pytest.raises(NotFoundError) as caught:
        read(store)
    assert f"cannot read {store.url}/gone: " in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/hostname", "a//b", "./a", "..", "a/.."])
def test_no_name_leaves_the_store(store: Store, name: str) -> None:
    """Whatever wrote the name: nothing beside the URL's folder is read, written or deleted."""
    for act in (store.get, lambda n: store.put_new(n, b""), lambda n: store.delete([n]), store.head, store.list_folder):
        with pytest.raises(CallError, match="step out"):
            act(name)
    with pytest.raises(CallError, match="step out"), store.open_stream(name):
        pass


@pytest.mark.parametrize("place", ["memory", "s3", AZURE], indirect=True)
@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\0b", "a\x7fb"])
def test_a_control_character_in_a_name_is_a_wrong_call(store: Store, name: str) -> None:
    """Object storage takes none."""
    for act in (store.get, lambda n: store.put_new(n, b""), lambda n: store.delete([n]), store.head, store.list_folder):
        with pytest.raises(CallError, match="control character"):
            act(name)


def test_a_long_object_is_streamed_in_ranges(place: Place) -> None:
    """More than two ranges, read in odd steps: every byte, in order."""
    store, data = Store(place.url, place.storage_options), os.urandom(17 << 20)
    store.put_new("long", data)
    with store.open_stream("long") as stream:
        assert b"".join(iter(lambda: stream.read(999_983), b"")) == data


def test_an_object_that_shrinks_while_it_is_streamed_is_an_error(s3: SeaweedServer) -> None:
    """However slowly it is read: the error is typed and names the URL."""
    store = Store(s3.url("shrinks"), s3.storage_options)
    store.put_new("long", bytes(40 << 20))
    with store.open_stream("long") as stream:
        stream.read(1)
        overwriting = open_client(Access.of(store.url, s3.storage_options), 30)
        obstore.put(overwriting, "long", bytes(30 << 20))
        with pytest.raises(DamagedError, match="s3://data/shrinks/long"):
            stream.read()


def test_an_etag_has_no_quotes(place: Place) -> None:
    """Some stores quote it in one answer and not in another: a fingerprint must not depend on it."""
    store = Store(place.url, place.storage_options)
    store.put_new("a", b"1")
    etags = {store.list_folder()[0].etag, store.get_object("a")[1].etag}
    assert etags == {store.head("a").etag}  # type: ignore[union-attr]
    assert '"' not in etags.pop()
