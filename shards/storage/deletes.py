"""Deleting many objects with few requests."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dray.shards.errors import NotFoundError, StoreError

CALLS_AT_ONCE = 16


def delete_in_chunks(delete: Callable[[Sequence[str]], None], names: Sequence[str], size: int) -> None:
    """Delete objects, a chunk with each call, several calls at a time; a missing object is not an error.

    Args:
        delete: Deletes some objects; may stop at the first error.
        names: The objects.
        size: Maximum number of objects in a chunk.

    Raises:
        StoreError: An object could not be deleted; names it.
    """

    def delete_chunk(chunk: Sequence[str]) -> None:
        try:
            delete(chunk)
        except StoreError as exc:
            if len(chunk) == 1 and not isinstance(exc, NotFoundError):
                raise
            for name in chunk if len(chunk) > 1 else ():  # the error does not say which objects are left
                delete_chunk([name])

    with ThreadPoolExecutor(CALLS_AT_ONCE) as threads:
        for _ in threads.map(delete_chunk, [names[start : start + size] for start in range(0, len(names), size)]):
            pass
