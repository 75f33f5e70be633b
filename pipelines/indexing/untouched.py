"""Reading a tar of another program, which may be changed at any moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from dray.pipelines.indexing.listing import Tar
from dray.pipelines.running.node import node_name
from dray.shards.errors import ChangedError, InputError, NotFoundError
from dray.shards.layout import Layout, Location
from dray.shards.manifest import Shard
from dray.shards.reading.tars import Tars
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.store import Store


@contextmanager
def open_unchanged(source: Store, tar: Tar) -> Iterator[BinaryIO]:
    """Opens a tar as a stream, and checks before and after that it is the one that was listed.

    Raises:
        InputError: It was changed meanwhile.
        NotFoundError: It does not exist; names the node.
    """
    tars = Tars(Location(source, Layout(DEFAULT_PREFIX)), None, is_foreign=True)
    shard = Shard(
        number=0, num_bytes=tar.num_bytes, num_samples=0, digest="", index_digest="",
        name=tar.name, etag=tar.etag, mtime=tar.mtime,
    )  # fmt: skip
    try:
        with tars.open_stream(shard) as stream:
            yield stream
        tars.check(shard)
    except ChangedError as exc:
        raise InputError("it was changed while it was read: run it again", url=exc.url) from exc
    except NotFoundError as exc:
        raise NotFoundError(
            f"it was listed, but does not exist on node {node_name()}: a local folder must be on a disk that all nodes "
            "share",
            url=tars.url_of(shard),
        ) from exc
