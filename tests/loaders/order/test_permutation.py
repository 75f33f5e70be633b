"""The order of an epoch: a well-mixed permutation that is cheap to seek and equal on every machine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_hexdigest

from dray.loaders.order.permutation import BLOCK_BYTES, Order, choose_block

orders = st.builds(
    Order,
    num_samples=st.integers(1, 3000),
    lanes=st.integers(1, 300),
    block=st.integers(1, 64),
    seed=st.integers(),
    epoch=st.integers(0, 10**6),
    shuffle=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(orders)
def test_every_sample_comes_exactly_once(order: Order) -> None:
    """For any number of samples, lanes and samples per block."""
    assert sorted(order.at(np.arange(order.num_samples))) == list(range(order.num_samples))


@settings(max_examples=100, deadline=None)
@given(order=orders, data=st.data())
def test_a_position_may_be_asked_for_alone(order: Order, data: st.DataObject) -> None:
    """Seeking gives the same samples as reading on, in any shape."""
    positions = data.draw(st.lists(st.integers(0, order.num_samples - 1), min_size=1, max_size=20))
    whole = order.at(np.arange(order.num_samples))
    assert order.at(positions).tolist() == whole[positions].tolist()
    assert order.at([positions]).tolist() == [whole[positions].tolist()]
    assert order.at(positions[0]) == whole[positions[0]]


@settings(max_examples=100, deadline=None)
@given(orders)
def test_runs_are_the_neighbours_that_are_read_together(order: Order) -> None:
    """Each run holds its position's sample; together they hold every sample once."""
    positions = np.arange(order.num_samples)
    firsts, sizes = order.runs(positions)
    assert ((order.at(positions) - firsts) % order.num_samples < sizes).all()
    runs = set(zip(firsts.tolist(), sizes.tolist(), strict=True))
    held = [(first + place) % order.num_samples for first, size in runs for place in range(size)]
    assert sorted(held) == positions.tolist()


def test_without_shuffle_position_p_is_sample_p() -> None:
    """Validation reads in order."""
    assert Order(100, 8, 4, seed=3, shuffle=False).at(np.arange(100)).tolist() == list(range(100))


def test_golden_values() -> None:
    """No Python, numpy or machine may compute another order: a resumed epoch would repeat samples."""
    assert Order(100, 4, 5, seed=1, epoch=0).at(np.arange(8)).tolist() == [17, 63, 78, 27, 18, 64, 79, 26]
    assert Order(100, 4, 5, seed=1, epoch=1).at(np.arange(8)).tolist() == [11, 61, 38, 97, 10, 64, 39, 99]
    last = Order(103, 4, 5, seed=1, epoch=0).at(np.arange(95, 103))
    assert last.tolist() == [70, 43, 100, 13, 65, 54, 52, 53]
    last = Order(10**12, 256, 64, seed=-7).at(np.arange(10**12 - 4, 10**12))
    assert last.tolist() == [732916877004, 732916876284, 732916876108, 732916876675]


@pytest.mark.parametrize(
    ("order", "digests"),
    [
        (Order(1), ("c77b3abb6f87acd9", "0cfbaea74a8cc0e5")),
        (Order(103, 4, 5, seed=1), ("be27b307888680cf", "04f2559d72065ad7")),
        (Order(1000, 64, 7, seed=-7, epoch=3), ("86262521eac2fdb9", "3692f7cde3f1c600")),
        (Order(4096, 16, 16, seed=2**70, epoch=2**33 + 5), ("1975ff18a818b50d", "73de49ad1a433892")),
        (Order(100_003, 256, 64, seed=3, epoch=1), ("dfad6e6c4a71b648", "299ab4ad15fa4d26")),
    ],
    ids=lambda value: str(value.num_samples) if isinstance(value, Order) else "",
)
def test_golden_digests_of_whole_epochs(order: Order, digests: tuple[str, str]) -> None:
    """xxh3_64 of all samples, and of all runs with their sizes, as 64-bit little-endian integers."""
    positions = np.arange(order.num_samples)
    found = (order.at(positions), np.stack(order.runs(positions)))
    assert tuple(xxh3_64_hexdigest(values.astype("<i8").tobytes()) for values in found) == digests


def test_epochs_and_seeds_differ() -> None:
    """At almost every position, and not just by a shift."""
    base = Order(1000, 8, 10).at(np.arange(1000))
    for other in (Order(1000, 8, 10, epoch=1), Order(1000, 8, 10, seed=1)):
        found = other.at(np.arange(1000))
        assert (found == base).mean() < 0.05
        assert len(np.unique((found - base) % 1000)) > 300


def test_a_global_batch_is_spread_over_all_shards_with_little_of_the_data_in_use() -> None:
    """1,000 shards of 1,000 samples, 8 ranks of 32: at least 220 of the 226 distinct shards that chance would give."""
    num_samples, batch = 1_000_000, 256
    block = choose_block(num_samples, batch, 4096)
    order = Order(num_samples, batch, block, seed=1)
    shards = order.at(np.arange(1000 * batch, 1400 * batch)).reshape(400, batch) // 1000
    assert np.mean([len(np.unique(row)) for row in shards]) >= 220
    assert np.mean([len(np.unique(row[:32])) for row in shards]) >= 30.5
    assert block * batch <= 0.02 * num_samples
    blocks_in_use = [len(np.unique(order.at(np.arange(s, s + batch)) // block)) for s in range(0, 10**6, 50_000)]
    assert max(blocks_in_use) <= 2 * batch  # each lane is in one block, which the epoch's shift may cut in two


def test_neighbours_in_the_data_are_far_apart_in_the_epoch() -> None:
    """The place of a sample in the epoch does not correlate with its number."""
    num_samples, batch = 100_000, 100
    order = Order(num_samples, batch, choose_block(num_samples, batch, 10**5), seed=2)
    places = np.empty(num_samples, np.int64)
    places[order.at(np.arange(num_samples))] = np.arange(num_samples) // batch
    assert np.corrcoef(np.arange(num_samples), places)[0, 1] ** 2 < 0.01


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_a_rank_reads_no_block_that_another_reads(num_ranks: int) -> None:
    """With as many lanes as the global batch, a rank owns its lanes."""
    num_samples, batch = 64_000, 64
    order = Order(num_samples, batch, 20, seed=5)
    lanes = np.arange(num_samples) % batch
    blocks = []
    for rank in range(num_ranks):
        samples = order.at(np.flatnonzero(lanes * num_ranks // batch == rank))
        blocks.append(set(((samples - order._shift) % num_samples // 20).tolist()))
    assert sum(map(len, blocks)) == len(set().union(*blocks)) == num_samples // 20


def test_a_block_is_as_long_as_a_good_request_where_the_data_allow() -> None:
    """And at least one sample."""
    assert choose_block(10**9, 256, 4096) == BLOCK_BYTES // 4096
    assert choose_block(1_000_000, 256, 1) == 1_000_000 // (50 * 256)
    assert choose_block(1_000, 256, 1) == 1
    assert choose_block(10**9, 256, 10**9) == 1


def test_positions_outside_the_epoch_are_refused() -> None:
    """They are not wrapped silently."""
    for position in (-1, 10):
        with pytest.raises(IndexError, match="of an epoch of 10 samples"):
            Order(10).at([0, position])
    with pytest.raises(ValueError, match="lanes and block >= 1"):
        Order(10, lanes=0)


def test_a_hundred_million_samples_need_no_list() -> None:
    """An order stores one number per lane."""
    order = Order(100_000_000, 1024, 64, seed=9)
    assert len(np.unique(order.at(np.arange(90_000_000, 90_000_000 + 4096)))) == 4096
    kept = [value for value in vars(order).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in kept) <= 8 * 1024
