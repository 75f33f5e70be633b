"""The loader of a WebDataModule: pipelines, workers, keywords, and tars of other tools."""

# Long: every test is one pass over the same datasets, dealt out to ranks in the same way.

import json
import os
import pickle
import random
import re
import signal
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import get_worker_info
from webdataset import batched, shuffle
from webdataset.handlers import ignore_and_continue, ignore_and_stop, reraise_exception

from dray.loaders import Split, WebDataModule
from dray.loaders.webloader.chunks import FeedCount, by_chunk
from dray.loaders.webloader.keywords import KWARGS_WDS, KWARGS_WLD
from dray.shards import DamagedError, Store
from dray.shards.errors import CallError
from tests.support import datasets

SIZES = (1, 3, 47, 61)
MANY = 61
TRAIN = Split.train
SUFFIX = "x.pyd"


PARTS = {**datasets.PARTS, "ragged.pyd": lambda number: pickle.dumps(np.arange(number % 3))}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """Returns a dataset of each size."""
    folder = tmp_path_factory.mktemp("webloader")
    return {size: Path(datasets.pack(folder / str(size), size, min(size, 5), parts=PARTS)) for size in SIZES}


def untuple(source: Iterable[tuple[torch.Tensor]]) -> Iterator[torch.Tensor]:
    return (sample for (sample,) in source)


def lists(size: int) -> Callable[[Iterable[torch.Tensor]], Iterator[list[int]]]:
    """Returns a stage that makes batches of at most this number of samples, as their numbers."""

    def batch(source: Iterable[torch.Tensor]) -> Iterator[list[int]]:
        for found in batched(size, collation_fn=list)(source):
            yield [int(sample[0]) for sample in found]

    return batch


def module(url: Path | str, batch: int | None, size: int, **options: Any) -> WebDataModule:
    """Returns the training split of a dataset, batched in the trainer."""
    by_split = {"pipeline_wds": untuple, "pipeline_prebatch_wld": lists(size), **options}
    data = WebDataModule(
        None, SUFFIX, {TRAIN: str(url), Split.val: str(url)}, batch,
        **{name: {TRAIN: value} for name, value in by_split.items()},
    )  # fmt: skip
    data.setup("fit")
    return data


def ranks_of(url: Path, num_ranks: int, batch: int | None, state: Any = None, **options: Any) -> list[Any]:
    """Returns the training loader of each rank."""
    loaders = []
    for rank in range(num_ranks):
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks))
        data = module(url, batch, -(-(batch or 64) // num_ranks), **options)
        if state is not None:
            data.load_state_dict(json.loads(json.dumps(state)))
        loaders.append((data, data.train_dataloader()))
    os.environ.update(RANK="0", WORLD_SIZE="1")
    return loaders


def flat(nested: Iterable[Any]) -> list[int]:
    return [number for inner in nested for number in (flat(inner) if isinstance(inner, list) else [inner])]


shuffles = st.sampled_from([{"shardshuffle": False}, {"shardshuffle": True, "seed": 4}])


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SIZES), st.integers(1, 9), shuffles)
def test_one_pass_gives_each_sample_to_one_rank(
    urls: Mapping[int, Path], size: int, num_ranks: int, kwargs_wds: dict[str, Any]
) -> None:
    """Without a global batch size there is no length and no filler."""
    loaders = ranks_of(urls[size], num_ranks, None, kwargs_wds=kwargs_wds)
    found = [flat(loader) for _, loader in loaders]
    assert sorted(flat(found)) == list(range(size))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    with pytest.raises(TypeError, match="no length"):
        len(loaders[0][1])


def test_a_loader_that_was_closed_begins_again(tmp_path: Path) -> None:
    """Its iterator and threads end; stats and state are kept."""
    local, store = Path(datasets.pack(tmp_path, 61, 5)), Store(f"memory://{tmp_path.name}")
    for path in local.rglob("*.*"):
        store.put_new(str(path.relative_to(local)), path.read_bytes())
    others = set(threading.enumerate())  # of loaders that earlier tests left open
    data = module(store.url, 8, 8)
    loader = data.train_dataloader()
    batches = iter(loader)
    taken = [next(batches), next(batches)]
    stats = loader.stats()
    fetching = [thread for thread in threading.enumerate() if thread not in others and "dray-fetch" in thread.name]
    assert fetching
    data.teardown("fit")
    with pytest.raises(CallError, match="this iterator has ended"):
        next(batches)
    for thread in fetching:
        thread.join()
    assert loader.stats() == stats
    data.load_state_dict(data.state_dict())
    assert flat([taken, list(loader)]) == list(range(61))


# The user's pipelines


def halves(source: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    return (sample for sample in source if int(sample[0]) % 2)


def twice(source: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    return (sample for sample in source for _ in range(2))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "stages",
    [[untuple, halves], [untuple, twice], [untuple, shuffle(30, rng=random.Random(1))]],
    ids=["filter", "multiply", "hold"],
)
def test_pipelines_that_filter_multiply_or_hold_still_fill_the_epoch(
    urls: Mapping[int, Path], stages: Any, num_workers: int
) -> None:
    """There are ceil(n / G) outputs, from further passes if needed; a checkpoint in between warns once."""
    data = module(urls[MANY], 8, 8, pipeline_wds=stages, kwargs_wld={"num_workers": num_workers})
    loader = data.train_dataloader()
    assert [len(list(loader)), len(list(loader))] == [8, 8]
    batches = iter(loader)
    next(batches)
    with pytest.warns(UserWarning, match="lost or repeated after a resume") as caught:
        state = data.state_dict()
    assert len(caught) == 1
    rest = module(urls[MANY], 8, 8, pipeline_wds=stages)
    rest.load_state_dict(state)
    assert len(list(rest.train_dataloader())) == 7


def test_batches_made_in_the_workers_are_exact(urls: Mapping[int, Path]) -> None:
    """A stage of the pipeline, or `batch_size` and `collate_fn`, makes one output per chunk."""
    in_stage: dict[str, Any] = {"pipeline_wds": [untuple, lists(8)], "kwargs_wld": {"num_workers": 2}}
    by_torch = {"kwargs_wld": {"num_workers": 2, "batch_size": 8, "collate_fn": lambda rows: [int(r[0]) for r in rows]}}
    for options in (in_stage, by_torch):
        data = module(urls[MANY], 8, 8, **{**options, "pipeline_prebatch_wld": []})
        first = list(islice(data.train_dataloader(), 3))
        rest = module(urls[MANY], 8, 8, **{**options, "pipeline_prebatch_wld": []})
        rest.load_state_dict(data.state_dict())
        assert flat([first, list(rest.train_dataloader())]) == list(range(MANY))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_drop_last_leaves_out_the_short_batch_of_each_worker(
    urls: Mapping[int, Path], num_workers: int, *, drop_last: bool
) -> None:
    """47 samples are one chunk: all of them go to the first worker."""
    wld = {"num_workers": num_workers, "batch_size": 6, "drop_last": drop_last}
    data = module(urls[47], None, 1, kwargs_wld=wld, pipeline_prebatch_wld=[])
    sizes = [len(batch) for batch in data.train_dataloader()]
    assert sizes == [6] * 7 + ([] if drop_last else [5])


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_after_an_error_in_a_worker_the_next_epoch_has_other_workers(
    urls: Mapping[int, Path], tmp_path: Path, *, persistent_workers: bool
) -> None:
    """Persistent workers live from epoch to epoch, but not past an error."""
    bad = tmp_path / "bad"

    def fail(source: Iterable[tuple[torch.Tensor]]) -> Iterator[tuple[int, int]]:
        for (sample,) in source:
            if bad.exists() and int(sample[0]) == 20:
                raise ZeroDivisionError("a bad sample")
            yield int(sample[0]), os.getpid()

    wld = {"num_workers": 2, "persistent_workers": persistent_workers}
    data = module(urls[MANY], 8, 8, pipeline_wds=fail, pipeline_prebatch_wld=[], kwargs_wld=wld)
    loader = data.train_dataloader().with_epoch(MANY)

    def epoch() -> set[int]:
        found = list(loader)
        assert [number for number, _ in found] == list(range(MANY))
        return {process for _, process in found}

    first, second = epoch(), epoch()
    assert (first == second) == persistent_workers
    bad.touch()
    with pytest.raises(ZeroDivisionError, match="a bad sample"):
        list(loader)
    bad.unlink()
    assert epoch().isdisjoint(first | second)
    data.teardown("fit")


def test_further_passes_and_further_epochs_have_orders_of_their_own(urls: Mapping[int, Path]) -> None:
    """Each of an epoch's three passes has every sample, in an order unlike any other in this epoch and the next."""
    data = WebDataModule(
        {TRAIN: 3 * MANY, Split.val: None}, SUFFIX, {TRAIN: str(urls[MANY]), Split.val: str(urls[MANY])}, 1,
        pipeline_wds={TRAIN: untuple}, kwargs_wds={TRAIN: {"shardshuffle": True, "seed": 5}},
    )  # fmt: skip
    data.setup("fit")
    loader = data.train_dataloader()
    given = [int(sample[0]) for _ in range(2) for sample in loader]
    passes = [tuple(given[start : start + MANY]) for start in range(0, len(given), MANY)]
    assert [sorted(one) for one in passes] == [list(range(MANY))] * 6
    assert len(set(passes)) == 6
    single = module(urls[MANY], 1, 1, kwargs_wds={"shardshuffle": True, "seed": 5}).train_dataloader()
    assert [tuple(flat(list(single))) for _ in range(2)] == [passes[0], passes[3]]


@pytest.mark.parametrize("size", [3, 4, 8])
def test_a_filter_that_drops_one_of_a_chunk_is_not_exact(size: int) -> None:
    """It yields neither one output per sample nor one per chunk, so a checkpoint inside an epoch must warn."""
    count = FeedCount()

    def source() -> Iterator[int]:
        for _ in range(4):
            count.sizes.append(size)
            count.taken = 0
            for place in range(size):
                count.taken += 1
                yield place

    given = list(by_chunk((place for place in source() if place != 1), count))
    assert [len(chunk.outputs) for chunk in given] == [size - 1] * 4
    assert not any(chunk.is_exact for chunk in given)


def test_pipelines_that_keep_nothing_are_an_error(urls: Mapping[int, Path]) -> None:
    """The epoch is neither endless nor empty."""
    loader = module(urls[3], 2, 2, pipeline_wds=lambda source: (x for x in source if False)).train_dataloader()
    with pytest.raises(CallError, match="2 outputs are missing"):
        list(loader)


@given(st.lists(st.integers(0, 4), max_size=6), st.sampled_from(["one", "filter", "twice", "hold", "last", "batched"]))
def test_outputs_are_counted_by_chunk(sizes: list[int], what: str) -> None:
    """No output is lost or reordered; with one output per sample or chunk, each chunk has its own."""
    count = FeedCount()

    def source() -> Iterator[int]:
        for number, size in enumerate(sizes):
            count.sizes.append(size)
            count.taken = 0
            for place in range(size):
                count.taken += 1
                yield 10 * number + place

    def hold(values: Iterable[int]) -> Iterator[int]:
        held = list(islice(values, 3))
        for value in values:
            held.append(value)
            yield held.pop(0)
        yield from held

    def peek(values: Iterable[int]) -> Iterator[int]:
        """Yields the last sample of each chunk, once the next sample was taken."""
        for value, following in pairwise(chain(values, [1000])):
            if value // 10 != following // 10:
                yield value

    pipes: dict[str, Callable[[Iterable[int]], Iterable[int]]] = {
        "one": iter, "filter": lambda v: (n for n in v if n % 2), "twice": lambda v: (n for n in v for _ in "ab"),
        "hold": hold, "last": lambda v: (n for n in v if n % 10 == sizes[n // 10] - 1), "batched": peek,
    }  # fmt: skip
    every = [10 * number + place for number, size in enumerate(sizes) for place in range(size)]
    found = list(by_chunk(pipes[what](source()), count))
    assert [n for given in found for n in given.outputs] == list(pipes[what](iter(every)) if what != "hold" else every)
    assert len(found) == len(sizes) or (what in ("hold", "twice") and not found[-1].is_exact)
    if what == "one":
        assert [len(given.outputs) for given in found] == sizes
    if what in ("last", "batched") and 0 not in sizes:
        assert all(n // 10 == number for number, given in enumerate(found) for n in given.outputs)


def test_parts_are_what_webdataset_would_decode(urls: Mapping[int, Path]) -> None:
    """Tensors and arrays keep their type until they leave the worker; suffixes match by their end, in any case."""
    kinds: list[list[type]] = []

    def note(source: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        for sample in source:
            kinds.append([type(value) for value in sample])
            yield sample

    data = module(urls[MANY], None, 1, pipeline_wds=note, pipeline_prebatch_wld=[])
    data._suffix_keys_wds = ("RAGGED.pyd", "x.pyd", "cls")
    data.setup("fit")
    samples = list(data.train_dataloader())
    assert set(map(tuple, kinds)) == {(np.ndarray, torch.Tensor, int)}
    assert [sample[2] for sample in samples] == [int(sample[1][0]) for sample in samples] == list(range(MANY))
    assert [len(sample[0]) for sample in samples] == [number % 3 for number in range(MANY)]
    data._suffix_keys_wds = "pyd"
    data.setup("fit")
    with pytest.raises(CallError, match=r"'s0000': several parts with suffix 'pyd'.*'x\.pyd'"):
        next(iter(data.train_dataloader()))


# Keywords


def spoil(url: Path, key: bytes) -> None:
    """Flip a byte of the tensor of one sample."""
    for path in url.glob("*.tar"):
        with tarfile.open(path) as tar:
            found = [member for member in tar if member.name.encode() == key + b".x.pyd"]
        for member in found:
            body = bytearray(path.read_bytes())
            body[member.offset_data + 40] ^= 1
            path.write_bytes(body)


def test_a_handler_that_goes_on_replaces_what_cannot_be_read(tmp_path: Path) -> None:
    """The substitute is the same for any number of ranks and workers, also in a lost shard; other handlers raise."""
    url = Path(datasets.pack(tmp_path, 24))
    spoil(url, b"s0007")
    seen: list[Exception] = []
    with pytest.raises(DamagedError, match="s0007"):
        list(module(url, 4, 4, kwargs_wds={"handler": reraise_exception}).train_dataloader())
    options: dict[str, Any] = {"kwargs_wds": {"handler": ignore_and_continue, "shardshuffle": True}}
    whole = list(module(url, 4, 4, **options).train_dataloader())
    assert set(flat(whole)) == set(range(24)) - {7}
    assert [len(step) for step in whole] == [4] * 6
    ranks = ranks_of(url, 2, 4, kwargs_wld={"num_workers": 2}, **options)
    assert [flat(step) for step in zip(*(loader for _, loader in ranks), strict=True)] == whole
    with pytest.raises(CallError, match="would end this rank's epoch"):
        module(url, 4, 4, kwargs_wds={"handler": ignore_and_stop})
    with pytest.raises(CallError, match="stops at an error"):
        list(module(url, 4, 4, kwargs_wds={"handler": lambda exc: seen.append(exc)}).train_dataloader())
    assert isinstance(seen[0], DamagedError)
    (url / "wdshards-000002.tar").unlink()
    loader = module(url, 4, 4, **options).train_dataloader()
    assert set(flat(list(loader))) == set(range(16)) - {7}
    assert loader.stats()["skipped"] == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kwargs_wds": {"resampled": True}}, "resampled=True is refused: samples drawn with replacement"),
        ({"kwargs_wds": {"mode": "resampled"}}, "mode='resampled' is refused"),
        ({"kwargs_wds": {"sharedshuffle": True}}, "'sharedshuffle' is not known; known are shardshuffle, seed"),
        ({"kwargs_wds": {"seed": "x"}}, "seed='x': expected an integer"),
        ({"kwargs_wld": {"shuffle": True}}, "shuffle=True is refused: `kwargs_wds` has `shardshuffle`"),
        ({"kwargs_wld": {"workers": 2}}, "kwargs_wld: 'workers' is not known; known are num_workers"),
    ],
)
def test_keywords_that_make_no_sense_are_refused(
    urls: Mapping[int, Path], options: dict[str, Any], message: str
) -> None:
    """They are refused at once, with the reason or the known keywords."""
    with pytest.raises(CallError, match=re.escape(message)):
        module(urls[3], 2, 2, **options)


def test_keywords_that_change_nothing_are_said_once(urls: Mapping[int, Path]) -> None:
    """One warning per dictionary covers all splits; defaults cause none."""
    quiet = {"kwargs_wds": {"resampled": False, "nodesplitter": None, "empty_check": True, "repeat": False}}
    module(urls[3], 2, 2, **quiet)
    with pytest.warns(UserWarning, match="ignored") as caught:
        module(urls[3], 2, 2, kwargs_wds={"detshuffle": True, "verbose": True}, kwargs_wld={"in_order": False})
    assert [str(warning.message).split(" (")[0] for warning in caught] == [
        "kwargs_wds: not needed here and ignored: detshuffle", "kwargs_wld: not needed here and ignored: in_order",
    ]  # fmt: skip


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.heavy)])
def test_keywords_of_workers_reach_torch(urls: Mapping[int, Path], context: str) -> None:
    """Their number, start and context are set, and lambdas reach them with any start method."""
    num_workers = 2 if context == "fork" else 1
    note = lambda worker: os.environ.update(DRAY_TEST_WORKER=str(worker))  # noqa: E731
    wld = {"num_workers": num_workers, "multiprocessing_context": context, "worker_init_fn": note,
           "prefetch_factor": 1, "timeout": 100, "persistent_workers": False, "pin_memory": True}  # fmt: skip
    pipe = lambda source: ((os.environ["DRAY_TEST_WORKER"], int(x[0])) for (x,) in source)  # noqa: E731
    loader = module(urls[MANY], 8, 8, pipeline_wds=pipe, pipeline_prebatch_wld=[], kwargs_wld=wld).train_dataloader()
    loader = loader.with_epoch(MANY)
    for _ in range(num_workers):
        found = list(loader)
        assert [number for _, number in found] == list(range(MANY))
        assert [int(worker) for worker, _ in found] == [number // 8 % num_workers for number in range(MANY)]


def test_a_stuck_worker_is_named_after_the_timeout(urls: Mapping[int, Path]) -> None:
    """The second worker is stuck, as its pipeline hangs."""
    pipe = lambda source: (x if get_worker_info().id == 0 else signal.pause() for (x,) in source)  # noqa: E731
    wld = {"num_workers": 2, "timeout": 100}
    loader = module(urls[MANY], 8, 8, pipeline_wds=pipe, pipeline_prebatch_wld=[], kwargs_wld=wld).train_dataloader()
    samples = iter(loader.with_epoch(MANY))
    next(samples)
    watchdog = loader._passes._pool._team.processes.watchdog
    assert watchdog.timeout_s == 100
    watchdog.timeout_s = 0.5  # now that the workers run
    with pytest.raises(RuntimeError, match=r"rank 0 waits for step 1 of epoch 0: .* worker 1 \(process \d+\)"):
        list(samples)


def test_the_page_lists_every_keyword() -> None:
    """Each has the same treatment and note as in the code."""
    page = (Path(__file__).parents[3] / "docs" / "data-modules.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    tables = [*KWARGS_WDS.items(), *KWARGS_WLD.items()]
    assert rows == [(name, str(keyword.treatment), keyword.note) for name, keyword in tables]


# Tars of other tools


def test_tars_of_any_maker_keep_the_laws(tmp_path: Path, urls: Mapping[int, Path]) -> None:
    """Tars with foreign names, PAX headers and uneven sizes are read by ranks and workers, and resumed on others."""
    for number, count in enumerate((1, 20, 3)):
        with tarfile.open(tmp_path / f"wdshards-{'abc'[number]}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for sample in range(count):
                part = tmp_path / "part"
                part.write_bytes(pickle.dumps(torch.full((2,), float(100 * number + sample))))
                os.utime(part, (1.5, 1.5))
                tar.add(part, f"{sample}.X.PYD")
    options: dict[str, Any] = {"kwargs_wds": {"shardshuffle": True}}
    first = ranks_of(tmp_path, 2, 4, kwargs_wld={"num_workers": 3}, **options)
    taken = [list(islice(loader, 2)) for _, loader in first]
    rest = ranks_of(tmp_path, 3, 6, first[0][0].state_dict(), **options)
    found = sorted(flat([taken, [list(loader) for _, loader in rest]]))
    assert found == [0, *range(100, 120), 200, 201, 202]
    body = (tmp_path / "wdshards-b.tar").read_bytes()
    (tmp_path / "wdshards-b.tar").write_bytes(body[:5120])
    with pytest.raises(DamagedError, match=r"wdshards-b\.tar"):
        module(tmp_path, 4, 4)
