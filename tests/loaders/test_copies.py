"""Copies of loaders, by pickle or `copy`: they go on where the loader is, and share no threads or workers with it."""

import copy
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from torch.utils.data import DataLoader
from webdataset import batched

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import ShardLoader, Split, WebDataModule, to_device
from tests.loaders.workers.test_forks import Wrapped, classes
from tests.support.datasets import pack

COPIERS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda loader: pickle.loads(pickle.dumps(loader)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
NUM_SAMPLES, STEPS = 40, 10


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack(tmp_path_factory.mktemp("copies"), NUM_SAMPLES, 4)


def a_loader(url: str, **options: Any) -> ShardLoader:
    return ShardLoader(url, parts="cls", batch_size=4, shuffle=True, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("copier", COPIERS)
def test_a_copy_goes_on_from_where_the_loader_is(url: str, copier: str, num_workers: int) -> None:
    """Before, in and after an epoch, at whose end they start the next one. The loader itself is not disturbed."""
    plain = a_loader(url)
    epochs = [classes(plain) for _ in range(3)]
    loader = a_loader(url, num_workers=num_workers, transform=lambda row: row)
    assert classes(COPIERS[copier](loader)) == epochs[0]
    batches = iter(loader)
    seen = classes(islice(batches, 3))
    other = COPIERS[copier](loader)
    assert other.state_dict() == loader.state_dict()
    assert len(other) == STEPS
    pairs = list(zip(batches, other, strict=True))
    assert seen + classes(ours for ours, _ in pairs) == epochs[0]
    assert classes(theirs for _, theirs in pairs) == epochs[0][3:]
    assert other.stats()["samples"] == 4 * len(pairs)
    assert classes(COPIERS[copier](loader)) == classes(loader) == classes(other) == epochs[1]
    loader.set_epoch(2)
    assert classes(COPIERS[copier](loader)) == epochs[2]


def test_what_does_not_pickle_is_no_obstacle_to_a_copy(url: str) -> None:
    """A transform may hold a lock, as functions are not copied."""
    lock = Lock()

    def locked(row: dict[str, Any]) -> dict[str, Any]:
        with lock:
            return row

    assert len(list(copy.deepcopy(a_loader(url, transform=locked)))) == STEPS


def test_a_copy_of_a_device_loader_takes_what_the_trainer_has_not_got(url: str) -> None:
    """For any number of batches that were copied ahead."""
    plain = a_loader(url, with_keys=True)
    keys = [batch["__key__"] for batch in plain]
    loader = to_device(a_loader(url, with_keys=True), "meta", ahead=3)
    batches = iter(loader)
    next(batches)
    for make in COPIERS.values():
        assert [batch["__key__"] for batch in make(loader)] == keys[1:]
    assert [batch["__key__"] for batch in batches] == keys[1:]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("copier", ["pickle", "deepcopy"])
def test_loaders_of_a_data_module_are_copied_too(url: str, copier: str, num_workers: int) -> None:
    """With their pipelines, including lambdas."""
    data = WebDataModule(
        None,
        "cls",
        dict.fromkeys((Split.train, Split.val), url),
        4,
        pipeline_wds={Split.train: lambda source: (2 * number for (number,) in source)},
        pipeline_prebatch_wld={Split.train: batched(4, collation_fn=lambda rows: [int(row) for row in rows])},
        kwargs_wds={Split.train: {"shardshuffle": True}},
        kwargs_wld={Split.train: {"num_workers": num_workers}},
    )
    data.setup("fit")
    loader = data.train_dataloader()
    untouched = COPIERS[copier](loader)
    outputs = iter(loader)
    seen = list(islice(outputs, 3))
    other = COPIERS[copier](loader)
    rest = list(outputs)
    assert list(other) == rest
    assert list(untouched) == seen + rest
    assert list(other) == list(loader)
    for one in (loader, other, untouched):
        one.close()


def test_copies_over_object_storage(tmp_path: Path, s3: SeaweedServer) -> None:
    """While requests are running; in another process a copy has connections of its own."""
    options = {"storage_options": s3.storage_options}
    url = pack(tmp_path, NUM_SAMPLES, 4, s3.url("copies"), storage_options=s3.storage_options)
    expected = classes(a_loader(url, **options))
    loader = a_loader(url, **options)
    batches = iter(loader)
    next(batches)
    assert classes(copy.deepcopy(loader)) == expected[1:]
    torchs = DataLoader(Wrapped(loader), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert classes(torchs) == expected[1:]
    assert classes(batches) == expected[1:]


@pytest.mark.heavy
def test_copies_of_loaders_with_workers_over_object_storage(tmp_path: Path, s3: SeaweedServer) -> None:
    """The workers are spawned, so a copy's are too."""
    options = {"storage_options": s3.storage_options, "num_workers": 1}
    url = pack(tmp_path, NUM_SAMPLES, 4, s3.url("copies-workers"), storage_options=s3.storage_options)
    loader = a_loader(url, **options)
    batches = iter(loader)
    next(batches)
    copies = [make(loader) for make in COPIERS.values()]
    expected = classes(batches)
    for other in copies:
        assert classes(other) == expected
