"""Mutated metadata with valid digests: a reader succeeds or raises an error of dray."""

import os
from pathlib import Path

import pytest

from dray.pipelines.versions.holds import hold
from dray.shards.layout import Layout, Location
from dray.shards.storage.store import Store
from tests.conftest import Inputs, Place
from tests.support.datasets import build, number_as_text, tensor_of
from tests.support.hostile import KINDS, objects_in, problems_of, survey


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a dataset, one of them held, with omitted inputs."""
    folder = tmp_path_factory.mktemp("hostile")
    inputs = Inputs(folder / "inputs", [f"s{number:04d}" for number in range(12)], ("x.pyd", "cls"))
    inputs.folder.mkdir()
    for number, name in enumerate(inputs.names):
        inputs.path(name, "x.pyd").write_bytes(tensor_of(3)(number))
        inputs.path(name, "cls").write_bytes(number_as_text(number))
    for path in inputs.folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))  # fixed times make digests and mutations deterministic
    inputs.path(inputs.names[7], "cls").unlink()
    place = Place(str(folder / "out"))
    build(inputs, place, names=inputs.names[:9], on_error="skip", min_num_shards=2)
    hold(Location(Store(place.url), Layout("wds")), "best")
    build(inputs, place, on_error="skip", min_num_shards=2)
    return folder / "out"


def test_the_dataset_itself_is_read_without_a_problem(dataset: Path, tmp_path: Path) -> None:
    """Problems of a mutated dataset therefore come from the mutation."""
    assert problems_of(objects_in(dataset), "good", tmp_path) == []


def test_some_mutations_do_no_harm(dataset: Path, tmp_path: Path) -> None:
    """No signal, foreign error or excess of memory; the mutations are deterministic."""
    cases = [(kind, seed) for kind in KINDS for seed in range(14)]
    assert survey(dataset, cases, tmp_path) == {}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_mutations_do_no_harm(dataset: Path, kind: str, tmp_path: Path) -> None:
    """Mutations with many other seeds do no harm either."""
    assert survey(dataset, [(kind, seed) for seed in range(1000, 2000)], tmp_path) == {}
