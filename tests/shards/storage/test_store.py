"""The store: memory, disk, a real S3 and a real Azure server keep the same promises and fail in the same words."""

import errno
import os
import pickle
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards.errors import (
    CallError,
    DamagedError,
    DeniedError,
    DrayError,
    ExistsError,
    NotFoundError,
    StoreError,
)
from dray.shards.storage.store import Store
from dray.shards.storage.urls import check_apart, local_path, normal_url, split_version
from tests.conftest import Place, place_of
from tests.support.datasets import overwrite

SECRET = "hush-hush-hush-hush-hush-hush-hush"


AZURE = pytest.param("azure", marks=pytest.mark.heavy)


@pytest.fixture(params=["memory", "disk", "s3", AZURE])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Azure as well."""
    return place_of(request, tmp_path)


@pytest.fixture
def store(place: Place) -> Store:
    """A store on a fresh place of each kind."""
    return Store(place.url, place.storage_options)


# What every kind of store does


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


# Local disk


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_any_name_is_a_folder_of_files(tmp_path: Path, folder: str) -> None:
    """The objects are files right there."""
    Store(tmp_path / folder).put_new("a", b"cargo")
    assert (tmp_path / folder / "a").read_bytes() == b"cargo"


def test_a_put_leaves_one_file(tmp_path: Path) -> None:
    """No temporary file stays beside it, neither after a put nor after a refused one."""
    store = Store(tmp_path)
    store.put_new("a", b"cargo")
    with pytest.raises(ExistsError):
        store.put_new("a", b"more")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_syncing_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A commit must not stand on an object that vanished."""
    with pytest.raises(NotFoundError, match="cannot fsync"):
        Store(tmp_path).sync(["a"])


def test_a_file_in_the_folders_place_is_a_store_error(tmp_path: Path) -> None:
    """The message names the URL."""
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file")
    with pytest.raises(StoreError, match=r"cannot write file://.*/file/a"):
        store.put_new("a", b"")


NO_LINKS = """
import ctypes, os, struct, sys
from dray.shards.errors import StoreError
from dray.shards.storage.store import Store
folder, refusal, *calls = sys.argv[1], *map(int, sys.argv[2:])
allow, refuse = (6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x50000 | refusal)  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
steps = [(0x20, 0, 0, 0)]  # load the number of the system call
for call in calls:
    steps += [(0x15, 0, 1, call), refuse]  # where it is this one
code = b"".join(struct.pack("HBBI", *step) for step in [*steps, allow])
text = ctypes.create_string_buffer(code)
program = struct.pack("HP", len(code) // 8, ctypes.addressof(text))
kernel = ctypes.CDLL(None)
assert kernel.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert kernel.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
try:
    os.link(folder + "/old", folder + "/new")
except OSError as exc:
    print(exc.errno)
try:
    Store(folder).put_new("a", b"cargo")
except StoreError as exc:
    print(type(exc).__name__, exc)
print(os.listdir(folder), Store(folder).get("old"))
"""
LINK_CALLS = {"x86_64": ("86", "265"), "aarch64": ("37",)}  # link and linkat; the younger machine has only the latter


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in LINK_CALLS, reason="needs seccomp and the calls' numbers"
)
@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_disk_without_hard_links_is_named(tmp_path: Path, refusal: int) -> None:
    """The kernel refuses them to this process, as some mounts do: the error says so and no file is left."""
    (tmp_path / "old").write_bytes(b"cargo")
    command = [sys.executable, "-c", NO_LINKS, str(tmp_path), str(refusal), *LINK_CALLS[platform.machine()]]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.splitlines() == [
        str(refusal),
        f"StoreError cannot write file://{tmp_path}/a: this disk refuses hard links, which dray needs to create files "
        f"without overwriting: use another disk or object storage ({os.strerror(refusal)})",
        "['old'] b'cargo'",
    ]


FORK = """
import os, sys
from dray.shards.errors import StoreError
from dray.shards.storage.store import Store
store = Store(sys.argv[1])
store.put_new("a", b"cargo")
child = os.fork()
if child == 0:
    with store.open_stream("a") as file:
        code = 10 if file.read() == store.get("a") == b"cargo" else 1
    try:
        store.head("a")
    except StoreError as exc:
        code += "spawn" in str(exc)
    os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), store.get("a"))
"""


def test_a_forked_child_refuses_and_does_not_hang(tmp_path: Path) -> None:
    """It can read files, says what to do instead of the rest, and its parent goes on."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.stdout, found.stderr) == ("11 b'cargo'\n", "")


# S3: rights, secrets, buckets


def test_a_read_only_key_cannot_put_or_delete(s3: SeaweedServer) -> None:
    """Denied is its own error: another try would not help."""
    url = s3.url("store/read-only")
    Store(url, s3.storage_options).put_new("a", b"cargo")
    reader = Store(url, s3.read_only_options)
    with pytest.raises(DeniedError, match=f"{url}/b: permission denied"):
        reader.put_new("b", b"more")
    with pytest.raises(DeniedError, match=f"{url}/a"):
        reader.delete(["a"])
    assert reader.get("a") == b"cargo"


def test_a_missing_bucket_is_not_found(s3: SeaweedServer) -> None:
    """Also where a listing meets it: a bucket misspelt must not read as an empty dataset."""
    store = Store("s3://no-such-bucket/x", s3.storage_options)
    with pytest.raises(NotFoundError, match="s3://no-such-bucket/x/a"):
        store.get("a")
    with pytest.raises(NotFoundError, match="s3://no-such-bucket/x"):
        store.list_folder()


def _errors_of(store: Store) -> list[DrayError]:
    """What each call raises."""
    calls: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.get_ranges("a", [0], [1]),
        lambda: store.put_new("a", b""),
        lambda: store.list_folder(),
        lambda: store.head("a"),
        lambda: store.delete(["a"]),
        lambda: store.open_stream("a").__enter__(),
    ]
    errors = []
    for call in calls:
        with pytest.raises(DrayError) as caught:
            call()
        errors.append(caught.value)
    return errors


def _shown(error: BaseException) -> str:
    """All that a log would show of an error."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(pickle.loads(pickle.dumps(error)))


def test_a_wrong_secret_is_denied_and_not_shown(s3: SeaweedServer) -> None:
    """Every call says that the key is at fault, none says the key."""
    options = {**s3.storage_options, "secret_access_key": SECRET}
    store = Store(s3.url("store/wrong"), options)
    errors = _errors_of(store)
    assert {type(error) for error in errors} == {DeniedError}
    assert all("s3://data/store/wrong" in str(error) for error in errors)
    shown = repr(store) + "".join(map(_shown, errors))
    assert not [value for value in (SECRET, options["access_key_id"]) if value in shown]


def test_a_wrong_endpoint_fails_and_shows_no_secret(s3: SeaweedServer) -> None:
    """Neither of the options nor of a password that somebody wrote into the endpoint."""
    options = {
        **s3.storage_options,
        "endpoint": f"http://user:{SECRET}@127.0.0.1:9",
        "retry_config": {"max_retries": 0},
    }
    errors = _errors_of(Store(s3.url("store/wrong"), options))
    assert {type(error) for error in errors} == {StoreError}
    shown = "".join(map(_shown, errors))
    assert not [value for value in (SECRET, options["secret_access_key"]) if value in shown]


def test_a_secret_of_the_environment_is_not_shown(s3: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes it from there when no option gives one, and quotes the key's id in its answer."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-NOBODY-KNOWS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store = Store(s3.url("store/wrong"), {"endpoint": s3.endpoint, "region": "us-east-1"})
    shown = "".join(map(_shown, _errors_of(store)))
    assert not [value for value in (SECRET, "AKIA-NOBODY-KNOWS") if value in shown]


@pytest.mark.parametrize("options", [{"secret_acess_key": SECRET}, {"timeout": "soon"}, {"region": 5}])
def test_a_wrong_option_is_a_wrong_call(options: dict[str, object]) -> None:
    """A misspelt option is named, its value is not."""
    with pytest.raises(CallError, match="cannot open s3://bucket/x") as caught:
        Store("s3://bucket/x", options)
    assert SECRET not in _shown(caught.value)


def test_a_store_that_may_not_use_conditions_is_a_wrong_call(s3: SeaweedServer) -> None:
    """Without them nothing keeps two writers apart."""
    with pytest.raises(CallError, match="conditional put is disabled"):
        Store(s3.url("store"), {**s3.storage_options, "conditional_put": "disabled"}).put_new("a", b"")


# URLs


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("/a/b", "file:///a/b"),
        ("/a/b/", "file:///a/b"),
        ("/a/../b/./c//d", "file:///b/c/d"),
        (Path("/a/b"), "file:///a/b"),
        ("/", "file:///"),
        ("/a b/ü", "file:///a b/ü"),
        ("/a%41#b?c", "file:///a%2541%23b%3Fc"),
        ("file:///a/b/", "file:///a/b"),
        ("file:///a%20b", "file:///a b"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b//", "s3://bucket/a/b"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container/a", "az://container/a"),
        ("memory://x/y/", "memory://x/y"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_a_url_has_one_spelling(url: str | Path, normal: str) -> None:
    """However it was written, and written again."""
    assert normal_url(url) == normal_url(normal_url(url)) == normal


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker in another folder opens the same place; a tilde is the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert normal_url("a/../b") == f"file://{tmp_path}/b"
    assert normal_url("~/data") == "file:///home/ann/data"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "empty URL"),
        ("s3:/bucket/a", "did you mean s3://bucket/a"),
        (Path("s3://bucket/a"), "did you mean s3://bucket/a"),  # pathlib drops a slash
        ("s3:bucket/a", r"did you mean s3://bucket/a\? \(a folder of that name is \./s3:bucket/a\)"),
        ("S3://bucket/a", "did you mean s3://bucket/a"),
        ("s3a://bucket/a", "did you mean s3://bucket/a"),
        ("GCS:/bucket/a", "did you mean gs://bucket/a"),
        ("abfss://container/a", "did you mean az://container/a"),
        ("file:/data/train", "did you mean file:///data/train"),
        ("FILE:///data/train", "did you mean file:///data/train"),
        ("memory:x", "did you mean memory://x"),
        ("http://host/a", "http:// is not a storage URL"),
        ("https:/host/a", "https:// is not a storage URL"),
        ("foo://host/a", "foo:// is not a storage URL"),
        ("ftp://user:hush@host/a", "ftp:// is not a storage URL"),
        ("s3:/key:hush@bucket/a", "did you mean s3://...?"),
        ("s3://key:hush@bucket/a", "must not hold a key"),
        ("s3://bucket/a?token=hush", "s3://bucket/a: a storage URL has no query"),
        ("s3://bucket/a?version=7", r"leave \?version=7 out"),
        ("s3://bucket/a//b", "no empty folder name"),
        ("s3://", "the bucket is missing"),
        ("s3:///a", "the bucket is missing"),
        ("file://data/train", "three slashes"),
        ("file:///a#b", "%23"),
    ],
)
def test_a_url_that_cannot_be_opened_is_a_wrong_call(url: str | Path, message: str) -> None:
    """The message says what is wrong with it, without a key that it may hold."""
    with pytest.raises(CallError, match=message) as caught:
        Store(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("path", ["run:7", "a:b/c", "./s3:/bucket", "C:/x", "2024-01-01T10:00:00", "x/s3://y", "s3"])
def test_a_path_may_hold_colons(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what begins like a storage URL is taken for a misspelt one."""
    monkeypatch.chdir(tmp_path)
    assert local_path(normal_url(path)) == os.path.abspath(path)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("/a/b?version=7", ("/a/b", "7")),
        ("s3://b/a%20b?version=paper", ("s3://b/a%20b", "paper")),
        ("/a?version=1/b?version=2", ("/a?version=1/b", "2")),
        ("/a?version=1/b", ("/a?version=1/b", None)),
        ("file:///a%3Fversion=1", ("file:///a%3Fversion=1", None)),
    ],
)
def test_only_the_end_of_a_url_names_a_version(url: str, parts: tuple[str, str | None]) -> None:
    """A folder's name may look like it."""
    assert split_version(url) == parts


@pytest.mark.parametrize(
    ("source", "destination", "is_refused"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a", "a/../a/b/c", True),
        ("a", "link/b", True),
        ("link", "a", True),
        ("a/b", "a", False),
        ("a", "ab", False),
        ("a", "a/../b", False),
        ("s3://x/a", "s3://x/a/", True),
        ("s3://x/a", "s3://x/a/b", True),
        ("s3://x", "s3://x/a", True),
        ("s3://x/a", "s3://x/a%20", False),
        ("s3://x/a", "s3://y/a/b", False),
        ("s3://x/a", "gs://x/a", False),
        ("/", "/a", True),
    ],
)
def test_a_destination_in_its_source_is_refused(
    source: str, destination: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is spelt. A source in the destination is none of the dataset's names, and is read as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    urls = normal_url(source), normal_url(destination)
    if not is_refused:
        check_apart(*urls)
        return
    with pytest.raises(CallError, match="choose a folder beside the source"):
        check_apart(*urls)


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1).map("/a/".__add__))
@settings(max_examples=100, deadline=None)
def test_a_path_survives_its_url(path: str) -> None:
    """For any path: its URL leads back to it, and the URL of the URL is the same."""
    url = normal_url(path)
    assert local_path(url) == os.path.abspath(path)
    assert normal_url(url) == url


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
        overwrite(store, "long", bytes(30 << 20))
        with pytest.raises((DamagedError, NotFoundError), match="s3://data/shrinks/long"):
            stream.read()


def test_an_etag_has_no_quotes(place: Place) -> None:
    """Some stores quote it in one answer and not in another: a fingerprint must not depend on it."""
    store = Store(place.url, place.storage_options)
    store.put_new("a", b"1")
    etags = {store.list_folder()[0].etag, store.get_object("a")[1].etag}
    assert etags == {store.head("a").etag}  # type: ignore[union-attr]
    assert '"' not in etags.pop()
