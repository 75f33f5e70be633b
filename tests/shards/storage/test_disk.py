"""A store on a local disk: what its files are, and what is raised where the disk or a fork refuses."""

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dray.shards.errors import (
    ExistsError,
    NotFoundError,
    StoreError,
)
from dray.shards.storage.store import Store
from tests.shards.storage.test_store import FOLDERS


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
