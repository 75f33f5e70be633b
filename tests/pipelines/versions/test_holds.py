"""Any number of holds; no version is dropped while they cannot be read."""

from dataclasses import replace

import pytest

from dray.pipelines.versions.gc import gc
from dray.pipelines.versions.holds import hold, release
from dray.pipelines.versions.retention import Retention
from dray.shards import DamagedError, Snapshot
from dray.shards.layout import Layout, Location
from dray.shards.log import read_head
from dray.shards.parsing.records import write_record
from dray.shards.versions import put_holds, read_holds
from tests.conftest import MakeInputs, Place
from tests.support.datasets import build, latest, store_at

LAYOUT = Layout("wds")
NOTHING = Retention(keep=1, grace_s=0)


def test_no_number_of_holds_fills_a_commit(make_inputs: MakeInputs, place: Place) -> None:
    """Versions can be committed, held and released beside a thousand of them."""
    inputs, store = make_inputs(8), store_at(place)
    build(inputs, place, names=inputs.names[:4])
    holds = {f"{'a-long-name-' * 5}{number}": 1 for number in range(1000)}
    digest = put_holds(Location(store, LAYOUT), holds)
    head = read_head(Location(store, LAYOUT))
    assert head is not None
    store.delete([LAYOUT.commit(1)])  # as if they had been held one by one
    store.put_new(LAYOUT.commit(1), write_record(replace(head, holds=digest)))
    assert hold(Location(store, LAYOUT), "one-more") == 1
    build(inputs, place)
    gc(Location(store, LAYOUT), NOTHING)
    assert release(Location(store, LAYOUT), "one-more") == 1
    head = read_head(Location(store, LAYOUT))
    assert head is not None
    assert read_holds(Location(store, LAYOUT), head) == holds
    info = store.head(LAYOUT.commit(head.number))
    assert info is not None
    assert info.size < 1024
    assert Snapshot.open(place.url, "wds", version=1, storage_options=place.storage_options).num_samples == 4


def test_a_gc_deletes_nothing_where_the_list_of_holds_is_lost(make_inputs: MakeInputs, place: Place) -> None:
    """Any version may be held."""
    inputs, store = make_inputs(20), store_at(place)
    for number in (4, 12, 20):
        build(inputs, place, names=inputs.names[:number])
    hold(Location(store, LAYOUT), "paper", 1)
    (listed,) = store.list_folder(LAYOUT.holds)
    body = store.get(listed.name)
    store.delete([listed.name])
    with pytest.raises(DamagedError, match=rf"{listed.name}: not a readable list .* nothing is deleted until then"):
        gc(Location(store, LAYOUT), NOTHING)
    assert latest(place).num_samples == 20
    store.put_new(listed.name, body)
    assert gc(Location(store, LAYOUT), NOTHING).kept == (1, 3)


def test_the_last_release_leaves_no_list(make_inputs: MakeInputs, place: Place) -> None:
    """And a name can be given to another version then."""
    inputs, store = make_inputs(8), store_at(place)
    for number in (4, 8):
        build(inputs, place, names=inputs.names[:number])
    for version in (1, 2, 1):
        assert hold(Location(store, LAYOUT), "paper", version) == version
        assert hold(Location(store, LAYOUT), "paper", version) == version  # again
        assert release(Location(store, LAYOUT), "paper") == version
        head = read_head(Location(store, LAYOUT))
        assert head is not None
        assert (head.holds, head.hold) == (None, {"paper": version})
    assert [info.name for info in store.list_folder(LAYOUT.holds)] == sorted(
        LAYOUT.hold_list(str(put_holds(Location(store, LAYOUT), {"paper": version}))) for version in (1, 2)
    )
