"""The block store of a node returns what was written, hides no error, and keeps its size limit."""

import multiprocessing
import os
import pickle
import resource
import threading
import time
from multiprocessing.synchronize import Event as EventType
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.reading import node_cache
from dray.shards.reading.node_cache import CELL_BYTES, BlockStore, Kept, open_blocks

NAME = "0123456789abcdef0123456789abcdef.tar"


def hold(blocks: BlockStore, is_held: EventType) -> None:
    with blocks.alone("a"):
        is_held.set()
        time.sleep(600)


@pytest.fixture
def blocks(tmp_path: Path) -> BlockStore:
    return BlockStore(tmp_path / "blocks", 64 << 20, Kept.ALL)


def size_of(blocks: BlockStore) -> int:
    return sum(path.stat().st_blocks * 512 for path in blocks.folder.glob(f"{NAME[:8]}*"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * 50), st.binary(min_size=1, max_size=120)), min_size=1, max_size=8))
def test_what_was_written_comes_back(tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bytes]]) -> None:
    """Writes at any offset and across cells can be read; the last write of a byte wins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_cache, "CELL_BYTES", 50)
        blocks, expected = BlockStore(tmp_path_factory.mktemp("blocks"), 64 << 20, Kept.ALL), bytearray(400)
        os.chmod(blocks.folder, 0o700)
        for start, data in writes:
            blocks.write(NAME, start, memoryview(data))
            expected[start : start + len(data)] = data
        for start, data in writes:
            assert blocks.read(NAME, start, len(data)) == memoryview(expected)[start : start + len(data)]


def test_no_file_stays_open(blocks: BlockStore) -> None:
    """Each read and write closes its descriptor: a loader can run for weeks."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for number in range(20):
        blocks.write(NAME, number, memoryview(b"x"))
        blocks.put("whole", b"y")
        assert blocks.read(NAME, number, 1) is not None
        assert blocks.get("whole") == b"y"
        with blocks.alone("a"):
            pass
    assert descriptors() == before


def test_nothing_is_there_at_first(blocks: BlockStore) -> None:
    """A new store has no bytes and no objects, and reading does not create its folder."""
    assert blocks.read(NAME, 0, 10) is None
    assert blocks.get(NAME) is None
    assert not blocks.folder.exists()


def test_a_whole_object_replaces_a_longer_one(blocks: BlockStore) -> None:
    """After a longer, damaged file was replaced, only the new bytes are returned."""
    blocks.put(NAME, b"x" * 100)
    blocks.put(NAME, b"right")
    assert blocks.get(NAME) == b"right"


def test_it_stays_as_small_as_it_may_be(tmp_path: Path) -> None:
    """The least recently used file is deleted first; reads count as use."""
    blocks = BlockStore(tmp_path / "blocks", 4 * CELL_BYTES, Kept.ALL)
    data = memoryview(os.urandom(CELL_BYTES))
    for cell in range(8):
        blocks.write(NAME, cell * CELL_BYTES, data)
        assert blocks.read(NAME, 0, 10) is not None
        assert size_of(blocks) <= 4 * CELL_BYTES
    assert blocks.read(NAME, 7 * CELL_BYTES, CELL_BYTES) == data
    assert blocks.read(NAME, 2 * CELL_BYTES, 10) is None


def test_what_others_left_there_counts(tmp_path: Path, blocks: BlockStore) -> None:
    """If the count of used bytes is lost, existing files still count against the limit."""
    blocks.write(NAME, 0, memoryview(os.urandom(3 * CELL_BYTES)))
    (blocks.folder / "used").unlink()
    smaller = BlockStore(blocks.folder, 2 * CELL_BYTES, Kept.ALL)
    smaller.write(NAME, 3 * CELL_BYTES, memoryview(b"new"))
    assert size_of(smaller) <= 2 * CELL_BYTES
    assert smaller.read(NAME, 3 * CELL_BYTES, 3) == memoryview(b"new")


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Only files of the store are deleted to make room."""
    blocks = BlockStore(tmp_path / "blocks", CELL_BYTES, Kept.ALL)
    blocks.write(NAME, 0, memoryview(b"a"))
    (blocks.folder / "thesis.tex").write_bytes(os.urandom(2 * CELL_BYTES))
    blocks.write(NAME, 0, memoryview(os.urandom(CELL_BYTES)))
    assert (blocks.folder / "thesis.tex").stat().st_size == 2 * CELL_BYTES


def test_a_disk_that_takes_nothing_is_warned_of_once(tmp_path: Path) -> None:
    """After one warning reads find nothing, and locks do not wait."""
    (tmp_path / "file").touch()
    blocks = BlockStore(tmp_path / "file" / "blocks", CELL_BYTES, Kept.ALL)
    with pytest.warns(UserWarning, match="goes on without this cache"):
        blocks.write(NAME, 0, memoryview(b"a"))
    blocks.write(NAME, 0, memoryview(b"a"))
    with blocks.alone("a"):
        assert blocks.read(NAME, 0, 1) is None


def test_a_disk_that_is_full_spoils_nothing(blocks: BlockStore) -> None:
    """After a write fails inside a cell, earlier bytes are still correct, and nothing more is written."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    blocks.write(NAME, 0, memoryview(b"before"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.warns(UserWarning, match="goes on without this cache, which cannot be written: .*File too large"):
            blocks.write(NAME, 6, memoryview(os.urandom(2 << 20)))
        blocks.write(NAME, CELL_BYTES, memoryview(b"after"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert blocks.read(NAME, 0, 6) == memoryview(b"before")
    assert blocks.read(NAME, CELL_BYTES, 5) is None


def test_a_folder_that_others_may_write_is_refused(blocks: BlockStore) -> None:
    """Any user could have created it in a temporary folder, so it is not read either."""
    blocks.write(NAME, 0, memoryview(b"a"))
    blocks.put(NAME, b"a")
    blocks.folder.chmod(0o777)
    assert blocks.read(NAME, 0, 1) is None
    assert blocks.get(NAME) is None
    with pytest.warns(UserWarning, match="others may write there"):
        blocks.write(NAME, 0, memoryview(b"a"))


def test_one_thread_at_a_time(blocks: BlockStore) -> None:
    """Threads with the same name take turns; another name does not wait."""
    inside, most = [], []

    def work() -> None:
        with blocks.alone("a"):
            inside.append(1)
            most.append(len(inside))
            with blocks.alone("b"):
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_killed_process_releases_its_lock(blocks: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another process holds cannot be taken until that process is killed."""
    forked = multiprocessing.get_context("fork")
    is_held = forked.Event()
    holder = forked.Process(target=hold, args=(blocks, is_held))
    holder.start()
    assert is_held.wait(60)
    monkeypatch.setattr(node_cache, "WAIT_S", 0.1)
    assert blocks._lock("a") is None  # the wait is limited
    monkeypatch.setattr(node_cache, "WAIT_S", 60)
    holder.kill()
    holder.join()
    assert blocks._lock("a") is not None


def test_a_store_can_be_pickled(blocks: BlockStore) -> None:
    """The copy reads the same folder."""
    blocks.write(NAME, 0, memoryview(b"abc"))
    assert pickle.loads(pickle.dumps(blocks)).read(NAME, 0, 3) == b"abc"


def test_when_there_is_a_store(tmp_path: Path) -> None:
    """`cache_dir` keeps everything; by default several ranks share indexes, and workers share runs."""
    asked = open_blocks(tmp_path, None, num_workers=0, num_ranks=1)
    assert (asked.kept, asked.folder) == (Kept.ALL, tmp_path / "dray-blocks") if asked else False
    found = [open_blocks(None, None, num_workers=workers, num_ranks=ranks) for workers, ranks in ((0, 2), (2, 1))]
    assert [blocks and blocks.kept for blocks in found] == [Kept.INDEXES, Kept.RUNS]
    assert open_blocks(None, None, num_workers=0, num_ranks=1) is None
    assert open_blocks(tmp_path, 0, num_workers=2, num_ranks=2) is None
