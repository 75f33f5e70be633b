"""The difference between two versions that record no file of each sample: by the checksums in their indexes."""

import json
import uuid
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines import build_dataset
from dray.shards import Snapshot
from dray.shards.diff import diff
from tests.conftest import Dray, Place
from tests.support.datasets import latest, store_at
from tests.support.foreign import index_at, key_of, put_tars, replace_tar, tar_of

TARS = st.lists(st.dictionaries(st.integers(0, 30), st.integers(0, 1), min_size=1, max_size=4), min_size=1, max_size=4)


def distinct(tars: list[dict[int, int]]) -> list[dict[int, int]]:
    """The same without samples that an earlier tar has, and without tars that are empty then."""
    seen: set[int] = set()
    left = []
    for tar in tars:
        left.append({key: value for key, value in tar.items() if key not in seen})
        seen |= tar.keys()
    return [tar for tar in left if tar]


def indexed(place: Place, tars: list[dict[int, int]]) -> None:
    names = [f"t{number}.tar" for number in range(len(tars))]
    for name, tar in zip(names, tars, strict=True):
        body = tar_of([*tar], lambda number, tar=tar: {"txt": b"%d" % tar[number]})  # type: ignore[misc]
        replace_tar(store_at(place), name, body)
    index_at(place, names)


@settings(max_examples=40, deadline=None)
@given(TARS, TARS)
def test_samples_are_compared_by_their_contents(before: list[dict[int, int]], after: list[dict[int, int]]) -> None:
    """Whatever tar they are in: as dicts are."""
    place = Place(f"memory://{uuid.uuid4().hex}")
    olds, news = distinct(before), distinct(after)
    indexed(place, olds)
    a = latest(place)
    indexed(place, news)
    found = diff(a, latest(place))
    old, new = ({key_of(key): value for tar in tars for key, value in tar.items()} for tars in (olds, news))
    assert set(found.added) == new.keys() - old.keys()
    assert set(found.removed) == old.keys() - new.keys()
    assert set(found.changed) == {key for key in old.keys() & new.keys() if old[key] != new[key]}
    assert found.num_same == len(old.keys() & new.keys()) - len(found.changed)


def test_another_transform_of_the_same_inputs_changes_samples(tmp_path: Path) -> None:
    """Not inputs: the versions share their table of sources."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / f"in/s{number}.cls").write_bytes(b"%d" % number)

    def built(factor: int, copies: int) -> Snapshot:
        def multiply(samples: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            for sample, copy in product(samples, range(copies)):
                value = sample["cls"] * (factor if copy else 1)
                yield {"__key__": f"{sample['__key__']}_{copy}", "__source__": sample["__source__"], "n.cls": value}

        build_dataset(
            tmp_path / "in", tmp_path / "out", suffixes="cls", transform=multiply,
            transform_version=f"{factor}, {copies}", progress=False,
        )  # fmt: skip
        return Snapshot.open(tmp_path / "out")

    one, two, three = built(1, 2), built(5, 2), built(5, 3)
    found = diff(one, two)
    assert (found.added, found.removed, found.changed, found.num_same) == ((), (), ("s1_1", "s2_1", "s3_1"), 5)
    assert diff(two, three).added == ("s0_2", "s1_2", "s2_2", "s3_2")
    assert diff(two, two).num_same == 8


def test_the_command_names_tars_and_not_numbers(tmp_path: object, dray: Dray) -> None:
    """Of a dataset that indexes them; so does `dray ls`."""
    place = Place(f"file://{tmp_path}")
    put_tars(store_at(place), ("x/old.tar", "y.tar"))
    index_at(place, ("x/old.tar", "y.tar"))
    replace_tar(store_at(place), "x/new.tar", tar_of([0, 1, 2]))
    index_at(place, ("x/new.tar", "y.tar"))
    found = dray("diff", place.url, 1).out
    assert "0 added, 1 removed, 0 changed, 7 the same" in found
    assert "1 in both, 1 only in 1 (x/old.tar), 1 only in 2 (x/new.tar)" in found
    assert f"  - {key_of(3)}\n" in found
    facts = json.loads(dray("diff", place.url, 1, "--json").out)
    assert facts["urls_in_b"] == [f"{place.url}/x/new.tar"]
    listed = dray("ls", place.url).out
    assert "x/new.tar" in listed
    assert f"tars    of other programs, indexed in place under {place.url}" in listed
    assert "000000" not in listed
