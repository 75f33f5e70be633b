"""Creating objects of any size in bounded memory, and replacing small ones."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import obstore
from obstore.store import ObjectStore

from dray.shards.errors import ExistsError
from dray.shards.storage import disk
from dray.shards.storage.client import client_panics
from dray.shards.storage.store import Store

WHOLE_BYTES = 64 << 20  # a smaller object is created by one conditional request; the size of a part of a larger one
PARTS_AT_ONCE = 2


def replace_object(store: Store, name: str, data: bytes) -> None:
    """Creates or replaces a whole small object with one request: readers see the old bytes or the new ones.

    Only for records that no version of a dataset depends on: what a version names is created by `Store.put_new`.

    Raises:
        StoreError: The store failed, or the caller may not write.
    """
    store.call("write", name, lambda client, key: _replace(client, key, data), len(data))


def _replace(client: ObjectStore, key: str, data: bytes) -> None:
    obstore.put(client, key, data, mode="overwrite", use_multipart=False)


def put_pieces(store: Store, name: str, pieces: Iterable[bytes]) -> None:
    """Creates an object of the pieces: a crash or an error, also one of `pieces`, leaves nothing visible.

    A large object on object storage is uploaded in parts, which no store completes on a condition. So it is looked for
    before: two programs that create one large object at the same moment must give it the same bytes.

    Raises:
        ExistsError: The object exists already; it was not touched.
        StoreError: The store failed. Or the disk refuses hard links.
    """
    if store.local_root is not None:
        path = Path(store.local_root, name)
        store.call("write", name, lambda _client, _key: disk.create_file(path, pieces), 0)
        return
    rest = iter(pieces)
    head, is_whole = _head_of(rest)
    if is_whole:
        store.put_new(name, head)
        return
    if store.head(name) is not None:
        raise ExistsError(f"cannot write {store.url_of(name)}: the object exists already")
    store.call("write", name, lambda client, key: _upload(client, key, chain([head], rest)), WHOLE_BYTES)


def _head_of(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Returns the first `WHOLE_BYTES` or more, and whether they are all."""
    head = bytearray()
    for piece in pieces:
        head += piece
        if len(head) > WHOLE_BYTES:
            return bytes(head), False
    return bytes(head), True


def _upload(client: ObjectStore, key: str, pieces: Iterator[bytes]) -> None:
    with client_panics():
        obstore.put(client, key, pieces, use_multipart=True, chunk_size=WHOLE_BYTES, max_concurrency=PARTS_AT_ONCE)
