"""What a gc deletes: only what dray wrote, and nothing that a reader, a running build or another dataset needs."""

import os
import time
from pathlib import Path

import pytest

from dray.pipelines import BuildReport
from dray.pipelines.versions.gc import GcReport, gc
from dray.pipelines.versions.holds import hold
from dray.pipelines.versions.retention import Retention
from dray.shards import NotFoundError, Snapshot
from dray.shards.layout import Layout, Location
from dray.shards.log import Intent, create_intent, now
from dray.shards.verify import verify
from tests.conftest import Inputs, MakeInputs, Place
from tests.support.datasets import build, latest, store_at
from tests.support.foreign import own_tar

SUFFIX = "tensor.pyd"
NOTHING = Retention(keep=1, grace_s=0)


def collect(place: Place, retention: Retention = NOTHING) -> GcReport:
    return gc(Location(store_at(place), Layout("wds")), retention)


def change(inputs: Inputs, number: int) -> None:
    inputs.path(inputs.names[number], SUFFIX).write_bytes(os.urandom(100))


def names_in(place: Place, folder: str = "") -> list[str]:
    return sorted(info.name for info in store_at(place).list_folder(folder))


def test_what_other_programs_wrote_stays(make_inputs: MakeInputs, place: Place) -> None:
    """Tars below the numbers that builds reserved, between them, of other names; and files beside the indexes."""
    inputs, store = make_inputs(8), store_at(place)
    foreign = ["wds-000002.tar", "wds-000041.tar", "wdsx-000000.tar", "notes.txt", "wds-000042.tar.bak"]
    for name in [*foreign, "__dray__/wds/index/000041.arrow", "__dray__/wds/index/notes.txt"]:
        store.put_new(name, b"foreign")
    build(inputs, place, min_num_shards=2)
    change(inputs, 0)
    build(inputs, place, min_num_shards=2)
    assert [shard.number for shard in latest(place).shards] == [44, 43]
    report = collect(place)
    assert report.deleted == tuple(sorted(report.deleted))
    assert {name for name in report.deleted if "manifests" not in name} == {
        "wds-000042.tar",
        "__dray__/wds/index/000042.arrow",
    }
    assert names_in(place) == sorted([*foreign, "wds-000043.tar", "wds-000044.tar"])
    kept = {"__dray__/wds/index/000041.arrow", "__dray__/wds/index/notes.txt"}
    assert set(names_in(place, "__dray__/wds/index")) >= kept


def test_a_running_builds_staged_file_stays_for_the_grace(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Leftovers of writes are deleted once they are as old as the grace, and only if their name is this dataset's."""
    place = Place(str(tmp_path / "out"))
    build(make_inputs(4), place)
    old, young, others = (
        tmp_path / "out" / name for name in ("wds-000007.tar#1", "wds-000008.tar#1", "b-000000.tar#1")
    )
    for path, age_s in ((old, 7200), (young, 10), (others, 7200)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    assert collect(place, Retention(grace_s=3600)).deleted == ("wds-000007.tar#1",)
    assert not old.exists()
    assert young.exists()
    assert others.exists()
    assert collect(place).deleted == ("wds-000008.tar#1",)


def test_shards_and_records_of_every_kept_version_stay(make_inputs: MakeInputs, place: Place) -> None:
    """Held ones too; what only dropped versions name goes."""
    inputs = make_inputs(20)
    for number in range(4):  # each version packs another shard again
        build(inputs, place)
        change(inputs, 5 * number)
    store = store_at(place)
    before = {version: Snapshot.open(place.url, "wds", version=version, storage_options=place.storage_options)
              for version in (1, 2, 3, 4)}  # fmt: skip
    hold(Location(store, Layout("wds")), "paper", 1)
    report = collect(place, Retention(keep=2, grace_s=0))
    assert (report.dropped, report.kept) == ((2,), (1, 3, 4))
    for version in report.kept:
        assert list(verify(before[version], "full")) == []
    alive = {name for version in report.kept for name in before[version].record_names()}
    gone = set(before[2].record_names()) - alive
    assert gone
    assert gone <= set(report.deleted)
    with pytest.raises(NotFoundError, match="dropped"):
        Snapshot.open(place.url, "wds", version=2, storage_options=place.storage_options)


def test_shards_that_no_plan_lists_are_kept_for_the_grace(make_inputs: MakeInputs, place: Place) -> None:
    """Their numbers were reserved, so no other build gets one; what was never committed is garbage."""
    inputs, store = make_inputs(8), store_at(place)
    build(inputs, place, min_num_shards=2)
    intent = Intent(
        number=2, plan="", base=1, first=2, count=98, shards=(), digests=(), build_id="job", write_id="", created=now()
    )
    create_intent(Location(store, Layout("wds")), intent)
    for name in ("wds-000002.tar", "wds-000007.tar"):
        store.put_new(name, own_tar())
    change(inputs, 0)
    build(inputs, place, min_num_shards=2)
    assert [shard.number for shard in latest(place).shards] == [100, 1]
    assert collect(place, Retention(keep=1)).deleted == ()
    tars = {name for name in collect(place).deleted if name.endswith(".tar")}
    assert tars == {"wds-000000.tar", "wds-000002.tar", "wds-000007.tar"}


@pytest.mark.parametrize("has_version", [False, True])
def test_a_build_whose_shards_a_gc_deleted_plans_again(
    make_inputs: MakeInputs, place: Place, *, has_version: bool
) -> None:
    """A gc without a grace closes its intent in mid-build: what it packed is not committed unless it is there."""
    inputs = make_inputs(20)
    build(inputs, place, names=inputs.names[:3], min_num_shards=1)
    if has_version:
        build(inputs, place, func_output_data=lambda key, parts: parts, transform_version="1")
        for number in (1, 6, 11, 16):
            change(inputs, number)
    seen, swept = list[str](), list[GcReport]()

    def collect_in_between(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        seen.append(key)
        if len(seen) == 12:  # two shards are stored, or on their way
            swept.append(collect(place))
        return parts

    report: BuildReport = build(inputs, place, func_output_data=collect_in_between, transform_version="1")
    assert len(swept) == 1
    assert report.num_samples == 20
    assert list(verify(latest(place), "full")) == []
    found = {key: latest(place).read(key)[SUFFIX] for key in (name.replace(".", "-") for name in inputs.names)}
    assert found == {name.replace(".", "-"): inputs.part(name, SUFFIX) for name in inputs.names}
