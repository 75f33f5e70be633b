"""Deleting many objects: with few requests, whatever is missing, and an error that names its object."""

import uuid
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards import NotFoundError, Store, StoreError
from dray.shards.storage.deletes import delete_in_chunks
from tests.support.chaos import Chaos


def test_many_objects_take_one_request(s3: SeaweedServer, chaos: Chaos) -> None:
    """On S3 a request deletes up to 1,000 objects; missing ones among them are no error."""
    store = Store(s3.url(f"deletes/{uuid.uuid4().hex}"), s3.storage_options | {"endpoint": chaos.endpoint})
    for number in range(40):
        store.put_new(f"a/{number:03d}", b"")
    chaos.clear()
    store.delete([f"a/{number:03d}" for number in range(1, 45)])
    assert [asked.method for asked in chaos.log] == ["POST"]
    assert [info.name for info in store.list_folder("a")] == ["a/000"]


@given(
    names=st.lists(st.integers(0, 40).map(str), unique=True),
    missing=st.sets(st.integers(0, 40).map(str)),
    size=st.integers(1, 12),
)
def test_a_missing_object_hides_no_other(names: list[str], missing: set[str], size: int) -> None:
    """Also where a call stops at the first missing one, and does not say what it has deleted."""
    stored = set(names) - missing

    def delete(chunk: Sequence[str]) -> None:
        for name in chunk:
            if name not in stored:
                raise NotFoundError("cannot delete it")
            stored.discard(name)

    delete_in_chunks(delete, names, size)
    assert not stored


def test_an_error_names_the_object_that_is_left() -> None:
    """A failed call for many does not say which object it failed for: they are deleted one by one."""
    stored = set("abcdef")

    def delete(chunk: Sequence[str]) -> None:
        if "d" in chunk:
            raise StoreError(f"cannot delete {chunk[0]}")
        stored.difference_update(chunk)

    with pytest.raises(StoreError, match=r"cannot delete d$"):
        delete_in_chunks(delete, "abcdef", 3)
    assert stored == {"d", "e", "f"}
