"""`to_device`: the trainer gets all batches in order, and a checkpoint counts only those that it got.

The logic runs on the meta device, which stores no values; the copies themselves need a GPU.
"""

import json
import subprocess
import sys
import threading
from collections import namedtuple
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from dray.loaders import ShardLoader, to_device
from dray.loaders.device import map_tensors
from dray.shards import CallError, DamagedError
from tests.support.datasets import pack

NUM_SAMPLES, BATCH = 30, 4
STEPS = 8  # the last one is short
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack(tmp_path_factory.mktemp("device"), NUM_SAMPLES)


def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a batch of tensors, which are copied, and a list, which is not."""
    return {"x": torch.stack([row["x.pyd"] for row in rows]), "numbers": [row["cls"] for row in rows]}


def open_loader(url: str, num_workers: int = 0) -> ShardLoader:
    return ShardLoader(
        url, batch_size=BATCH, shuffle=True, seed=2, remainder="keep", num_workers=num_workers, collate=collated
    )


@pytest.mark.parametrize(("ahead", "num_workers"), [(1, 0), (20, 0), (2, 2)])
def test_batches_arrive_in_order_on_the_device(url: str, ahead: int, num_workers: int) -> None:
    """Two epochs, in the loader's order and of its length."""
    plain, loader = open_loader(url), to_device(open_loader(url, num_workers), "meta", ahead=ahead)
    for _ in range(2):
        expected, found = list(plain), list(loader)
        assert [batch["numbers"] for batch in found] == [batch["numbers"] for batch in expected]
        assert [batch["x"].shape for batch in found] == [batch["x"].shape for batch in expected]
        assert {batch["x"].device.type for batch in found} == {"meta"}
        assert len(loader) == len(found) == STEPS


@pytest.mark.parametrize(("taken", "num_workers"), [(0, 0), (1, 0), (5, 2), (STEPS, 0)])
def test_a_state_counts_what_was_handed_on(url: str, taken: int, num_workers: int) -> None:
    """It equals the state of the plain loader at that step, regardless of later copies, and both resume from it."""
    plain, loader = open_loader(url), to_device(open_loader(url, num_workers), "meta", ahead=3)
    batches = iter(loader)
    assert [batch["numbers"] for batch in islice(batches, taken)] == [
        batch["numbers"] for batch in islice(plain, taken)
    ]
    state = json.loads(json.dumps(loader.state_dict()))
    assert state == plain.state_dict()
    fresh = to_device(open_loader(url), "meta")
    fresh.load_state_dict(state)
    assert fresh.state_dict()["steps"] == taken % STEPS
    plain.load_state_dict(state)
    assert [batch["numbers"] for batch in fresh] == [batch["numbers"] for batch in plain]


def test_an_epoch_that_was_named_is_the_next(url: str) -> None:
    """`set_epoch` changes the loader and the state at once."""
    plain, loader = open_loader(url), to_device(open_loader(url), "meta")
    next(iter(loader))
    for one in (plain, loader):
        one.set_epoch(7)
    assert loader.state_dict() == plain.state_dict()
    assert [batch["numbers"] for batch in loader] == [batch["numbers"] for batch in plain]


def test_an_error_comes_after_the_batches_before_it(url: str) -> None:
    """The state is that of the last batch before it."""

    def fail(rows: list[dict[str, Any]]) -> list[int]:
        if any(row["cls"] == 13 for row in rows):
            raise DamagedError("sample 13")
        return [row["cls"] for row in rows]

    loader = to_device(ShardLoader(url, batch_size=BATCH, collate=fail), "meta", ahead=5)
    found: list[Any] = []
    with pytest.raises(DamagedError, match="sample 13"):
        found.extend(loader)
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert loader.state_dict()["steps"] == 3


def test_an_epoch_that_is_left_ends_its_threads(url: str) -> None:
    """The wrapper's thread ends at once, the loader's soon after."""
    before = set(threading.enumerate())

    def begun() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread not in before]

    loader = to_device(open_loader(url), "meta")
    for _ in loader:
        break
    assert {thread.name for thread in begun()} <= {"dray-batches"}
    for thread in begun():
        thread.join(60)
    assert begun() == []
    assert len(list(loader)) == STEPS


LEFT_OPEN = """
import sys
from dray.loaders import ShardLoader, to_device
held = iter(to_device(ShardLoader(sys.argv[1], batch_size=4), "meta"))
next(held)
print("end")
"""


def test_an_iterator_that_is_open_at_the_end_does_not_hold_the_interpreter(url: str) -> None:
    """The process ends without output."""
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, url], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_loader_for_the_cpu_is_handed_back(url: str) -> None:
    """The CPU needs no wrapper."""
    loader = open_loader(url)
    assert to_device(loader, "cpu") is loader
    with pytest.raises(CallError, match="ahead=0"):
        to_device(loader, "cpu", ahead=0)


def test_stats_count_the_waiting_of_the_trainer(url: str) -> None:
    """It does not include the thread's waits; the other values are the loader's."""
    source = open_loader(url)
    loader = to_device(source, "meta")
    list(loader)
    stats = loader.stats()
    assert stats.keys() == source.stats().keys()
    assert stats["samples"] == NUM_SAMPLES
    assert 0 < stats["wait_s"] != source.stats()["wait_s"]


def test_any_loader_with_a_length_will_do() -> None:
    """A missing method is an error when it is called; a state is optional."""
    loader = to_device(DataLoader([torch.ones(1), torch.zeros(2)], batch_size=None), "meta")
    assert [batch.shape for batch in loader] == [(1,), (2,)]
    assert loader.state_dict() == {}
    loader.load_state_dict({})
    with pytest.raises(CallError, match=r"DataLoader has no set_epoch\(\)"):
        loader.set_epoch(1)
    with pytest.raises(CallError, match=r"DataLoader has no load_state_dict\(\)"):
        loader.load_state_dict({"steps": 1})


Pair = namedtuple("Pair", "a b")


def test_tensors_are_found_wherever_they_are() -> None:
    """Containers keep their types; other values stay the same objects."""
    odd = object()
    one = torch.ones(1)
    batch = {"list": [one, 1], "pair": Pair(one, "x"), "tuple": (one, {"deep": [(one,)]}), "odd": odd}
    found = map_tensors(lambda tensor: tensor + 1, batch)
    assert found == {"list": [2, 1], "pair": Pair(2, "x"), "tuple": (2, {"deep": [(2,)]}), "odd": odd}
    assert (type(found["list"]), type(found["pair"]), type(found["tuple"])) == (list, Pair, tuple)


@needs_cuda
@pytest.mark.parametrize("num_workers", [0, 2])
def test_copies_are_whole_on_a_gpu(num_workers: int) -> None:
    """Small and large tensors, used at once on the trainer's stream while later copies run."""
    sizes = [3, 50_000, 1 << 20]
    source = DataLoader(
        [[torch.full((size,), float(number)) for size in sizes] for number in range(50)],
        batch_size=None,
        num_workers=num_workers,
    )
    for number, batch in enumerate(to_device(source, "cuda", ahead=3)):
        assert all(tensor.device.type == "cuda" for tensor in batch)
        assert [tensor.sum().item() for tensor in batch] == [size * number for size in sizes]
