"""What makes a build pack again, and in which order: sizes and times, contents, seeds."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines.planning.plan import plan
from dray.pipelines.planning.recipe import Recipe
from tests.conftest import MakeInputs, Place
from tests.pipelines.planning.test_plan import named
from tests.support.chaos import Chaos
from tests.support.datasets import build, latest

SUFFIX = "tensor.pyd"


def keys_of(place: Place) -> list[str]:
    snapshot = latest(place)
    return [key for shard in snapshot.shards for key in snapshot.index(shard).keys]


def change_in_secret(path: Path) -> None:
    """Another content of the same size and time."""
    info = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def test_checksum_sees_what_size_and_time_hide(make_inputs: MakeInputs, place: Place) -> None:
    """Each time: the shard of an earlier content is not taken for the present one's."""
    inputs = make_inputs(20)
    build(inputs, place, checksum=True)
    for version in (2, 3):
        inputs.path("sample.0007", SUFFIX).write_bytes(os.urandom(48))
        os.utime(inputs.path("sample.0007", SUFFIX), ns=(7, 7))
        report = build(inputs, place, checksum=True)
        assert (report.version, report.num_reused) == (version, 3)
        snapshot = latest(place)
        assert snapshot.read("sample-0007") == {SUFFIX: inputs.part("sample.0007", SUFFIX)}
    assert build(inputs, place, checksum=True).version == 3


def test_without_checksum_a_secret_change_is_not_seen(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The price of not reading; with it, the next build repairs it."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))
    build(inputs, place)
    change_in_secret(inputs.path("sample.0007", SUFFIX))
    assert build(inputs, place).version == 1
    assert build(inputs, place, checksum=True).num_reused == 3


def test_checksum_reads_touched_files_once_and_packs_nothing(
    make_inputs: MakeInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the last build compared size and time: its table has the contents' hashes too."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))
    build(inputs, place)
    for name in inputs.names:
        os.utime(inputs.path(name, SUFFIX), ns=(7, 7))
    assert build(inputs, place, checksum=True, progress=True).num_reused == 4
    assert capsys.readouterr().err.count(": reading") == 1


def test_a_file_that_changes_while_packed_by_content_is_an_error(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """What is packed is what was fingerprinted."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))

    def meddle(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if key == "sample-0000":
            change_in_secret(inputs.path("sample.0009", SUFFIX))
        return parts

    with pytest.raises(RuntimeError, match=r"sample\.0009\.tensor\.pyd' was changed after it was listed"):
        build(inputs, place, checksum=True, func_output_data=meddle, min_num_shards=2)


def test_a_seed_shuffles_over_all_shards_whatever_the_order_given(make_inputs: MakeInputs, place: Place) -> None:
    """Any order of the names gives equal bytes; another seed gives another order."""
    inputs = make_inputs(40)
    build(inputs, place, shuffle_seed=1)
    orders = [keys_of(place)]
    for seed, names in ((1, inputs.names[::-1]), (2, inputs.names)):
        other = Place(f"{place.url}-{seed}", place.storage_options)
        build(inputs, other, shuffle_seed=seed, names=names)
        orders.append(keys_of(other))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [name.replace(".", "-") for name in inputs.names]
    assert orders[0] != sorted(orders[0])


def test_another_seed_rebuilds_and_the_same_does_not(make_inputs: MakeInputs, place: Place) -> None:
    """It is part of the recipe."""
    inputs = make_inputs(40)
    versions = [build(inputs, place, shuffle_seed=seed).version for seed in (1, 1, 2, None)]
    assert versions == [1, 1, 2, 3]


def test_new_samples_are_shuffled_among_themselves(make_inputs: MakeInputs, place: Place) -> None:
    """Shards that stay keep their order."""
    inputs = make_inputs(40)
    build(inputs, place, shuffle_seed=1, names=inputs.names[:20])
    before = keys_of(place)
    assert build(inputs, place, shuffle_seed=1).num_reused == 4
    after = keys_of(place)
    assert after[:20] == before
    assert after[20:] != sorted(after[20:])


@settings(max_examples=50, deadline=None)
@given(
    names=st.sets(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=40), seed=st.integers(-(2**63), 2**64)
)
def test_the_place_of_a_sample_in_a_shuffle_depends_on_no_other(names: set[str], seed: int) -> None:
    """Leave one out, and the others stay in their order."""
    recipe = Recipe(suffixes=(SUFFIX,), shuffle_seed=seed)

    def order(some: set[str]) -> list[str]:
        sources = named(dict.fromkeys(sorted(some), 1))
        return [sources.names[row] for shard in plan(sources, recipe).shards for row in shard.rows]

    gone = min(names)
    assert [name for name in order(names) if name != gone] == (order(names - {gone}) if len(names) > 1 else [])


def test_a_shuffle_is_the_same_on_every_machine() -> None:
    """Golden: xxh3_64 of the key under the seed."""
    sources = named(dict.fromkeys("abcdefgh", 1))
    (shard,) = plan(sources, Recipe(suffixes=(SUFFIX,), shuffle_seed=7)).shards
    assert "".join(sources.names[row] for row in shard.rows) == "cfegbhad"


def test_a_rerun_with_nothing_to_do_is_a_handful_of_reads(
    make_inputs: MakeInputs, s3: SeaweedServer, chaos: Chaos
) -> None:
    """Law 4: no write, and as many requests for 60 shards as for 3."""
    inputs, asked = make_inputs(60), []
    for num_shards in (3, 60):
        url = s3.url(f"noop-{num_shards}")
        build(inputs, Place(url, s3.storage_options), min_num_shards=num_shards)
        chaos.clear()
        place = Place(url, {**s3.storage_options, "endpoint": chaos.endpoint})
        assert build(inputs, place, min_num_shards=num_shards).version == 1
        asked.append([found.method for found in chaos.log])
    assert set(asked[1]) == {"GET"}
    assert len(asked[0]) == len(asked[1]) <= 6
