"""Laws 5 to 8 of docs/design.md over real files: one suite that every entry point passes."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset import batched

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import ShardDataModule, ShardLoader, WebDataModule
from dray.pipelines import index_tars, pickles_to_tars
from dray.shards import CallError, Store
from tests.support.datasets import PARTS, pack, stored
from tests.support.foreign import write_tar

SEED, MANY = 4, 61
IN_MEMORY, INDEXED = 46, 48  # samples in tars of another program: without an index, and with one
SIZES = st.sampled_from([1, 3, 47, MANY, IN_MEMORY, INDEXED])
ENDED = "this iterator has ended"


@dataclass
class Rank:
    """The training loader of one rank. A batch is the list of the samples' numbers, without marked filler."""

    loader: Any
    module: Any = None

    def steps(self, most: int | None = None) -> list[list[int]]:
        return [numbers(batch) for batch in islice(self.loader, most)]

    def state(self) -> dict[str, Any]:
        """Returns the state after a round trip through JSON."""
        state = self.loader.state_dict() if self.module is None else self.module.state_dict()["train"]
        found: dict[str, Any] = json.loads(json.dumps(state))
        return found

    def cursor(self) -> dict[str, Any]:
        state = self.state()
        cursor: dict[str, Any] = state.get("cursor", state)
        return cursor


def numbers(batch: Any) -> list[int]:
    if isinstance(batch, list):
        return batch
    assert torch.equal(batch["x.pyd"][:, 0].long(), batch["cls"])
    valid = batch.get("__valid__", torch.ones(len(batch["cls"]), dtype=torch.bool))
    found: list[int] = batch["cls"][valid].tolist()
    return found


def shard_loader(url: str, **options: Any) -> Rank:
    state = options.pop("state", None)
    loader = ShardLoader(url, seed=SEED, **options)
    if state is not None:
        loader.load_state_dict(state)
    return Rank(loader)


def in_module(data: Any, state: Any) -> Rank:
    data.setup("fit")
    if state is not None:
        data.load_state_dict({"train": state})
    return Rank(data.train_dataloader(), data)


def shard_module(url: str, **options: Any) -> Rank:
    state = options.pop("state", None)
    return in_module(ShardDataModule(url, seed=SEED, **options), state)


def web_module(
    url: str, *, rank: int, num_ranks: int, batch_size: int, shuffle: bool, num_workers: int = 0, state: Any = None,
    remainder: str = "keep", storage_options: Any = None,
) -> Rank:  # fmt: skip
    def lists(source: Iterable[torch.Tensor]) -> Iterator[list[int]]:
        for samples in batched(batch_size, collation_fn=list)(source):
            yield [int(sample[0]) for sample in samples]

    assert remainder == "keep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(num_ranks))
        data = WebDataModule(
            None, "x.pyd", {"train": url}, batch_size * num_ranks, storage_options=storage_options,
            pipeline_wds={"train": lambda source: (sample for (sample,) in source)},
            pipeline_prebatch_wld={"train": lists},
            kwargs_wds={"train": {"shardshuffle": shuffle, "seed": SEED}},
            kwargs_wld={"train": {"num_workers": num_workers}},
        )  # fmt: skip
        return in_module(data, state)


@dataclass(frozen=True)
class EntryPoint:
    """How to open the loaders of one entry point, and how it ends an epoch."""

    open: Callable[..., Rank]
    remainders: tuple[str, ...] = ("drop", "pad", "keep")
    fills_up: bool = False  # whether a rank without a sample in the last step gets one from the beginning of the epoch
    sends: Mapping[str, Any] = field(default_factory=dict)  # options with values that only cloudpickle can pickle

    def ranks(self, url: str, num_ranks: int, batch_size: int, **options: Any) -> list[Rank]:
        options = {"remainder": "keep", "shuffle": True, **options}
        return [
            self.open(url, rank=rank, num_ranks=num_ranks, batch_size=batch_size, **options)
            for rank in range(num_ranks)
        ]

    def one(self, url: str, batch_size: int = 8, **options: Any) -> Rank:
        return self.ranks(url, 1, batch_size, **options)[0]

    def num_repeated(self, num_samples: int, num_ranks: int, batch: int) -> int:
        """Returns how many samples come twice when `num_samples` are shared out in steps of a global batch."""
        return max(0, num_ranks - (num_samples % batch or batch)) if self.fills_up and num_samples else 0


ENTRY_POINTS = {
    "ShardLoader": EntryPoint(shard_loader, sends={"transform": lambda row: row}),
    "ShardDataModule": EntryPoint(shard_module),
    "WebDataModule": EntryPoint(web_module, remainders=("keep",), fills_up=True),
}


def num_steps(num_samples: int, batch: int, remainder: str) -> int:
    return num_samples // batch if remainder == "drop" else -(-num_samples // batch)


def by_step(ranks: list[list[list[int]]]) -> list[list[int]]:
    """Returns the samples of each step over all ranks, in rank order."""
    return [flat(step) for step in zip(*ranks, strict=True)]


def flat(steps: Iterable[Iterable[int]]) -> list[int]:
    return list(chain.from_iterable(steps))


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, str]:
    """Datasets and tars by number of samples; the dataset of 47 has a short last shard."""
    folder = tmp_path_factory.mktemp("loading")
    found = {size: pack(folder / str(size), size, min(size, 5)) for size in (1, 3, MANY)}
    pack(folder / "47", 47)
    found[47] = f"{folder}/uneven"
    names = [f"s{number:04d}" for number in range(47)]
    for some in (names[:44], names):
        pickles_to_tars(folder / "47/inputs", some, list(PARTS), found[47], "wdshards", None, 4, progress=False)
    for size in (IN_MEMORY, INDEXED):
        found[size] = f"{folder}/{size}"
        samples = {f"s{number:04d}": {name: part(number) for name, part in PARTS.items()} for number in range(size)}
        for number, keys in enumerate((list(samples)[:7], list(samples)[7:8], list(samples)[8:])):
            write_tar(folder / f"{size}/train-{number}.tar", {key: samples[key] for key in keys})
    index_tars(found[INDEXED], progress=False)
    return found


@pytest.mark.parametrize("entry_point", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
class TestLoading:
    """Properties of every entry point."""

    @settings(max_examples=30, deadline=None)
    @given(st.data(), SIZES, st.integers(1, 9), st.integers(1, 16), st.booleans())
    def test_every_sample_comes_once_in_equal_steps(
        self, urls: Mapping[int, str], entry_point: EntryPoint, data: st.DataObject, size: int, num_ranks: int,
        batch_size: int, shuffle: bool,
    ) -> None:  # fmt: skip
        """Laws 5 and 6, in any epoch; `drop` leaves out the samples that do not fill a global batch."""
        remainder, batch = data.draw(st.sampled_from(entry_point.remainders)), num_ranks * batch_size
        ranks = entry_point.ranks(urls[size], num_ranks, batch_size, remainder=remainder, shuffle=shuffle)
        epoch = data.draw(st.integers(0, 3))
        for rank in ranks:
            rank.loader.set_epoch(epoch)
        steps = [rank.steps() for rank in ranks]
        expected = num_steps(size, batch, remainder)
        assert {len(rank.loader) for rank in ranks} == set(map(len, steps)) == {expected}
        found = flat(by_step(steps))
        taken = min(size, expected * batch)
        repeated = found[taken:]
        assert len(set(found[:taken])) == taken
        assert repeated == found[: entry_point.num_repeated(taken, num_ranks, batch)]
        assert shuffle or found[:taken] == list(range(taken))

    @settings(max_examples=30, deadline=None)
    @given(st.data(), st.sampled_from([MANY, IN_MEMORY, INDEXED]), st.booleans())
    def test_a_resume_takes_the_rest(
        self, urls: Mapping[int, str], entry_point: EntryPoint, data: st.DataObject, size: int, shuffle: bool
    ) -> None:
        """Law 7: resumed twice, with other numbers of ranks and batch sizes, from any step."""
        remainder = data.draw(st.sampled_from(entry_point.remainders))
        state, found, num_repeated = None, list[int](), 0
        for is_last in (False, False, True):
            num_ranks, batch_size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
            batch = num_ranks * batch_size
            ranks = entry_point.ranks(
                urls[size], num_ranks, batch_size, remainder=remainder, shuffle=shuffle, state=state
            )
            cursor = ranks[0].cursor()
            if cursor["epoch"]:  # less than a global batch was left, or nothing
                break
            num_left = size - cursor["consumed"]
            left = num_steps(num_left, batch, remainder)
            assert len(ranks[0].loader) == cursor["steps"] + left
            steps = left if is_last else data.draw(st.integers(0, left))
            found += flat(by_step([rank.steps(steps) for rank in ranks]))
            states = [rank.state() for rank in ranks]
            assert all(other == states[0] for other in states)
            assert ranks[0].cursor()["steps"] == cursor["steps"] + steps
            state = states[0]
            num_repeated = entry_point.num_repeated(num_left, num_ranks, batch) if steps == left else 0
        assert len(found) == len(set(found)) + num_repeated
        num_missing = size - len(set(found))
        assert num_missing < batch if remainder == "drop" else num_missing == 0

    @pytest.mark.parametrize(("size", "shuffle"), [(47, False), (47, True), (IN_MEMORY, True), (INDEXED, True)])
    def test_batches_depend_neither_on_ranks_nor_on_workers(
        self, urls: Mapping[int, str], entry_point: EntryPoint, size: int, shuffle: bool
    ) -> None:
        """Law 8: two epochs in global batches of 12, also with more workers than shards or steps."""

        def steps(num_ranks: int, num_workers: int = 0) -> list[list[int]]:
            ranks = entry_point.ranks(urls[size], num_ranks, 12 // num_ranks, shuffle=shuffle, num_workers=num_workers)
            found = by_step([[*rank.steps(), *rank.steps()] for rank in ranks])
            for rank in ranks:
                rank.loader.close()
            return found

        whole = steps(1)
        assert [steps(num_ranks) for num_ranks in (2, 3, 4, 6)] == [whole] * 4
        assert [steps(2, num_workers) for num_workers in (1, 3, 9)] == [whole] * 3
        assert (whole[:4] == whole[4:]) != shuffle

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_each_iteration_takes_the_next_epoch(
        self, urls: Mapping[int, str], entry_point: EntryPoint, num_workers: int
    ) -> None:
        """Also after an abandoned one; `set_epoch` and a state choose another epoch."""
        plain = entry_point.one(urls[MANY])
        epochs = [plain.steps() for _ in range(4)]
        assert len({str(epoch) for epoch in epochs}) == 4
        rank = entry_point.one(urls[MANY], num_workers=num_workers)
        assert rank.steps(5) == epochs[0][:5]
        state = rank.loader.state_dict()
        assert rank.steps() == epochs[1]
        rank.loader.set_epoch(3)
        assert rank.steps() == epochs[3]
        rank.loader.load_state_dict(state)
        assert len(rank.loader) == 8
        assert rank.steps() == epochs[0][5:]
        assert rank.steps() == epochs[1]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_an_iterator_ends_when_its_loader_goes_elsewhere(
        self, urls: Mapping[int, str], entry_point: EntryPoint, num_workers: int
    ) -> None:
        """It must neither take batches of another iterator nor count its own steps at another position."""
        plain = entry_point.one(urls[MANY])
        epochs = [plain.steps() for _ in range(2)]
        loader = entry_point.one(urls[MANY], num_workers=num_workers).loader
        state = loader.state_dict()
        old, new = iter(loader), iter(loader)
        assert [numbers(next(old)), numbers(next(new))] == [epochs[0][0], epochs[1][0]]
        with pytest.raises(CallError, match=ENDED):
            next(old)
        assert numbers(next(new)) == epochs[1][1]
        for move in (lambda: loader.load_state_dict(state), lambda: loader.set_epoch(0), loader.close):
            move()
            with pytest.raises(CallError, match=ENDED):
                next(new)
            new = iter(loader)
            next(new)

    def test_a_resumed_epoch_ends_and_the_next_one_follows(
        self, urls: Mapping[int, str], entry_point: EntryPoint
    ) -> None:
        """`len()` is the steps that were taken plus those that remain, and afterwards those of a whole epoch."""
        first = entry_point.one(urls[MANY], 12)
        before = first.steps(3)
        second = entry_point.one(urls[MANY], 10, state=first.state())
        assert len(second.loader) == 3 + 3
        assert sorted(flat(before + second.steps())) == list(range(MANY))
        third = entry_point.one(urls[MANY], 10, state=second.state())
        assert len(third.loader) == 7
        following = third.steps()
        assert len(following) == 7
        assert following == second.steps()
        assert third.cursor()["epoch"] == 1

    def test_a_state_of_other_data_or_order_is_refused(self, urls: Mapping[int, str], entry_point: EntryPoint) -> None:
        """The error names the difference and the URL of the version to open."""
        state = entry_point.one(urls[MANY]).state()
        for url, shuffle in ((urls[47], True), (urls[MANY], False)):
            with pytest.raises(CallError, match=r"saved over other data or in another order.*\?version=1"):
                entry_point.one(url, shuffle=shuffle, state=state)
        with pytest.raises(CallError, match=r"not a (cursor|state) that dray saved"):
            entry_point.one(urls[MANY], state={"seed": 1})

    def test_a_worker_that_was_killed_between_two_epochs_is_replaced(
        self, urls: Mapping[int, str], entry_point: EntryPoint
    ) -> None:
        """Torch raises its error somewhere in the trainer; the next epoch has every sample."""
        plain, others = entry_point.one(urls[MANY]), set(multiprocessing.active_children())
        rank = entry_point.one(urls[MANY], num_workers=2)
        assert rank.steps() == plain.steps()
        killed = min(process.pid or 0 for process in set(multiprocessing.active_children()) - others)
        with suppress(RuntimeError):  # from torch's handler of the signal that a child ended
            os.kill(killed, signal.SIGKILL)
            time.sleep(1)
        assert rank.steps() == plain.steps()
        rank.loader.close()


@pytest.mark.parametrize("name", ["ShardLoader", "WebDataModule"])
def test_object_storage_gives_the_same(urls: Mapping[int, str], s3: SeaweedServer, tmp_path: Path, name: str) -> None:
    """With a read-only key, spawned workers, and a state of the local dataset."""
    entry_point, url = ENTRY_POINTS[name], s3.url(f"loading/{tmp_path.name}")
    remote = Store(url, s3.storage_options)
    for file, body in stored(Store(urls[MANY])).items():
        remote.put_new(file, body)
    plain = entry_point.one(urls[MANY])
    epochs = [plain.steps() for _ in range(2)]
    plain.loader.set_epoch(0)
    plain.steps(2)
    for num_workers in (0, 2):
        rank = entry_point.one(
            url, num_workers=num_workers, state=plain.state(), storage_options=s3.read_only_options, **entry_point.sends
        )
        assert [rank.steps(), rank.steps()] == [epochs[0][2:], epochs[1]]
        rank.loader.close()
