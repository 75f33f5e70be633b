"""Batches from worker processes do not change while a trainer keeps them, and a stuck worker is named."""

import gc
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from dray.loaders import ShardLoader
from tests.loaders.batching.test_stacking import npy
from tests.support.datasets import number_as_text, pack

NUM_SAMPLES, NUM_FLOATS = 120, 40_000  # 160 kB: large enough for buffers of their own


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a dataset of large samples whose elements all equal the sample's number."""
    large = {"x.npy": lambda number: npy(torch.full((NUM_FLOATS,), float(number)).numpy()), "cls": number_as_text}
    return pack(tmp_path_factory.mktemp("large"), NUM_SAMPLES, parts=large)


def check(batch: dict[str, Any]) -> None:
    assert torch.equal(batch["x.npy"], batch["cls"].float()[:, None].expand(-1, NUM_FLOATS))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_that_are_kept_do_not_change(url: str, num_workers: int) -> None:
    """While others arrive, in the same epoch and the next, and after an iterator was abandoned."""
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
    """A collate may keep a tensor, or return two views of one."""
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


def test_a_loader_may_be_used_by_a_thread(url: str) -> None:
    """Its workers, forked there, end by themselves: torch would report one that does not."""
    with ThreadPoolExecutor(1) as thread:
        batches = thread.submit(lambda: list(ShardLoader(url, batch_size=40, num_workers=2))).result()
    for batch in batches:
        check(batch)
    gc.collect()


def stuck_at(*numbers: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns a transform that hangs at some samples until it is released."""

    def wait(row: dict[str, Any]) -> dict[str, Any]:
        if row["cls"] in numbers and not os.environ.get("DRAY_TEST_LIVE"):
            signal.pause()
        return row

    return wait


def hasten(loader: ShardLoader) -> None:
    """Shorten the wait for running workers; on a busy machine they may take seconds to start."""
    assert loader._pool is not None
    assert loader._pool._team is not None
    watchdog = loader._pool._team.processes.watchdog
    assert (watchdog.timeout_s, watchdog.warn_s) in ((100, 60), (0, 60))
    watchdog.timeout_s, watchdog.warn_s = watchdog.timeout_s / 200, watchdog.warn_s / 60


def test_a_stuck_worker_is_an_error_that_names_it_and_the_next_pass_has_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within an epoch, and at the start of one while a worker is still busy with the last."""
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
    """The warning names rank, step, worker and what to run; here it is an error, as nothing else ends the wait."""
    loader = ShardLoader(url, batch_size=40, num_workers=2, transform=stuck_at(99))
    batches = iter(loader)
    assert len(next(batches)["cls"]) == len(next(batches)["cls"]) == 40
    hasten(loader)
    with pytest.raises(UserWarning, match=r"rank 0 waits for step 2 of epoch 0: .*worker 0 .*`py-spy dump --pid \d+`"):
        next(batches)
