"""Stores on S3 that lack rights, buckets or conditions: typed errors that show no secret."""

import pickle
import traceback
from collections.abc import Callable

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards.errors import (
    CallError,
    DeniedError,
    DrayError,
    NotFoundError,
    StoreError,
)
from dray.shards.storage.store import Store

SECRET = "hush-hush-hush-hush-hush-hush-hush"


def test_a_read_only_key_cannot_put_or_delete(s3: SeaweedServer) -> None:
    """Denied is its own error: another try would not help."""
    url = s3.url("store/read-only")
    Store(url, s3.storage_options).put_new("a", b"cargo")
    reader = Store(url, s3.read_only_options)
    with pytest.raises(DeniedError, match=f"{url}/b: permission denied"):
        reader.put_new("b", b"more")
    with pytest.raises(DeniedError, match=f"{url}/a"):
        reader.delete(["a"])
    assert reader.get("a") == b"cargo"


def test_a_missing_bucket_is_not_found(s3: SeaweedServer) -> None:
    """Also where a listing meets it: a bucket misspelt must not read as an empty dataset."""
    store = Store("s3://no-such-bucket/x", s3.storage_options)
    with pytest.raises(NotFoundError, match="s3://no-such-bucket/x/a"):
        store.get("a")
    with pytest.raises(NotFoundError, match="s3://no-such-bucket/x"):
        store.list_folder()


def _errors_of(store: Store) -> list[DrayError]:
    """What each call raises."""
    calls: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.get_ranges("a", [0], [1]),
        lambda: store.put_new("a", b""),
        lambda: store.list_folder(),
        lambda: store.head("a"),
        lambda: store.delete(["a"]),
        lambda: store.open_stream("a").__enter__(),
    ]
    errors = []
    for call in calls:
        with pytest.raises(DrayError) as caught:
            call()
        errors.append(caught.value)
    return errors


def _shown(error: BaseException) -> str:
    """All that a log would show of an error."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(pickle.loads(pickle.dumps(error)))


def test_a_wrong_secret_is_denied_and_not_shown(s3: SeaweedServer) -> None:
    """Every call says that the key is at fault, none says the key."""
    options = {**s3.storage_options, "secret_access_key": SECRET}
    store = Store(s3.url("store/wrong"), options)
    errors = _errors_of(store)
    assert {type(error) for error in errors} == {DeniedError}
    assert all("s3://data/store/wrong" in str(error) for error in errors)
    shown = repr(store) + "".join(map(_shown, errors))
    assert not [value for value in (SECRET, options["access_key_id"]) if value in shown]


def test_a_wrong_endpoint_fails_and_shows_no_secret(s3: SeaweedServer) -> None:
    """Neither of the options nor of a password that somebody wrote into the endpoint."""
    options = {
        **s3.storage_options,
        "endpoint": f"http://user:{SECRET}@127.0.0.1:9",
        "retry_config": {"max_retries": 0},
    }
    errors = _errors_of(Store(s3.url("store/wrong"), options))
    assert {type(error) for error in errors} == {StoreError}
    shown = "".join(map(_shown, errors))
    assert not [value for value in (SECRET, options["secret_access_key"]) if value in shown]


def test_a_secret_of_the_environment_is_not_shown(s3: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes it from there when no option gives one, and quotes the key's id in its answer."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-NOBODY-KNOWS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store = Store(s3.url("store/wrong"), {"endpoint": s3.endpoint, "region": "us-east-1"})
    shown = "".join(map(_shown, _errors_of(store)))
    assert not [value for value in (SECRET, "AKIA-NOBODY-KNOWS") if value in shown]


@pytest.mark.parametrize("options", [{"secret_acess_key": SECRET}, {"timeout": "soon"}, {"region": 5}])
def test_a_wrong_option_is_a_wrong_call(options: dict[str, object]) -> None:
    """A misspelt option is named, its value is not."""
    with pytest.raises(CallError, match="cannot open s3://bucket/x") as caught:
        Store("s3://bucket/x", options)
    assert SECRET not in _shown(caught.value)


def test_a_store_that_may_not_use_conditions_is_a_wrong_call(s3: SeaweedServer) -> None:
    """Without them nothing keeps two writers apart."""
    with pytest.raises(CallError, match="conditional put is disabled"):
        Store(s3.url("store"), {**s3.storage_options, "conditional_put": "disabled"}).put_new("a", b"")
