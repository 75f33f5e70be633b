"""Law 10 for `ShardLoader`: whatever happens to the shards of a valid snapshot, what is read is right or an error.

An error names the shard, and where one sample is meant its key. Headers, padding and the end of a tar are not read.
"""

import mmap
import os
import pickle
import re
import shutil
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.loaders import ShardLoader
from dray.pipelines import pickles_to_tars
from dray.shards import Snapshot
from dray.shards.errors import DrayError
from dray.shards.layout import Layout

NUM_SAMPLES, PER_SHARD = 12, 4
PARTS = ("cls", "txt", "x.pyd")
VICTIM = 1  # the shard that is spoiled: samples 4 to 7


@dataclass(frozen=True)
class Copy:
    """A dataset that may be spoiled: sample n is a tensor of n, its class n, a note and its key."""

    folder: Path

    def shard(self, number: int) -> Path:
        return self.folder / f"wdshards-{number:06d}.tar"

    def index(self, number: int) -> Path:
        return self.folder / Layout("wdshards").index(number)

    @cached_property
    def places(self) -> list[tuple[int, int, str, str]]:
        """(start, end, key, suffix) of each part in the victim."""
        snapshot = Snapshot.open(self.folder)
        index = snapshot.index(snapshot.shards[VICTIM])
        return sorted(
            (int(offset), int(offset) + int(size), key, suffix)
            for key, offsets, sizes in zip(index.keys, index.offsets, index.sizes, strict=True)
            for suffix, offset, size in zip(index.suffixes, offsets, sizes, strict=True)
        )

    def part_at(self, position: int) -> tuple[str, str] | None:
        """Key and suffix of the part that holds a byte of the victim; None for headers, padding and the end."""
        number = bisect_right(self.places, (position, float("inf"))) - 1
        if number < 0 or position >= self.places[number][1]:
            return None
        return self.places[number][2:]

    def read(self, **options: Any) -> tuple[list[int], str | None]:
        """The samples that were read before the error, each checked, and the error."""
        loader = ShardLoader(self.folder, **{"batch_size": 1, "with_keys": True, **options})
        found: list[int] = []
        try:
            for batch in loader:
                check(batch)
                found += batch["cls"].tolist()
        except DrayError as exc:
            traceback.clear_frames(exc.__traceback__)  # they hold torch's workers, which then end late, after 10 s
            return found, str(exc)
        return found, None


def check(batch: dict[str, Any]) -> None:
    """Every part is the one that was packed for its key."""
    for number, text, tensor, key in zip(
        batch["cls"].tolist(), batch["txt"], batch["x.pyd"], batch["__key__"], strict=True
    ):
        assert (f"s{number:02d}", f"note {number:02d}") == (key, text)
        assert torch.equal(tensor, torch.full((2,), float(number)))


def pack(folder: Path, first: int = 0) -> Copy:
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    names = [f"s{number:02d}" for number in range(first, first + NUM_SAMPLES)]
    for number, name in enumerate(names, first):
        (inputs / f"{name}.x.pyd").write_bytes(pickle.dumps(torch.full((2,), float(number))))
        (inputs / f"{name}.cls").write_text(str(number))
        (inputs / f"{name}.txt").write_text(f"note {number:02d}")
    pickles_to_tars(inputs, names, PARTS, folder / "out", "wdshards", min_num_shards=3, progress=False)
    return Copy(folder / "out")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return pack(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Copy, tmp_path: Path) -> Copy:
    shutil.copytree(whole.folder, tmp_path / "copy")
    return Copy(tmp_path / "copy")


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def exchange(one: Path, two: Path) -> None:
    body = one.read_bytes()
    shutil.copyfile(two, one)
    two.write_bytes(body)


def members(body: bytes) -> list[bytes]:
    """Header, data and padding of each; the parts here are all shorter than a block, but for the tensors."""
    starts = [match.start() for match in re.finditer(rb"s\d\d\.(cls|txt|x\.pyd)\0", body)]
    return [body[start:end] for start, end in zip(starts, [*starts[1:], len(body)], strict=True)]


def swap_samples(body: bytes) -> bytes:
    """The tar of the second sample before the first: whole, and every part has its own header."""
    found = members(body)
    return b"".join([*found[3:6], *found[:3], *found[6:]])


KEYED = r"wdshards-000001\.tar at offset \d+, key '{key}', suffix '{suffix}': not the bytes"
CUT = r"wdshards-000001\.tar: \d+ bytes expected, found \d+"
INDEX = r"__dray__/wdshards/index/\S*000001\S*: not the index that version 1 names"

KINDS: dict[str, tuple[Callable[[Copy], object], str]] = {
    "cut by a byte": (lambda copy: rewrite(copy.shard(1), lambda body: body[:-1]), CUT),
    "cut at its end": (lambda copy: rewrite(copy.shard(1), lambda body: body[:-1024]), CUT),
    "cut between samples": (lambda copy: rewrite(copy.shard(1), lambda body: b"".join(members(body)[:3])), CUT),
    "cut within a header": (lambda copy: rewrite(copy.shard(1), lambda body: body[:700]), CUT),
    "emptied": (lambda copy: copy.shard(1).write_bytes(b""), CUT),
    "lengthened": (lambda copy: rewrite(copy.shard(1), lambda body: body + bytes(512)), CUT),
    "a page of zeros": (
        lambda copy: rewrite(copy.shard(1), lambda body: bytes(mmap.PAGESIZE) + body[mmap.PAGESIZE :]),
        KEYED.format(key="s04", suffix=r"[\w.]+"),
    ),
    "all zeros": (
        lambda copy: os.truncate(copy.shard(1), 0) or os.truncate(copy.shard(1), copy.shard(0).stat().st_size),
        KEYED.format(key="s04", suffix=r"[\w.]+"),
    ),
    "another shard": (lambda copy: shutil.copyfile(copy.shard(2), copy.shard(1)), KEYED.format(key="s04", suffix=".*")),
    "swapped with another": (lambda copy: exchange(copy.shard(1), copy.shard(2)), KEYED.format(key="s04", suffix=".*")),
    "samples swapped": (lambda copy: rewrite(copy.shard(1), swap_samples), KEYED.format(key="s04", suffix=".*")),
    "missing": (lambda copy: copy.shard(1).unlink(), r"wdshards-000001\.tar: the shard is missing"),
    "index cut": (lambda copy: rewrite(copy.index(1), lambda body: body[:-8]), INDEX),
    "index emptied": (lambda copy: copy.index(1).write_bytes(b""), INDEX),
    "index of another": (lambda copy: shutil.copyfile(copy.index(2), copy.index(1)), INDEX),
    "index missing": (lambda copy: copy.index(1).unlink(), r"000001\S*: the index is missing"),
    "both of another": (
        lambda copy: [shutil.copyfile(copy.shard(2), copy.shard(1)), shutil.copyfile(copy.index(2), copy.index(1))],
        INDEX,
    ),
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_another_than_was_packed_is_named(copy: Copy, kind: str, num_workers: int) -> None:
    """After the samples before it, in order; from workers as from a thread."""
    spoil, message = KINDS[kind]
    spoil(copy)
    found, error = copy.read(num_workers=num_workers)
    assert found == list(range(PER_SHARD))
    assert re.search(message, error or "nothing was said"), error


def test_a_shard_of_another_dataset_is_named(copy: Copy, tmp_path: Path) -> None:
    """It has the same name, size, number of samples and keys' lengths: only the contents differ."""
    other = pack(tmp_path / "other", first=40)
    assert other.shard(1).stat().st_size == copy.shard(1).stat().st_size
    shutil.copyfile(other.shard(1), copy.shard(1))
    found, error = copy.read()
    assert found == [0, 1, 2, 3]
    assert re.search(KEYED.format(key="s04", suffix=".*"), str(error))


def test_every_single_byte(copy: Copy) -> None:
    """Of a part: an error with its key and suffix. Of anything else: nothing is read, so nothing is wrong."""
    body = copy.shard(VICTIM).read_bytes()
    num_named = 0
    with copy.shard(VICTIM).open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for position in every_byte(copy, len(body)):
            mapped[position] ^= 0x10
            found, error = copy.read(batch_size=NUM_SAMPLES)
            mapped[position] = body[position]
            part = copy.part_at(position)
            if part is None:
                assert (found, error) == (list(range(NUM_SAMPLES)), None), position
            else:
                assert re.search(KEYED.format(key=part[0], suffix=part[1]), str(error)), position
                num_named += 1
    assert num_named == sum(end - start for start, end, *_ in copy.places)


def every_byte(copy: Copy, num_bytes: int) -> Iterable[int]:
    """Every byte of a part; of the rest one in 61."""
    return (position for position in range(num_bytes) if copy.part_at(position) or position % 61 == 0)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shuffle=st.booleans(), batch_size=st.integers(1, 5))
def test_the_first_damaged_sample_is_named(whole: Copy, data: st.DataObject, shuffle: bool, batch_size: int) -> None:
    """However many are damaged: all batches before it are whole, in the order of an undamaged epoch."""
    order, _ = whole.read(shuffle=shuffle, batch_size=batch_size, remainder="keep")
    damaged = data.draw(st.sets(st.sampled_from(whole.places), min_size=1))
    body = whole.shard(VICTIM).read_bytes()
    spoilt = bytearray(body)
    for start, end, *_ in damaged:
        spoilt[data.draw(st.integers(start, end - 1))] ^= data.draw(st.integers(1, 255))
    try:
        whole.shard(VICTIM).write_bytes(spoilt)
        found, error = whole.read(shuffle=shuffle, batch_size=batch_size, remainder="keep")
    finally:
        whole.shard(VICTIM).write_bytes(body)
    keys = {key for *_, key, _ in damaged}
    first = next(place for place, number in enumerate(order) if f"s{number:02d}" in keys)
    batch = first // batch_size * batch_size
    assert found == order[:batch]
    assert any(f"key 's{number:02d}'" in str(error) for number in order[batch : batch + batch_size])
    assert any(f"key '{key}'" in str(error) for key in keys)


def test_only_what_is_wanted_can_fail(copy: Copy) -> None:
    """Damage in a part that is not read is none; in one that is read it is."""
    start = next(start for start, _, key, suffix in copy.places if (key, suffix) == ("s06", "txt"))
    rewrite(copy.shard(VICTIM), lambda body: body[:start] + b"X" + body[start + 1 :])
    numbers = [batch["cls"].item() for batch in ShardLoader(copy.folder, batch_size=1, parts=["cls", "x.pyd"])]
    assert numbers == list(range(NUM_SAMPLES))
    assert re.search(KEYED.format(key="s06", suffix="txt"), str(copy.read()[1]))
