"""A build beside which another one commits: it goes on from there, or refuses to undo another writer's decision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dray.pipelines.versions.holds import rollback
from dray.shards import ConflictError, DamagedError
from dray.shards.layout import Layout, Location
from tests.conftest import Inputs, MakeInputs, Place
from tests.support.datasets import build, latest, store_at

SUFFIX = "tensor.pyd"
OTHER_RECIPES: dict[str, dict[str, Any]] = {
    "suffixes": {},
    "transform": {"func_output_data": lambda key, parts: {"x.bin": b"theirs"}, "transform_version": "theirs"},
    "encode": {"encode": "auto"},
    "num_shards": {"min_num_shards": 2},
    "shuffle_seed": {"shuffle_seed": 3},
}


def copy_of(inputs: Inputs, folder: Path) -> Inputs:
    """Returns a copy of the files in another folder."""
    folder.mkdir()
    for path in inputs.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return Inputs(folder, inputs.names, inputs.suffixes)


def build_beside(inputs: Inputs, place: Place, other: Callable[[], object], **options: Any) -> Any:
    """A build of these inputs; the other one commits while it packs."""
    others = iter([other])

    def transform(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        for run in others:
            run()
        return parts

    return build(inputs, place, func_output_data=transform, transform_version="ours", **options)


@pytest.mark.parametrize("what", [*OTHER_RECIPES, "source"])
@pytest.mark.parametrize("has_version", [False, True])
def test_a_recipe_that_another_build_committed_meanwhile_is_not_undone(
    make_inputs: MakeInputs, tmp_path: Path, what: str, *, has_version: bool
) -> None:
    """The error names the version and where it came from; the dataset is the other's."""
    inputs, place = make_inputs(8, (SUFFIX, "label.cls")), Place(str(tmp_path / "out"))
    ours: dict[str, Any] = {"func_output_data": lambda key, parts: parts, "transform_version": "ours"}
    theirs = {**ours, **OTHER_RECIPES.get(what, {})}
    if has_version:
        build(inputs, place, **ours)
        inputs.path(inputs.names[0], SUFFIX).write_bytes(b"changed")
    their_inputs = inputs
    if what == "source":
        their_inputs = copy_of(inputs, tmp_path / "copy")
    if what == "suffixes":
        their_inputs = Inputs(inputs.folder, inputs.names, (SUFFIX,))
    version = 2 if has_version else 1
    with pytest.raises(ConflictError, match=rf"another committed version {version} .*{their_inputs.folder}"):
        build_beside(inputs, place, lambda: build(their_inputs, place, **theirs))
    assert latest(place).version == version


@pytest.mark.parametrize("has_version", [False, True])
def test_other_samples_of_the_same_kind_are_gone_on_from(
    make_inputs: MakeInputs, place: Place, *, has_version: bool
) -> None:
    """The last build decides which samples there are, and what it has packed serves."""
    inputs = make_inputs(20)
    ours: dict[str, Any] = {"func_output_data": lambda key, parts: parts, "transform_version": "ours"}
    if has_version:
        build(inputs, place, names=inputs.names[:7], **ours)
    report = build_beside(inputs, place, lambda: build(inputs, place, names=inputs.names[:3], **ours))
    assert report.version == (3 if has_version else 2)
    assert sorted(key for shard in latest(place).shards for key in latest(place).index(shard).keys) == [
        name.replace(".", "-") for name in inputs.names
    ]


def test_a_new_recipe_wins_over_builds_of_the_old_one(make_inputs: MakeInputs, place: Place) -> None:
    """Who changes the recipe knew the old one: more of it meanwhile decides nothing new."""
    inputs = make_inputs(20)
    build(inputs, place, names=inputs.names[:7])
    report = build_beside(inputs, place, lambda: build(inputs, place, names=inputs.names[:3]))
    assert (report.version, report.num_samples) == (3, 20)
    assert latest(place).manifest.recipe["transform"] == "ours"


def test_a_rollback_to_a_version_that_lost_a_shard_is_refused(make_inputs: MakeInputs, place: Place) -> None:
    """Readers go on with the last version, which is whole."""
    inputs = make_inputs(20)
    build(inputs, place)
    inputs.path(inputs.names[7], SUFFIX).write_bytes(b"changed")
    build(inputs, place)
    store_at(place).delete(["wds-000001.tar"])
    with pytest.raises(DamagedError, match=r"version 1 is not whole.*wds-000001\.tar.*dray verify"):
        rollback(Location(store_at(place), Layout("wds")), 1)
    assert latest(place).version == 2


@pytest.mark.parametrize("lost", ["wds-000001.tar", "__dray__/wds/index/000001.arrow"])
def test_what_was_deleted_by_hand_is_packed_again(make_inputs: MakeInputs, place: Place, lost: str) -> None:
    """A shard and its index belong together: without either the samples cannot be read."""
    inputs = make_inputs(20)
    build(inputs, place)
    store_at(place).delete([lost])
    report = build(inputs, place)
    assert (report.version, report.num_reused) == (2, 3)
    assert [shard.number for shard in latest(place).shards] == [0, 4, 2, 3]
    for name in inputs.names:
        assert latest(place).read(name.replace(".", "-")) == {SUFFIX: inputs.part(name, SUFFIX)}
