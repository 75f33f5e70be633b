"""Cursors and shares: laws 5 to 8 of docs/design.md as arithmetic."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.loaders.order.cursor import Cursor
from dray.loaders.order.shares import Remainder, Rest
from dray.shards.errors import CallError

CURSOR = Cursor(dataset="ab" * 16, version=7, num_samples=1000, shuffle=True, seed=1, epoch=3, lanes=64, block=5)

counts = st.integers(1, 400)
ranks = st.integers(1, 9)
batches = st.integers(1, 16)  # of one rank
remainders = st.sampled_from(list(Remainder))


def taken(rest: Rest, steps: int | None = None) -> list[list[np.ndarray]]:
    """Returns the valid positions of each rank in each step."""
    num_steps = len(rest) if steps is None else steps
    shares = [[rest.share(step, rank) for rank in range(rest.num_ranks)] for step in range(num_steps)]
    return [[share.positions[: share.num_valid] for share in step] for step in shares]


def flat(steps: list[list[np.ndarray]]) -> list[int]:
    return [int(position) for step in steps for positions in step for position in positions]


def a_rest(num_samples: int, num_ranks: int, batch: int, remainder: Remainder, consumed: int = 0) -> Rest:
    return Rest(
        num_samples=num_samples, consumed=consumed, batch=batch * num_ranks, num_ranks=num_ranks, remainder=remainder
    )


@settings(max_examples=300, deadline=None)
@given(counts, ranks, batches, remainders)
def test_every_position_is_taken_once(num_samples: int, num_ranks: int, batch: int, remainder: Remainder) -> None:
    """Law 5: in order, over all ranks; `drop` leaves out fewer than a global batch."""
    found = flat(taken(a_rest(num_samples, num_ranks, batch, remainder)))
    assert found == list(range(len(found)))
    missing = num_samples - len(found)
    assert 0 <= missing < batch * num_ranks if remainder == Remainder.DROP else missing == 0


@settings(max_examples=300, deadline=None)
@given(counts, ranks, batches, remainders)
def test_all_ranks_have_what_they_expect(num_samples: int, num_ranks: int, batch: int, remainder: Remainder) -> None:
    """Law 6: every step is a full batch, except for the last with `keep`, in which ranks differ by at most 1."""
    rest = a_rest(num_samples, num_ranks, batch, remainder)
    for step in range(len(rest)):
        sizes = [len(rest.share(step, rank).positions) for rank in range(num_ranks)]
        if remainder == Remainder.KEEP and step == len(rest) - 1:
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= batch
        else:
            assert set(sizes) == {batch}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), num_samples=counts, remainder=remainders)
def test_stopping_and_going_on_otherwise_takes_the_rest(
    data: st.DataObject, num_samples: int, remainder: Remainder
) -> None:
    """Law 7: with other numbers of ranks and batch sizes after each stop, no position is repeated or lost."""
    consumed, found, last_batch = 0, list[int](), 1
    for _ in range(data.draw(st.integers(1, 4))):
        num_ranks, batch = data.draw(ranks), data.draw(batches)
        rest = a_rest(num_samples, num_ranks, batch, remainder, consumed)
        steps = data.draw(st.integers(0, len(rest)))
        found += flat(taken(rest, steps))
        consumed = min(num_samples, consumed + steps * rest.batch)
    rest = a_rest(num_samples, 3, 5, remainder, consumed)
    found += flat(taken(rest))
    last_batch = rest.batch
    assert found == list(range(len(found)))
    missing = num_samples - len(found)
    assert missing < last_batch if remainder == Remainder.DROP else missing == 0


@settings(max_examples=200, deadline=None)
@given(counts, st.integers(1, 4), st.integers(1, 4), remainders)
def test_batches_are_the_same_for_every_number_of_ranks(
    num_samples: int, factor: int, batch: int, remainder: Remainder
) -> None:
    """Law 8: a global batch does not depend on the number of ranks that share it."""
    whole = a_rest(num_samples, 1, 12 * factor * batch, remainder)
    for num_ranks in (2, 3, 4, 6, 12):
        parts = a_rest(num_samples, num_ranks, 12 // num_ranks * factor * batch, remainder)
        joined = [np.concatenate(step).tolist() for step in taken(parts)]
        assert joined == [step[0].tolist() for step in taken(whole)]


def test_filler_is_marked_and_repeats_the_beginning() -> None:
    """Also with fewer samples than ranks."""
    rest = a_rest(3, 5, 2, Remainder.PAD)
    shares = [rest.share(0, rank) for rank in range(5)]
    assert [share.positions.tolist() for share in shares] == [[0, 1], [2, 0], [1, 2], [0, 1], [2, 0]]
    assert [share.num_valid for share in shares] == [2, 1, 0, 0, 0]


def test_a_cursor_goes_through_json_and_is_small() -> None:
    """Every checkpoint contains one."""
    text = json.dumps(CURSOR.to_dict())
    assert Cursor.from_dict(json.loads(text)) == CURSOR
    assert len(text) < 300


def test_what_a_later_dray_adds_to_a_cursor_is_ignored() -> None:
    """An addition that must not be ignored is a feature."""
    assert Cursor.from_dict({**CURSOR.to_dict(), "later": 1}) == CURSOR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": 1},
            "cursor in the checkpoint has format 1, which an older dray saved; .*: resume with",
        ),
        ({"format": 3}, "format 3 was written by a newer dray, .*: upgrade dray"),
        ({"features": ["later"]}, "unknown features 'later': upgrade dray"),
        (
            {"order": "later-2"},
            "the order 'later-2', and this version of dray knows only 'feistel-lanes-1': upgrade dray",
        ),
        ({"order": None}, "the order None, .*: upgrade dray"),
        ({"format": "2"}, "not a cursor that dray saved: its format or features are '2'"),
        ({"features": {}}, "not a cursor that dray saved: its format or features are {}"),
    ],
)
def test_a_cursor_of_another_dray_is_refused(change: dict[str, Any], message: str) -> None:
    """The message says which part is unknown and what to do; nothing is guessed."""
    with pytest.raises(CallError, match=message):
        Cursor.from_dict({**CURSOR.to_dict(), **change})


@pytest.mark.parametrize("name", ["order", "lanes", "consumed"])
def test_a_cursor_that_lacks_a_field_is_refused(name: str) -> None:
    """The message names the field."""
    values = CURSOR.to_dict()
    del values[name]
    with pytest.raises(CallError, match=f"not a cursor that dray saved: it lacks {name}"):
        Cursor.from_dict(values)


def test_a_checkpoint_of_other_data_or_order_is_refused_by_name() -> None:
    """Lanes, block and epoch are taken from the checkpoint; the rest must agree."""
    assert CURSOR.differences(replace(CURSOR, lanes=1, block=9, epoch=0, consumed=5, version=9)) == []
    for change in ({"dataset": "cd"}, {"num_samples": 1}, {"shuffle": False}, {"seed": 2}):
        (difference,) = CURSOR.differences(replace(CURSOR, **change))  # type: ignore[arg-type]
        assert difference.startswith(f"{next(iter(change))}: ")


def test_advancing_counts_samples_and_steps() -> None:
    """A short last step counts the samples that it had."""
    assert (CURSOR.advanced(3, 64).consumed, CURSOR.advanced(3, 64).steps) == (192, 3)
    assert CURSOR.advanced(16, 64).consumed == 1000
    assert CURSOR.order().at(np.arange(5)).tolist() == CURSOR.advanced(3, 64).order().at(np.arange(5)).tolist()
