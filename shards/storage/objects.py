"""What a store says about an object."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as listed, or as the answer to a request describes it."""

    name: str  # relative to the store's URL
    size: int  # bytes
    etag: str
    modified: datetime


def info_of(name: str, meta: Any) -> ObjectInfo:
    """Returns what the client's metadata say. A store without ETags has a time at least."""
    modified = meta["last_modified"]
    return ObjectInfo(name, meta["size"], plain_etag(meta["e_tag"] or modified.isoformat()), modified)


def plain_etag(etag: str) -> str:
    """Returns an ETag without quotes and without its mark as a weak one: Azure quotes it in some answers only."""
    return etag.removeprefix("W/").strip('"')
