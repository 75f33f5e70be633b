"""A forked child, without its parent's threads and workers, starts its own or raises an error, and never hangs."""

import gc
import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import ShardLoader, Split, WebDataModule, to_device
from dray.loaders.lazy import lazy
from dray.shards.errors import CallError, DrayError, StoreError
from tests.support.datasets import pack

NUM_SAMPLES, LIMIT_S = 40, 60


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack(tmp_path_factory.mktemp("forks"), NUM_SAMPLES, 4)


def in_child(work: Callable[[], Any]) -> Any:
    """Returns or raises what some work does in a forked child; one that hangs is killed and is an error here."""
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)

    def run() -> None:
        try:
            writing.send(work())
        except BaseException as exc:
            writing.send(exc)

    child = context.Process(target=run)
    child.start()
    try:
        assert reading.poll(LIMIT_S), "the child hangs"
        found = reading.recv()
        child.join(LIMIT_S)
        assert child.exitcode == 0, "the child does not end"
    finally:
        child.kill()
        child.join()
    if isinstance(found, BaseException):
        raise found
    return found


def classes(batches: Any) -> list[list[int]]:
    return [batch["cls"].tolist() for batch in batches]


def a_loader(url: str, **options: Any) -> ShardLoader:
    return ShardLoader(url, parts="cls", batch_size=3, shuffle=True, remainder="keep", **options)


class Wrapped(IterableDataset[Any]):
    """Wraps a loader as users do for torch."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def from_torch(dataset: Any, num_workers: int, **options: Any) -> list[Any]:
    """Returns batches of a torch DataLoader, or its error without torch's iterator, which is slow to end."""
    given = {"batch_size": None, "multiprocessing_context": "fork", "timeout": LIMIT_S, **options}
    try:
        return list(DataLoader(dataset, num_workers=num_workers, **given))
    except DrayError as exc:
        traceback.clear_frames(exc.__traceback__)
        raise


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 5, None])
def test_a_child_iterates_whatever_its_parent_did(url: str, num_workers: int, taken: int | None) -> None:
    """The child starts again; its parent continues undisturbed with its own threads and workers."""
    loader, expected = a_loader(url, num_workers=num_workers), a_loader(url)
    epochs = [classes(expected) for _ in range(3)]
    batches = iter(loader)
    seen = classes(islice(batches, taken))
    assert in_child(lambda: classes(loader)) == epochs[1 if seen else 0]
    assert seen + classes(batches) == epochs[0]
    assert in_child(lambda: (loader.set_epoch(2), classes(loader))[1]) == epochs[2]
    assert classes(loader) == epochs[1]


def test_a_child_forgets_its_parents_workers(url: str) -> None:
    """Torch knows them by the address of their iterator, which another one may have later."""
    loader = a_loader(url, num_workers=1)
    classes(loader)

    def replaced() -> int:
        for _ in range(4):
            loader.set_epoch(0)
            loader._pool = None
            gc.collect()
            assert len(classes(loader)) == 14
        return 7

    assert in_child(lambda: (classes(loader), replaced())[1]) == 7
    assert len(classes(loader)) == 14


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_iterator_held_over_a_fork_is_refused(url: str, num_workers: int) -> None:
    """Its own error says so; the loader itself continues there from any state that it is set to."""
    loader = a_loader(url, num_workers=num_workers)
    batches = iter(loader)
    seen = classes(islice(batches, 2))
    with pytest.raises(CallError, match=r"begun in process \d+, .* forked"):
        in_child(lambda: next(batches))

    def resumed() -> list[list[int]]:
        loader.load_state_dict(loader.state_dict())
        return classes(loader)

    rest = in_child(resumed)
    assert rest == classes(batches)
    assert len(seen) == 2


def test_a_fork_while_another_thread_iterates(url: str) -> None:
    """At any point of it: a thread can be anywhere when another one forks."""
    loader, stop = a_loader(url), threading.Event()

    def iterate() -> None:
        while not stop.is_set():
            for _ in loader:
                pass

    thread = threading.Thread(target=iterate)
    thread.start()
    try:
        for _ in range(5):
            assert len(in_child(lambda: (loader.set_epoch(0), classes(loader))[1])) == 14
    finally:
        stop.set()
        thread.join()


def test_a_fork_while_another_thread_computes_a_property() -> None:
    """The child does not wait for that thread."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, wait: Callable[[], object]) -> None:
            self.wait = wait

        @lazy
        def value(self) -> int:
            self.wait()
            return 7

    slow = Slow(lambda: (begun.set(), go_on.wait()))
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    begun.wait()
    assert in_child(lambda: Slow(lambda: None).value) == 7
    go_on.set()
    thread.join()
    assert vars(slow)["value"] == slow.value == 7


def test_a_torch_loader_around_a_loader_takes_one_worker(url: str) -> None:
    """Also after the parent has read a batch; two would yield every sample twice, so they are refused."""
    loader = a_loader(url)
    next(iter(loader))
    expected = a_loader(url)
    expected.set_epoch(1)
    assert classes(from_torch(Wrapped(loader), 1)) == classes(expected)
    with pytest.raises(CallError, match=r"2 times.*ShardLoader\(num_workers="):
        from_torch(Wrapped(loader), 2)
    with pytest.raises(CallError, match=r"num_workers=1: .* may not start processes"):
        from_torch(Wrapped(a_loader(url, num_workers=1)), 1)


def test_batches_on_their_way_to_a_device_stay_with_the_parent(url: str) -> None:
    """The copying thread belongs to the parent."""
    loader = to_device(a_loader(url), "meta")
    batches = iter(loader)
    next(batches)
    with pytest.raises(CallError, match=r"begun in process \d+, .* forked"):
        in_child(lambda: next(batches))
    assert in_child(lambda: len(list(loader))) == 14
    assert len(list(batches)) == 13


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_of_a_data_module(url: str, num_workers: int) -> None:
    """They yield and refuse the same as a native loader."""
    data = WebDataModule(
        None,
        "cls",
        {Split.train: url, Split.val: url},
        4,
        kwargs_wld={Split.train: {"num_workers": num_workers, "multiprocessing_context": "fork"}},
    )
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = [[row for (row,) in loader] for _ in range(2)]
    outputs = iter(loader)
    next(outputs)
    with pytest.raises(CallError, match=r"begun in process \d+, .* forked"):
        in_child(lambda: next(outputs))

    def first() -> list[Any]:
        loader.set_epoch(0)
        return [row for (row,) in loader]

    assert in_child(first) == epochs[0]
    assert len(list(outputs)) == 9
    if not num_workers:
        assert len(from_torch(Wrapped(loader), 1)) == 10
        with pytest.raises(CallError, match=r"2 times.*kwargs_wld"):
            from_torch(Wrapped(loader), 2)
    data.teardown("fit")


def test_object_storage_does_not_live_through_a_fork(tmp_path: Path, s3: SeaweedServer) -> None:
    """Its connections stay with the parent: an error says so at any point of the parent's epoch."""
    url = pack(tmp_path, NUM_SAMPLES, 4, s3.url("forks"), storage_options=s3.storage_options)
    loader = a_loader(url, storage_options=s3.storage_options)
    for taken in (0, 1, None):
        batches = iter(loader)
        classes(islice(batches, taken))
        with pytest.raises(StoreError, match="this process was forked"):
            in_child(lambda: classes(loader))
