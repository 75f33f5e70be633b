"""What is damaged, missing or not the merged shard is named, and no version is made of it."""

from collections.abc import Callable
from functools import partial

import pytest

from dray.pipelines.planning.recipe import Recipe
from dray.shards import DamagedError, StoreError
from dray.shards.log import new_write_id
from tests.conftest import MakeInputs, Place
from tests.pipelines.building.test_compact import assert_whole, build_from, compacted, eight_small, grown
from tests.pipelines.building.test_compact_interrupted import Crash, Watched, copy_of
from tests.support.datasets import build, latest, overwrite, store_at, stored


@pytest.fixture
def small_place(make_inputs: MakeInputs) -> Place:
    """Eight small shards in memory."""
    place = Place(f"memory://{new_write_id()}")
    eight_small(make_inputs(24), place)
    return place


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


@pytest.mark.parametrize("where", ["data", "header", "padding"])
def test_a_damaged_byte_is_named_and_nothing_is_made_of_it(small_place: Place, where: str) -> None:
    """With shard, part and key: headers and padding are looked at too."""
    snapshot, name = latest(small_place), "wds-000004.tar"
    index = snapshot.index(snapshot.shards[4])
    start, size = int(index.offsets[1, 0]), int(index.sizes[1, 0])
    offset = {"data": start + size - 1, "header": start - 400, "padding": start + size}[where]
    assert size % 512
    overwrite(store_at(small_place), name, flipped(stored(small_place)[name], offset))
    pattern = rf"wds-000004\.tar at offset {start}, key 'sample-0013', suffix 'tensor\.pyd': .*dray verify"
    watched = Watched(small_place)
    with pytest.raises(DamagedError, match=pattern):
        compacted(watched)
    assert latest(small_place).version == 8
    assert watched.tars == ["wds-000008.tar"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wds-000004.tar", lambda data: flipped(data, len(data) - 1), r"wds-000004\.tar at offset \d+: the end of the"),
        ("wds-000004.tar", lambda data: data[:-512], r"wds-000004\.tar: \d+ bytes expected, found \d+"),
        ("wds-000004.tar", None, r"wds-000004\.tar: \d+ bytes expected, found nothing"),
        ("__dray__/wds/index/000004.arrow", lambda data: flipped(data, len(data) // 2), r"000004\.arrow: not the"),
        ("__dray__/wds/index/000004.arrow", None, r"index/000004\.arrow: the index of shard 4 is missing"),
    ],
)
def test_a_cut_or_missing_shard_or_index_is_named(
    small_place: Place, name: str, change: Callable[[bytes], bytes] | None, message: str
) -> None:
    """And nothing is committed."""
    if change is None:
        store_at(small_place).delete([name])
    else:
        overwrite(store_at(small_place), name, change(stored(small_place)[name]))
    with pytest.raises(DamagedError, match=message):
        compacted(small_place)
    assert latest(small_place).version == 8


def test_a_shard_that_another_program_wrote_is_refused_as_verify_does(make_inputs: MakeInputs) -> None:
    """A build adopts a tar of the right members; what follows them is not copied."""
    inputs, place = make_inputs(8), Place(f"memory://{new_write_id()}")
    twin = Place(f"{place.url}-twin")
    grown(inputs, twin)
    options = {"names": inputs.names[:4], "min_num_shards": None}
    with pytest.raises(Crash):
        build_from(
            Watched(place, lambda name: name.endswith(".tar")), inputs, 4, shard_bytes=Recipe(suffixes="x").shard_bytes
        )
    store_at(place).put_new("wds-000000.tar", stored(twin)["wds-000000.tar"] + bytes(8192))
    assert build(inputs, place, **options).num_reused == 1
    build(inputs, place, min_num_shards=None)
    with pytest.raises(DamagedError, match=r"wds-000000\.tar at offset \d+: the end of the archive expected"):
        compacted(place)


def test_what_is_not_byte_for_byte_the_merged_shard_is_not_adopted(small_place: Place) -> None:
    """Though all its parts are right: nothing is overwritten, and once moved away it is made again."""
    name = "wds-000009.tar"
    undisturbed = copy_of(small_place, stored(small_place), "undisturbed")
    compacted(undisturbed)
    right = stored(undisturbed)[name]
    with pytest.raises(Crash):
        compacted(Watched(small_place, lambda created: created == name))
    for foreign in (bytes(1024), flipped(right, 100), flipped(right, len(right) - 1025), right + bytes(512)):
        overwrite(store_at(small_place), name, foreign)
        with pytest.raises(DamagedError, match=r"wds-000009\.tar.*did another program write there\? Move .* compact"):
            compacted(small_place)
        assert (stored(small_place)[name], latest(small_place).version) == (foreign, 8)
    store_at(small_place).delete([name])
    assert compacted(small_place).version == 9
    assert stored(small_place)[name] == right


def test_a_shard_that_appears_while_it_is_made_is_adopted_if_it_is_the_same(small_place: Place) -> None:
    """A parallel attempt's, or the retry of a request whose reply was lost."""
    name, undisturbed = "wds-000009.tar", copy_of(small_place, stored(small_place), "undisturbed")
    compacted(undisturbed)
    right = stored(undisturbed)[name]
    for copy, body in (("same", right), ("other", flipped(right, len(right) - 1025))):
        place = copy_of(small_place, stored(small_place), copy)
        watched = Watched(place, lambda created: created == name, partial(store_at(place).put_new, name, body))
        if copy == "same":
            compacted(watched)
            assert_whole(latest(place))
        else:
            with pytest.raises(DamagedError, match="did another program write there"):
                compacted(watched)
        assert stored(place)[name] == body


def test_an_index_that_is_not_the_merged_shards_is_refused(small_place: Place) -> None:
    """It was stored, though its shard was not."""
    with pytest.raises(Crash):
        compacted(Watched(small_place, lambda created: created == "wds-000009.tar"))
    store_at(small_place).put_new("__dray__/wds/index/000009.arrow", b"other")
    with pytest.raises(DamagedError, match=r"index/000009\.arrow: not the index of wds-000009\.tar.*Delete both"):
        compacted(small_place)


def test_a_shard_that_lies_elsewhere_is_not_committed(small_place: Place) -> None:
    """Workers that write to disks of their own are detected."""
    remove = partial(store_at(small_place).delete, ["wds-000009.tar"])
    with pytest.raises(
        StoreError, match=r"wds-000009\.tar was stored with \d+ bytes, but here is nothing: do the workers"
    ):
        compacted(Watched(small_place, lambda name: name == "wds-000010.tar", remove))
    assert latest(small_place).version == 8
