"""A manifest does not choose where credentials go: tars outside a dataset's folder are read only on request."""

import pickle
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import Dataset, ShardDataModule, ShardLoader, WebDataModule
from dray.shards import CallError, DamagedError, DeniedError, Manifest, Snapshot
from dray.shards.layout import DataPlace
from dray.shards.storage.client import Access
from dray.shards.verify import verify
from tests.conftest import Dray, Place
from tests.support.chaos import Chaos
from tests.support.datasets import store_at
from tests.support.foreign import NAMES, PER_TAR, index_at, key_of, put_tars

NUM_SAMPLES = 3 * PER_TAR


@pytest.fixture
def apart(tmp_path: Path) -> tuple[Place, Place]:
    """A folder with the records of a dataset, and another with its tars."""
    records, tars = Place((tmp_path / "records").as_uri()), Place((tmp_path / "tars").as_uri())
    put_tars(store_at(tars))
    index_at(records, tars=tars)
    return records, tars


def web_module(url: str, **options: Any) -> Any:
    module = WebDataModule(None, ["cls", "txt"], {"train": url}, None, "wds", **options)
    module.setup("fit")
    return list(module.train_dataloader())


ENTRY_POINTS: dict[str, Callable[..., Any]] = {
    "snapshot": lambda url, **options: Snapshot.open(url, "wds", **options).read(key_of(3)),
    "dataset": lambda url, **options: Dataset(url, "wds", **options)[7],
    "loader": lambda url, **options: list(ShardLoader(url, prefix="wds", batch_size=2, **options)),
    "workers": lambda url, **options: list(ShardLoader(url, prefix="wds", batch_size=2, num_workers=1, **options)),
    "module": lambda url, **options: list(
        ShardDataModule(url, prefix="wds", batch_size=2, **options).train_dataloader()
    ),
    "web": web_module,
}


@pytest.mark.parametrize("name", [name for name in ENTRY_POINTS if name != "workers"])
def test_tars_elsewhere_are_read_only_on_request(apart: tuple[Place, Place], name: str) -> None:
    """The error names the place that the manifest names, and how to allow it."""
    records, tars = apart
    with pytest.raises(CallError, match=rf"outside its folder, under '{tars.url}'.*give data_url='{tars.url}'"):
        ENTRY_POINTS[name](records.url)
    with pytest.raises(CallError, match=rf"data_url='file:///other' was given, but the tars .* are under '{tars.url}'"):
        ENTRY_POINTS[name](records.url, data_url="/other")
    assert ENTRY_POINTS[name](records.url, data_url=tars.url)


def test_workers_may_read_what_their_loader_may(apart: tuple[Place, Place]) -> None:
    """Also after a resume."""
    records, tars = apart
    assert len(ENTRY_POINTS["workers"](records.url, data_url=tars.url)) == NUM_SAMPLES // 2
    loader = ShardLoader(records.url, prefix="wds", batch_size=2, data_url=tars.url)
    loader.load_state_dict(pickle.loads(pickle.dumps(loader)).state_dict())
    assert len(list(loader)) == NUM_SAMPLES // 2


def test_splits_have_places_of_their_own(apart: tuple[Place, Place], tmp_path: Path) -> None:
    """One of them may have its tars in its own folder."""
    records, tars = apart
    inside = Place((tmp_path / "inside").as_uri())
    put_tars(store_at(inside))
    index_at(inside)
    module = WebDataModule(
        None, ["cls"], {"train": records.url, "val": inside.url}, None, "wds", data_url={"train": tars.url}
    )
    module.setup("fit")
    assert [len(list(loader())) for loader in (module.train_dataloader, module.val_dataloader)] == [NUM_SAMPLES] * 2


@pytest.mark.parametrize("words", [("verify",), ("show", key_of(2)), ("loadtest", "--batch-size", 2)])
def test_commands_read_tars_elsewhere_only_on_request(
    apart: tuple[Place, Place], dray: Dray, words: tuple[str, ...]
) -> None:
    """The error names the option."""
    records, tars = apart
    assert f"give --data-url {tars.url}" in dray(words[0], records.url, *words[1:]).err
    found = dray(words[0], records.url, *words[1:], "--data-url", tars.url)
    assert (found.code, "error" in found.err) == (0, False)


def test_commands_that_read_no_tar_need_no_permission(apart: tuple[Place, Place], dray: Dray) -> None:
    """They read only records."""
    records, tars = apart
    index_at(records, NAMES[1:], tars=tars)
    assert f"{tars.url}/a/01.tar\n" in dray("ls", records.url, "--urls").out
    for words in (("log", records.url), ("diff", records.url, 1), ("hold", records.url, "x"), ("gc", records.url)):
        assert dray(*words).code == 0
    assert "--data-url" in dray("rollback", records.url, 1).err
    assert "version 4: the same as version 1" in dray("rollback", records.url, 1, "--data-url", tars.url).out


@pytest.mark.parametrize("below", ["deep", "de%ep/er"])
def test_tars_below_the_folder_of_the_dataset_need_no_permission(tmp_path: Path, below: str) -> None:
    """Whoever may read the dataset may read them."""
    records, tars = Place(tmp_path.as_uri()), Place(Place((tmp_path / below).as_uri()).url)
    put_tars(store_at(tars))
    snapshot = index_at(records, tars=tars)
    assert snapshot.manifest.base == store_at(tars).url
    assert ENTRY_POINTS["dataset"](records.url) == {"cls": 7, "txt": "text 7"}
    assert len(ENTRY_POINTS["loader"](records.url, data_url=tars.url)) == NUM_SAMPLES // 2
    assert not list(verify(snapshot, "full"))


@pytest.mark.parametrize(
    "base", ["s3://bucket/other", "s3://bucket/set2", "s3://bucket", "s3://other/set", "file:///etc", "memory://m/set"]
)
def test_what_is_elsewhere(base: str) -> None:
    """Another folder of the same bucket, one above, another bucket, a local folder: a name that only begins alike."""
    snapshot = at_base(Place("s3://bucket/set", {"endpoint": "http://127.0.0.1:1", "skip_signature": "true"}), base)
    for use in (lambda: snapshot.tars.store, lambda: snapshot.read_row(snapshot.shards[0], None, 0)):  # type: ignore[arg-type]
        with pytest.raises((CallError, AttributeError)):
            use()
    assert snapshot.urls()[0].startswith(base)


def at_base(place: Place, base: str, data: DataPlace | None = None) -> Snapshot:
    """A snapshot that nobody stored, with its tars at a base."""
    other = Place(f"memory://{uuid.uuid4().hex}")
    put_tars(store_at(other))
    made = index_at(other)
    location = made.location._replace(store=store_at(place), data=data)
    return Snapshot(location, made.commit, replace(made.manifest, base=base))


@pytest.mark.parametrize(
    "base",
    ["s3://user:secret@bucket/x", "https://user:secret@host/x", "file://user:secret@host/x", "x/y", "s3://b/../c",
     "s3://b/x/", "file:///a/../b", "~/x", "s3://b?version=3"],
)  # fmt: skip
def test_a_base_that_is_no_normal_url_is_refused(base: str) -> None:
    """And a password in it is not repeated."""
    body = at_base(Place("memory://x"), "memory://y").manifest.to_bytes()
    with pytest.raises(DamagedError) as exc:
        Manifest.from_bytes(body.replace(b'"memory://y"', f'"{base}"'.encode()), "where")
    assert "secret" not in str(exc.value)


def test_the_options_of_the_dataset_are_not_sent_to_another_place(s3: SeaweedServer, chaos: Chaos) -> None:
    """Each place gets its own; those of the tars are in no text."""
    records, tars = Place(s3.url("apart/records"), s3.storage_options), Place(s3.url("apart/tars"), s3.storage_options)
    put_tars(store_at(tars))
    index_at(records, tars=tars)
    watched = s3.storage_options | {"endpoint": chaos.endpoint}
    options: dict[str, Any] = {"storage_options": watched, "data_url": tars.url}
    no_access = {"endpoint": s3.endpoint, "access_key_id": "nobody", "secret_access_key": "hidden-value"}
    with pytest.raises(DeniedError) as exc:
        ENTRY_POINTS["snapshot"](records.url, **options, data_storage_options=no_access)
    assert "hidden-value" not in str(exc.value)
    snapshot = Snapshot.open(records.url, "wds", **options, data_storage_options=s3.storage_options)
    again = pickle.loads(pickle.dumps(snapshot))
    chaos.log.clear()
    assert again.read_row(*again.find(key_of(3)))["cls"] == b"3"
    assert chaos.log
    assert not any("/tars/" in asked.path for asked in chaos.log)
    for text in (repr(again.location), repr(again), repr(again.tars)):
        assert str(s3.storage_options["secret_access_key"]) not in text


def test_without_options_another_place_gets_none(s3: SeaweedServer) -> None:
    """Not even those of the dataset."""
    place = Place(s3.url("apart/set"), s3.storage_options)
    data = DataPlace.of("s3://elsewhere/tars")
    store = at_base(place, "s3://elsewhere/tars", data).tars.store
    access: Access = store._access
    assert dict(access.options) == {}


def test_options_without_a_place_are_an_error(apart: tuple[Place, Place], dray: Dray) -> None:
    """They would be for nothing."""
    with pytest.raises(CallError, match="data_storage_options without data_url"):
        Snapshot.open(apart[0].url, "wds", data_storage_options={"region": "x"})
    found = dray("verify", apart[0].url, "--data-storage-option", "region=x")
    assert "--data-storage-option without --data-url" in found.err
