"""`read_pickles`: the samples of a folder, each with the files that it had when they were listed."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import read_pickles
from dray.pipelines.inputs.sources import find_sources
from dray.pipelines.ray_data.pickles_datasource import PicklesDatasource
from dray.shards import CallError, InputError, MissingInputError, RefusedError, Store
from tests.conftest import MakeInputs
from tests.support.chaos import NO_PAUSES, Chaos
from tests.support.datasets import rows_of
from tests.support.hostile_pickles import call, text, whole

pytestmark = pytest.mark.usefixtures("ray_local")


def test_all_samples_of_a_folder_come_sorted_and_decoded(tmp_path: Path) -> None:
    """Those of sub-folders too; dots of names become dashes, as in a build."""
    for number, name in enumerate(["b.0", "a", "deep/er/c"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.x.pyd").write_bytes(pickle.dumps(torch.full((2,), float(number))))
        (tmp_path / f"{name}.cls").write_bytes(b"%d" % number)
    (tmp_path / ".hidden.cls").write_bytes(b"9")
    rows = rows_of(read_pickles(tmp_path, suffixes=["x.pyd", "cls"]))
    assert [row["__key__"] for row in rows] == ["a", "b-0", "deep/er/c"]
    assert [row["cls"] for row in rows] == [1, 0, 2]
    assert [row["x.pyd"].tolist() for row in rows] == [[1, 1], [0, 0], [2, 2]]


def test_names_are_read_in_their_order(make_inputs: MakeInputs) -> None:
    """As bytes, if they are not to be decoded."""
    inputs = make_inputs(20)
    names = inputs.names[::-1]
    rows = rows_of(read_pickles(inputs.folder, suffixes="tensor.pyd", names=names, decode=False, override_num_blocks=3))
    assert [row["__key__"] for row in rows] == [name.replace(".", "-") for name in names]
    assert [row["tensor.pyd"] for row in rows] == [inputs.part(name, "tensor.pyd") for name in names]


def test_files_on_object_storage_are_fetched_again_where_a_request_fails(
    s3: SeaweedServer, chaos: Chaos, make_inputs: MakeInputs
) -> None:
    """Every second request fails, and each sample comes once; one task has many requests in flight."""
    inputs, store = make_inputs(60), Store(s3.url("pickles-again"), s3.storage_options)
    for name in inputs.names:
        store.put_new(f"{name}.tensor.pyd", inputs.part(name, "tensor.pyd"))
    options = s3.storage_options | {"endpoint": chaos.endpoint, "retry_config": NO_PAUSES}
    failing = chaos.rule("status", code=503, method="GET", path="sample", times=1, each=True)
    rows = rows_of(read_pickles(store.url, suffixes="tensor.pyd", storage_options=options))
    assert [row["tensor.pyd"] for row in rows] == [
        f"{name} tensor.pyd ".encode() * (number % 97) for number, name in enumerate(inputs.names)
    ]
    assert failing.hits >= 60


def test_only_the_files_in_demand_are_read(make_inputs: MakeInputs) -> None:
    """Of the columns and of the samples: all others are gone."""
    inputs = make_inputs(10, ("a.pyd", "b.pyd"))
    dataset = read_pickles(inputs.folder, suffixes=inputs.suffixes)
    for name in inputs.names:
        inputs.path(name, "a.pyd").unlink()
    for name in inputs.names[3:]:
        inputs.path(name, "b.pyd").unlink()
    assert dataset.count() == 10
    assert len(rows_of(dataset.select_columns(["__key__"]))) == 10
    assert [row["__key__"] for row in dataset.select_columns(["__key__", "b.pyd"]).take(3)] == [
        name.replace(".", "-") for name in inputs.names[:3]
    ]
    with pytest.raises(InputError, match=r"inputs: cannot read 'sample\.0000\.a\.pyd'"):
        dataset.take(1)


def test_optional_files_that_are_absent_are_null(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Required ones are an error before anything is read."""
    inputs = make_inputs(3, ("cls",))
    for number, name in enumerate(inputs.names):
        inputs.path(name, "cls").write_bytes(b"%d" % number)
    np.save(inputs.path(inputs.names[1], "x.npy"), np.arange(2))
    rows = rows_of(read_pickles(inputs.folder, suffixes="cls", optional_suffixes=["x.npy"]))
    assert [row["x.npy"] is None for row in rows] == [True, False, True]
    assert rows[1]["x.npy"].tolist() == [0, 1]
    with pytest.raises(MissingInputError, match=r"2 of 3 samples of .*: 'sample\.0000'.*x\.npy' is missing"):
        read_pickles(inputs.folder, suffixes=["cls", "x.npy"])


def test_a_file_that_changes_after_it_was_listed_is_an_error(make_inputs: MakeInputs) -> None:
    """It names the file; the new content is not read by halves."""
    inputs = make_inputs(5)
    dataset = read_pickles(inputs.folder, suffixes="tensor.pyd")
    inputs.path(inputs.names[2], "tensor.pyd").write_bytes(pickle.dumps("other"))
    with pytest.raises(InputError, match=r"'sample\.0002\.tensor\.pyd' was changed"):
        dataset.materialize()


def test_a_hostile_pickle_is_refused_in_the_worker(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The error names file, key, suffix and keyword, and nothing ran."""
    inputs, ran = make_inputs(3), tmp_path / "ran"
    inputs.path(inputs.names[1], "tensor.pyd").write_bytes(whole(call("os", "mkdir", text(str(ran)))))
    dataset = read_pickles(inputs.folder, suffixes="tensor.pyd")
    with pytest.raises(RefusedError, match=r"(?s)sample\.0001\.tensor\.pyd.*key 'sample-0001'.*os\.mkdir.*allow="):
        dataset.materialize()
    assert not ran.exists()
    allowed = read_pickles(inputs.folder, suffixes="tensor.pyd", allow_pickle=True)
    assert allowed.count() == len(rows_of(allowed)) == 3
    assert ran.exists()


def test_names_and_suffixes_follow_the_rules_of_builds(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Names that become one key, suffixes that are cut short, and folders without a file."""
    inputs = make_inputs(2)
    shutil.copy(inputs.path("sample.0000", "tensor.pyd"), inputs.path("sample-0000", "tensor.pyd"))
    with pytest.raises(CallError, match="names that become one key"):
        read_pickles(inputs.folder, suffixes="tensor.pyd")
    with pytest.raises(CallError, match=r"takes only the end of the suffix.*'tensor\.pyd'"):
        read_pickles(inputs.folder, suffixes="pyd")
    with pytest.raises(MissingInputError, match=r"no file \*\.nope"):
        read_pickles(inputs.folder, suffixes="nope")
    with pytest.raises(CallError, match="cannot read the memory of this process"):
        read_pickles("memory://read-pickles", suffixes="cls", names=["a"])


def test_sources_that_were_found_before_can_be_read(make_inputs: MakeInputs) -> None:
    """With the key of each sample's source."""
    inputs = make_inputs(4)
    store = Store(inputs.folder)
    datasource = PicklesDatasource(
        store, find_sources(store, inputs.names[:3], inputs.suffixes), None, with_source=True
    )
    rows = rows_of(ray.data.read_datasource(datasource, override_num_blocks=2))
    assert [row["__source__"] for row in rows] == [name.replace(".", "-") for name in inputs.names[:3]]
