"""Where rows are cut into shards."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dray.pipelines.ray_data.storing.cuts import cut
from dray.pipelines.writing.shard import ShardSize
from dray.shards.tar import END


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=8),
    st.integers(1, 20),
    st.integers(1500, 20_000),
)
def test_cuts_do_not_depend_on_the_blocks(sizes: list[int], bounds: list[int], samples: int, num_bytes: int) -> None:
    """Every row comes once, in order; a shard is full where the next row would pass a limit."""
    blocks = [
        np.array(part, np.int64) for part in np.split(np.array(sizes), sorted(min(b, len(sizes)) for b in bounds))
    ]
    starts = np.cumsum([0, *map(len, blocks)])
    pieces = cut(enumerate(blocks), ShardSize(samples, num_bytes))
    shards = [
        [int(starts[block]) + row for block, start, stop in shard for row in range(start, stop)] for shard in pieces
    ]
    assert [row for shard in shards for row in shard] == list(range(len(sizes)))
    expected: list[list[int]] = []
    for row, size in enumerate(sizes):
        last = expected[-1] if expected else []
        if last and len(last) < samples and len(END) + sum(sizes[n] for n in last) + size <= num_bytes:
            last.append(row)
        else:
            expected.append([row])
    assert shards == expected
