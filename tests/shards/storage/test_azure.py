"""Azure Blob storage, of a real server: the life of a dataset."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from dray.loaders import ShardLoader
from dray.pipelines.versions.gc import gc
from dray.pipelines.versions.retention import Retention
from dray.shards import CallError, DeniedError, Snapshot, Store
from dray.shards.layout import Layout, Location
from dray.shards.verify import verify
from tests.conftest import MakeInputs, Place, place_of
from tests.support.azurite import ACCOUNT, AzuriteServer
from tests.support.chaos import NO_PAUSES, Chaos
from tests.support.datasets import build, latest, stored

pytestmark = pytest.mark.heavy


@pytest.fixture(params=["azure"])
def place(request: pytest.FixtureRequest, tmp_path: Any) -> Place:
    """A fresh one."""
    return place_of(request, tmp_path)


def test_a_dataset_is_built_changed_read_and_cleaned_up(make_inputs: MakeInputs, place: Place) -> None:
    """A rerun writes nothing, one changed file packs one shard, a loader gives each sample once, a gc deletes."""
    inputs = make_inputs(24, ("label.cls",))
    for number, name in enumerate(inputs.names):
        inputs.path(name, "label.cls").write_text(str(number))
    assert build(inputs, place).num_reused == 0
    before = stored(store := Store(place.url, place.storage_options))
    assert not build(inputs, place).is_new
    assert stored(store) == before
    inputs.path(inputs.names[3], "label.cls").write_text("99")
    assert build(inputs, place).num_reused == 3
    assert [str(finding) for finding in verify(latest(place), "full")] == []
    for version, third in ((1, 3), (2, 99)):
        loader = ShardLoader(
            place.url, parts="label.cls", batch_size=5, shuffle=True, remainder="keep", version=version, prefix="wds",
            storage_options=place.storage_options,
        )  # fmt: skip
        labels = sorted(int(label) for batch in loader for label in batch["label.cls"])
        assert labels == sorted([third, *(number for number in range(24) if number != 3)])
    gc(Location(store, Layout("wds")), Retention(keep=1, grace_s=0))
    assert len(stored(store)) < len(before) + 4
    assert Snapshot.open(place.url, "wds", storage_options=place.storage_options).version == 2


@pytest.mark.parametrize(
    "fault", [{"action": "lost_reply"}, {"action": "reset_body", "at": 20}, {"action": "status", "code": 503}]
)
def test_every_request_may_fail_once(
    make_inputs: MakeInputs, place: Place, azure: AzuriteServer, fault: dict[str, Any]
) -> None:
    """A build and a reader end as if nothing had been."""
    inputs = make_inputs(12)
    build(inputs, undisturbed := replace(place, url=f"{place.url}-undisturbed"))
    with Chaos(azure.port) as chaos:
        rule = chaos.rule(times=1, each=True, **fault)
        options = {**place.storage_options, "endpoint": f"{chaos.endpoint}/{ACCOUNT}", "retry_config": NO_PAUSES}
        report = build(inputs, disturbed := replace(place, storage_options=options))
        assert [str(finding) for finding in verify(latest(disturbed), "full")] == []
    assert rule.hits > 10
    assert report.num_reused == 0
    found, expected = (stored(Store(each.url, each.storage_options)) for each in (place, undisturbed))
    assert found.keys() == expected.keys()
    assert [found[name] for name in found if name.endswith(".tar")] == [
        expected[name] for name in expected if name.endswith(".tar")
    ]


def test_a_wrong_key_is_denied_and_not_shown(azure: AzuriteServer) -> None:
    """A key that is no key at all is a wrong call."""
    options = azure.storage_options
    wrong = base64.b64encode(bytes(64)).decode()
    with pytest.raises(DeniedError) as caught:
        Store(azure.url("wrong"), {**options, "account_key": wrong}).put_new("a", b"")
    assert wrong not in str(caught.value)
    with pytest.raises(CallError) as refused:
        Store(azure.url("wrong"), {**options, "account_key": "hush, not base64"})
    assert "hush" not in str(refused.value)
