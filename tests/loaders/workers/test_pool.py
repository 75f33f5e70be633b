"""Batches from worker processes: what crosses is what was made, and memory is used again only when nobody needs it."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from typing import Any

import pytest
import torch

from dray.loaders import ShardLoader
from dray.loaders.workers.pool import packed, unpacked
from dray.loaders.workers.shared_memory import ReceiveBuffers, SendBuffers
from tests.loaders.batching.test_stacking import npy
from tests.support.datasets import number_as_text, pack

NUM_SAMPLES, NUM_FLOATS = 120, 40_000  # 160 kB: large enough for buffers of their own


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Large samples, all elements of which are the sample's number."""
    large = {"x.npy": lambda number: npy(torch.full((NUM_FLOATS,), float(number)).numpy()), "cls": number_as_text}
    return pack(tmp_path_factory.mktemp("large"), NUM_SAMPLES, parts=large)


@pytest.fixture
def sides() -> Iterator[tuple[SendBuffers, ReceiveBuffers]]:
    """A worker's buffers and the trainer's, in a pass."""
    reading, writing = Pipe(duplex=False)
    sending, receiving = SendBuffers(reading), ReceiveBuffers(writing)
    receiving.begin(1)
    sending.begin(1)
    yield sending, receiving
    reading.close()
    writing.close()


def test_crossing_leaves_nothing_to_the_garbage_collector(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """A cycle would keep large memory until some collection, and batches would always be made in fresh memory."""
    sending, receiving = sides
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            value = unpacked(packed({"x": [sending.take(100_000)], "y": (torch.zeros(3), "text")}, sending), receiving)
            del value
        assert gc.collect() == 0
    finally:
        gc.enable()


def check(batch: dict[str, Any]) -> None:
    assert torch.equal(batch["x.npy"], batch["cls"].float()[:, None].expand(-1, NUM_FLOATS))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_that_are_kept_do_not_change(url: str, num_workers: int) -> None:
    """While others come, in the same epoch and the next, and after an iterator was left."""
    loader = ShardLoader(url, batch_size=4, shuffle=True, num_workers=num_workers)
    kept = []
    for number, batch in enumerate(loader):
        check(batch)
        if number % 3 == 0:
            kept.append(batch)
    for batch in loader:
        check(batch)
        kept.append({"cls": batch["cls"][:1], "x.npy": batch["x.npy"][:1]})
        break
    for _ in range(2):
        for batch in loader:
            check(batch)
    for batch in kept:
        check(batch)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_may_keep_what_they_made(url: str, num_workers: int) -> None:
    """A collate that holds on to a tensor, or gives two views of one, gets no surprise."""
    held: list[torch.Tensor] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        whole = torch.stack([torch.from_numpy(row["x.npy"]) for row in rows])
        held.append(whole)
        assert all(len(set(tensor[:, 0].tolist()) ^ set(tensor[:, -1].tolist())) == 0 for tensor in held)
        return {"x.npy": whole, "cls": torch.tensor([row["cls"] for row in rows]), "again": whole[:, :5], "same": whole}

    for batch in ShardLoader(url, batch_size=4, num_workers=num_workers, collate=collate):
        check(batch)
        assert torch.equal(batch["again"], batch["x.npy"][:, :5])
        assert torch.equal(batch["same"], batch["x.npy"])


def test_what_crosses_is_what_was_packed(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """Tensors of all kinds, nested, with other values between them."""
    sending, receiving = sides
    filled = sending.take(4000).fill_(7)
    value = {
        "filled": filled.view(torch.int16),
        "its views": [filled[:8], filled.view(10, 400)[:, 1]],
        "small": torch.arange(5),
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "strided": torch.arange(12).view(3, 4).t(),
        "nested": [(torch.ones(2), "text", None), {"deep": torch.tensor([True])}],
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    found = unpacked(packed(value, sending), receiving)
    assert str(found) == str(value)
    assert found["parameter"].requires_grad
    assert [tensor.dtype for tensor in (found["filled"], found["scalar"])] == [torch.int16, torch.bfloat16]


def test_a_buffer_is_filled_again_when_both_sides_are_done(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """Not before: neither while the worker holds it, nor while the trainer does; then it needs no handle any more."""
    sending, receiving = sides
    made = sending.take(100_000).fill_(1)
    address = made.data_ptr()
    got = unpacked(packed([made], sending), receiving)
    assert sending.take(100_000).data_ptr() != address
    del made
    assert sending.take(100_000).data_ptr() != address
    view = got[0][5:9]
    del got
    gc.collect()
    others = [sending.take(100_000) for _ in range(3)]
    assert address not in [other.data_ptr() for other in others]
    assert view.tolist() == [1] * 4
    del view, others
    taken = [sending.take(100_000) for _ in range(4)]
    again = next(tensor for tensor in taken if tensor.data_ptr() == address)
    handle = sending.send(again.fill_(2))
    assert handle is not None
    assert handle.memory is None
    assert receiving.open(handle)[:3].tolist() == [2] * 3


def test_a_new_pass_forgets_what_is_in_use(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """What was sent and never opened, and what the trainer still holds: both stay as they are, and are not leaked."""
    sending, receiving = sides
    held = unpacked(packed([sending.take(100_000).fill_(1)], sending), receiving)
    packed([sending.take(100_000).fill_(2)], sending)
    receiving.begin(2)
    sending.begin(2)
    assert not sending._memory
    fresh = [sending.take(100_000).fill_(3) for _ in range(3)]
    assert held[0].tolist() == [1] * 100_000
    del held
    gc.collect()
    assert not receiving._idle
    assert len(fresh) == len(sending._memory) == 3


def test_a_forked_child_gives_nothing_back(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """It has copies of the trainer's tensors: their end there is not the trainer's."""
    sending, receiving = sides
    got = unpacked(packed([sending.take(100_000).fill_(1)], sending), receiving)
    address = next(iter(sending._memory.values())).data_ptr()
    child = os.fork()
    if not child:
        del got
        os._exit(0)
    os.waitpid(child, 0)
    assert sending.take(100_000).data_ptr() != address
    assert got[0][:2].tolist() == [1, 1]


def test_a_pass_may_begin_while_another_is_made(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """A worker that is late still takes buffers for the old pass; and one may miss a pass."""
    sending, receiving = sides
    unpacked(packed([sending.take(100_000)], sending), receiving)
    receiving.begin(2)
    sending.take(100_000)
    sending.begin(2)
    receiving.begin(3)
    receiving.begin(4)
    sending.begin(4)
    sending.begin(4)
    assert len(unpacked(packed([sending.take(100_000)], sending), receiving)) == 1


def test_giving_back_never_waits_for_the_worker(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """More buffers at once than the pipe has room for: those beyond are made anew, and nothing is lost."""
    sending, receiving = sides
    handle = sending.send(sending.take(100))
    assert handle is not None
    for _ in range(20_000):
        receiving._give_back(1, 12_345, None)
    sending.take(100)
    assert receiving.open(handle).shape == (64 << 10,)


def test_memory_of_sizes_that_do_not_come_again_is_let_go(sides: tuple[SendBuffers, ReceiveBuffers]) -> None:
    """On both sides, when there are many buffers."""
    sending, receiving = sides
    for number in range(1, 400):
        batch = unpacked(packed([sending.take(number * 70_000)], sending), receiving)
        assert len(batch[0]) == number * 70_000
        del batch
    assert len(sending._memory) <= 64
    assert len(receiving._idle) <= 65


def test_a_loader_may_be_used_by_a_thread(url: str) -> None:
    """Its workers, forked there, end by themselves: torch would tell of one that does not."""
    with ThreadPoolExecutor(1) as thread:
        batches = thread.submit(lambda: list(ShardLoader(url, batch_size=40, num_workers=2))).result()
    for batch in batches:
        check(batch)
    gc.collect()


def stuck_at(*numbers: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A transform that waits for ever at some samples, unless it is told not to."""

    def wait(row: dict[str, Any]) -> dict[str, Any]:
        if row["cls"] in numbers and not os.environ.get("DRAY_TEST_LIVE"):
            signal.pause()
        return row

    return wait


def hasten(loader: ShardLoader) -> None:
    """Let workers that run not be waited for long; on a busy machine they may take seconds to start."""
    assert loader._pool is not None
    patience = loader._pool._processes.patience
    assert (patience.timeout_s, patience.warn_s) in ((100, 60), (0, 60))
    patience.timeout_s, patience.warn_s = patience.timeout_s / 200, patience.warn_s / 60


def test_a_stuck_worker_is_an_error_that_names_it_and_the_next_pass_has_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, and when one begins while a worker still has some of the last one to do."""
    options: Any = {"batch_size": 30, "num_workers": 2, "timeout_s": 100, "rank": 1, "num_ranks": 2}
    loader = ShardLoader(url, transform=stuck_at(99), **options)  # in the second batch of rank 1
    batches = iter(loader)
    next(batches)
    hasten(loader)
    with pytest.raises(RuntimeError, match=r"^rank 1 waits for step 1 of epoch 0: .* from worker 1 \(process \d+\)"):
        next(batches)
    next(iter(loader))
    hasten(loader)
    with pytest.raises(RuntimeError, match=r"^rank 1 waits for the start of epoch 2: .* worker 0 .* or worker 1 "):
        list(loader)
    monkeypatch.setenv("DRAY_TEST_LIVE", "1")
    assert len(list(loader)) == 2


def test_without_a_timeout_a_long_wait_is_warned_of(url: str) -> None:
    """With rank, step, worker and where to look; here the warning is an error, as nothing else ends the wait."""
    loader = ShardLoader(url, batch_size=40, num_workers=2, transform=stuck_at(99))
    batches = iter(loader)
    assert len(next(batches)["cls"]) == len(next(batches)["cls"]) == 40
    hasten(loader)
    with pytest.raises(UserWarning, match=r"rank 0 waits for step 2 of epoch 0: .*worker 0 .*`py-spy dump --pid \d+`"):
        next(batches)
