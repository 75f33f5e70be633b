"""How what tasks share travels: secrets apart from what Ray may write to a disk."""

import pickle
from pathlib import Path

from dray.pipelines.building.job import PackJob
from dray.pipelines.building.pack import pack_shards
from dray.pipelines.running.parcel import Parcel, Witness, open_parcel
from dray.shards import Store
from dray.shards.layout import Layout, Location


def test_storage_options_are_not_in_the_body(tmp_path: Path) -> None:
    """Wherever a store is; and the opened values have their stores again."""
    options = {"secret_access_key": "planted", "access_key_id": "id", "region": "eu"}
    inputs, output = Store(tmp_path), Store("s3://bucket/folder", options)
    job = PackJob(inputs=inputs, location=Location(output, Layout("wds")), transform=None)
    parcel = Parcel.of(pack_shards, job, Witness(output, "name"))
    assert b"planted" not in parcel.body
    assert b"planted" in parcel.stores
    function, opened, witness = open_parcel(parcel.body, parcel.stores)
    assert function is pack_shards
    assert (opened.inputs.url, opened.location.url, witness.store.url) == (inputs.url, output.url, output.url)
    assert pickle.dumps(opened.location.store) == pickle.dumps(output)
