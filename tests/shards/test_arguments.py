"""Integers of numpy are accepted as arguments; anything else raises an error that names the argument."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.loaders import Dataset, ShardLoader, Split, WebDataModule, to_device
from dray.loaders.order.cursor import Cursor
from dray.pipelines import pickles_to_tars, split_by_hash
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.versions.retention import Retention
from dray.shards import Snapshot
from dray.shards.errors import CallError
from tests.conftest import Place
from tests.support.datasets import latest, pack

NO_INTEGERS = ["4", b"4", 4.0, np.float64(4), True, np.True_, math.nan, [4], np.array([4, 4]), {}, 2**70, -1]
INTEGERS: list[Callable[[int], Any]] = [np.int64, np.uint8, np.int32, torch.tensor, np.array]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack(tmp_path_factory.mktemp("arguments"), 24, 3)


def module(url: str, **options: Any) -> WebDataModule:
    given = {"n_samples": None, "global_batch_size": 4, **options}
    return WebDataModule(suffix_keys_wds="cls", dirs_tars_wds={Split.train: url, Split.val: url}, **given)


CALLS: Mapping[str, Callable[[str, Any], Any]] = {
    "batch_size": lambda url, value: ShardLoader(url, batch_size=value),
    "seed": lambda url, value: ShardLoader(url, batch_size=4, seed=value),
    "num_workers": lambda url, value: ShardLoader(url, batch_size=4, num_workers=value),
    "limit": lambda url, value: ShardLoader(url, batch_size=4, limit=value),
    "cache_bytes": lambda url, value: ShardLoader(url, batch_size=4, cache_bytes=value),
    "rank": lambda url, value: ShardLoader(url, batch_size=4, rank=value, num_ranks=9),
    "num_ranks": lambda url, value: ShardLoader(url, batch_size=4, rank=0, num_ranks=value),
    "epoch": lambda url, value: ShardLoader(url, batch_size=4).set_epoch(value),
    "step": lambda url, value: ShardLoader(url, batch_size=4).locate(0, value),
    "ahead": lambda url, value: to_device(ShardLoader(url, batch_size=4), "meta", ahead=value),
    "global_batch_size": lambda url, value: module(url, global_batch_size=value),
    "n_samples": lambda url, value: module(url, n_samples={Split.train: value, Split.val: None}),
    "kwargs_wds: seed": lambda url, value: module(url, kwargs_wds={Split.train: {"seed": value}}),
    "kwargs_wld: num_workers": lambda url, value: module(url, kwargs_wld={Split.train: {"num_workers": value}}),
    "keep": lambda _, value: Retention(keep=value),
    "max_bad": lambda _, value: Tolerance(max_bad=value),
    "split_by_hash: seed": lambda _, value: split_by_hash(["a"], {"all": 1.0}, seed=value),
}
ANY_INTEGER = {"seed", "kwargs_wds: seed", "split_by_hash: seed"}
TEXT_TOO = {"max_bad"}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_integer_is_refused_by_name(url: str, name: str) -> None:
    """Text, floats, bools, lists and numbers out of range raise CallError."""
    allowed = [-1, 2**70] if name in ANY_INTEGER else ["4"] if name in TEXT_TOO else []
    for value in NO_INTEGERS:
        if not any(value is other or (type(value) is type(other) and value == other) for other in allowed):
            with pytest.raises(CallError, match=rf"{name.split(': ')[-1]}(\[.*\])?=.*: expected an? "):
                CALLS[name](url, value)
    for make in INTEGERS:
        CALLS[name](url, make(4))


@pytest.mark.parametrize("name", ["batch_size", "seed", "num_workers", "shuffle", "with_keys"])
def test_none_is_no_value_where_one_is_needed(url: str, name: str) -> None:
    """Without a seed each rank would have a different order."""
    with pytest.raises(CallError, match=f"{name}=None: expected"):
        ShardLoader(url, **{"batch_size": 4, name: None})


@pytest.mark.parametrize("value", ["1", math.nan, -1.0, True, [1]])
def test_a_time_is_a_number_of_seconds(url: str, value: Any) -> None:
    """Text, NaN and infinity are refused."""
    with pytest.raises(CallError, match=r"timeout_s=.*: expected a number of seconds"):
        ShardLoader(url, batch_size=4, timeout_s=value)
    with pytest.raises(CallError, match=r"grace_s=.*: expected a number of seconds"):
        Retention(grace_s=value)


def test_a_state_is_plain_whatever_the_arguments_were(url: str) -> None:
    """The state is JSON, and the batches are equal."""
    plain = ShardLoader(url, batch_size=4, shuffle=True, seed=3, limit=20)
    loader = ShardLoader(
        url,
        batch_size=np.int64(4),  # type: ignore[arg-type]
        shuffle=np.True_,  # type: ignore[arg-type]
        seed=np.uint8(3),  # type: ignore[arg-type]
        limit=np.int32(20),  # type: ignore[arg-type]
        rank=np.int64(0),  # type: ignore[arg-type]
        num_ranks=np.int64(1),  # type: ignore[arg-type]
        version=np.int64(1),  # type: ignore[arg-type]
    )
    for one in (plain, loader):
        one.set_epoch(np.int64(2))  # type: ignore[arg-type]
    assert [batch["cls"].tolist() for batch in loader] == [batch["cls"].tolist() for batch in plain]
    assert json.dumps(loader.state_dict()) == json.dumps(plain.state_dict())


@pytest.mark.parametrize("version", [True, 1.0, [1], 0, -1, 2**70])
def test_a_version_is_a_number_or_a_name(url: str, version: Any) -> None:
    """Every function that opens a version checks it."""
    for opened in (Snapshot.open, Dataset, lambda url, version: ShardLoader(url, batch_size=1, version=version)):
        with pytest.raises(CallError, match=r"version=.*: expected an integer"):
            opened(url, version=version)


def test_a_build_takes_numpy_integers_and_refuses_others(tmp_path: Path) -> None:
    """The arguments are written to the manifest."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")

    def build(**options: Any) -> None:
        pickles_to_tars(tmp_path / "in", ["a"], "txt", tmp_path / "out", "wds", progress=False, **options)

    for name in ("min_num_shards", "shuffle_seed", "keep", "max_bad"):
        for value in (1.0, True, [1]):
            with pytest.raises(CallError, match=rf"{name}=.*: expected an integer"):
                build(**{name: value})
    one = np.int64(1)
    build(min_num_shards=one, shuffle_seed=one, keep=one, max_bad=one, grace_s=np.float32(0))
    assert latest(Place(str(tmp_path / "out"))).manifest.recipe["shuffle_seed"] == 1


CURSOR = Cursor(dataset="ab" * 16, version=7, num_samples=1000, shuffle=True, seed=1, epoch=3, lanes=64, block=5)
values = st.one_of(
    st.none(), st.booleans(), st.text(), st.floats(), st.integers(), st.just([]), st.integers().map(lambda n: n << 70)
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from([*asdict(CURSOR)]), value=values, at=st.integers(0, 999))
def test_a_cursor_that_was_changed_is_refused_or_works(name: str, value: Any, at: int) -> None:
    """No other error escapes, and the state is JSON again."""
    state = {**CURSOR.to_dict(), name: value}
    try:
        cursor = Cursor.from_dict(state)
    except CallError:
        with pytest.raises(CallError, match=name.split("_")[-1]):
            Cursor.from_dict(state)
        return
    assert json.loads(json.dumps(cursor.to_dict())) == cursor.to_dict()
    if cursor.num_samples == CURSOR.num_samples:
        assert 0 <= int(cursor.order().at([at])[0]) < 1000


@pytest.mark.parametrize("state", [None, [], "state", 7, {}, {"format": 1}, {1: 2}])
def test_what_is_no_state_is_refused(url: str, state: Any) -> None:
    """Both loaders refuse it."""
    with pytest.raises(CallError, match=r"cursor (that|.* an older) dray saved"):
        ShardLoader(url, batch_size=4).load_state_dict(state)
    data = module(url)
    data.setup("fit")
    with pytest.raises(CallError, match=r"state (that|.* an older) dray saved"):
        data.train_dataloader().load_state_dict(state)


def test_a_state_of_more_steps_than_samples_is_refused(url: str) -> None:
    """`list` reserves memory for as many batches as the loader says that it has."""
    loader = ShardLoader(url, batch_size=4)
    with pytest.raises(CallError, match=r"3159565047 steps in 1 pass over [0-9]+ samples"):
        loader.load_state_dict({**loader.state_dict(), "steps": 3_159_565_047})


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_state_that_was_changed_is_refused_or_works(url: str, data: st.DataObject) -> None:
    """Any content of a checkpoint gives batches or an error of dray."""
    loader = ShardLoader(url, batch_size=4, shuffle=True)
    state = loader.state_dict()
    for name in data.draw(
        st.sets(st.sampled_from(["epoch", "lanes", "block", "consumed", "steps", "version", "seed"]))
    ):
        state[name] = data.draw(values)
    try:
        loader.load_state_dict(state)
    except CallError:
        return
    assert len(loader) >= 0
    assert len(list(loader)) <= 6
