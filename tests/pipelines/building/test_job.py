"""The records that workers send to the driver."""

import pickle

import numpy as np

from dray.pipelines.building.job import PackedShard


def test_a_detached_record_keeps_no_message_in_memory() -> None:
    """Arrays of an unpickled record are views; the driver of a large build keeps hundreds of thousands of records."""
    record = PackedShard(
        number=7,
        num_bytes=1024,
        index_digest="ab",
        is_packed=np.array([True, False]),
        source_hashes=np.array([[5]], np.uint64),
        adopted=False,
        bad=(),
    )
    arrived: PackedShard = pickle.loads(pickle.dumps(record, 5))
    assert arrived.source_hashes.base is not None
    kept = arrived.detached()
    assert (kept.is_packed.base, kept.source_hashes.base) == (None, None)
    assert (kept.is_packed.tolist(), kept.source_hashes.tolist(), kept.number) == ([True, False], [[5]], 7)
