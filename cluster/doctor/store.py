"""Checks of a store: what a build and a training ask of it, tried with temporary objects."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore

from dray.cluster.doctor.advice import advice_for, ends_all, in_short
from dray.cluster.doctor.clock import check_clock
from dray.cluster.doctor.credentials import check_credentials
from dray.cluster.doctor.finding import Finding, Level, bad, good, unchecked, warning
from dray.cluster.doctor.running import Check
from dray.cluster.doctor.scratch import Scratch
from dray.cluster.doctor.speed import check_latency, check_streams
from dray.shards.errors import DeniedError, ExistsError, StoreError
from dray.shards.storage.objects import ObjectInfo
from dray.shards.storage.store import Store

WRITERS = 8  # that try to create one object at the same time
_TIMEOUTS = {"timeout": "20s", "connect_timeout": "5s"}
_RETRIES = {"max_retries": 1, "retry_timeout": timedelta(seconds=10)}


def open_store(url: str, options: Mapping[str, Any]) -> Store:
    """Returns a store whose requests end after seconds, not minutes, unless the options say otherwise.

    Raises:
        CallError: The URL or an option is wrong.
    """
    return Store(url, {**_TIMEOUTS, "retry_config": _RETRIES, **options})


class StoreChecks:
    """The checks of one store; each takes from those before it what can be tried at all.

    Args:
        store: The store.
        options: Its options, as given.
        speed: Whether to measure latency and bandwidth, which moves up to 100 MB in each direction.

    Attributes:
        is_clean: Whether `clean_up` was run.
    """

    def __init__(self, store: Store, options: Mapping[str, Any], *, speed: bool = True) -> None:
        self.store, self.scratch = store, Scratch(store)
        self._options, self._speed = options, speed
        self._first: ObjectInfo | None = None
        self._name = ""  # of the object that could be created
        self._end = ""  # why nothing more can be tried
        self.is_clean = False

    def checks(self) -> list[Check]:
        """Returns the checks in their order; the last one removes what the others wrote."""
        is_local = self.store.local_root is not None
        named: dict[str, Callable[[], Iterator[Finding]]] = {
            **({} if self.store.url.startswith(("file:", "memory:")) else {"credentials": self._credentials}),
            "list": self._list,
            "create": self._create,
            "read": self._read,
            ("hard links" if is_local else "conditional create"): self._create_once,
            **({"fsync": self._sync} if is_local else {}),
            "clock": lambda: check_clock(self.scratch, self._options, can_write=bool(self._name)),
            **({"latency": self._latency} if self._speed else {}),
            **({"bandwidth": self._bandwidth} if self._speed else {}),
        }
        return [*(Check(name, self._unless_ended(name, run)) for name, run in named.items()), self.clean_up()]

    def clean_up(self) -> Check:
        """Returns the check that removes what the others wrote."""
        return Check("delete", self._delete)

    def _unless_ended(self, name: str, run: Callable[[], Iterator[Finding]]) -> Callable[[], Iterator[Finding]]:
        def run_or_say_why() -> Iterator[Finding]:
            if self._end and name != "clock":
                yield unchecked(name, self._end)
            else:
                yield from run()

        return run_or_say_why

    def _credentials(self) -> Iterator[Finding]:
        yield check_credentials(self.store.url, self._options)

    def _list(self) -> Iterator[Finding]:
        started = time.monotonic()
        try:
            self._first = first_object(self.store)
        except StoreError as exc:
            if ends_all(exc) or not isinstance(exc, DeniedError):
                self._end = "not checked, as the store cannot be listed"
            yield bad("list", in_short(exc), advice_for(exc, "allow the key to list (s3:ListBucket on the bucket)"))
            return
        seconds = time.monotonic() - started
        what = "something is stored" if self._first else "nothing is stored yet"
        yield good("list", f"{what}; listed in {1000 * seconds:.0f} ms", list_s=seconds)

    def _create(self) -> Iterator[Finding]:
        name = self.scratch.name("created")
        try:
            _put(self.store, name, b"dray")
        except StoreError as exc:
            advice = "a build needs the right to create objects (s3:PutObject); reading and training do not"
            yield bad("create", in_short(exc), advice_for(exc, advice))
            return
        self._name = name
        yield good("create", f"created an object in {self.scratch.folder}")

    def _read(self) -> Iterator[Finding]:
        name = self._name or (self._first.name if self._first else "")
        if not name:
            yield unchecked("read", "not checked: there is no object to read")
            return
        try:
            found, _ = self.store.get_range(name, 0, 4)
        except StoreError as exc:
            yield bad("read", in_short(exc), advice_for(exc, "allow the key to read objects (s3:GetObject)"))
            return
        if self._name and bytes(found) != b"dray":
            yield bad("read", f"wrote b'dray' and read {bytes(found)!r}", "do not use this store: it changes data")
            return
        yield good("read", f"read {'what was written' if self._name else name}")

    def _create_once(self) -> Iterator[Finding]:
        """Lets several writers create the same object at once: exactly one may succeed."""
        check = "conditional create" if self.store.local_root is None else "hard links"
        if not self._name:
            yield unchecked(check, "not checked, as nothing can be created")
            return
        name = self.scratch.name("once")
        with ThreadPoolExecutor(WRITERS) as threads:
            answers = list(threads.map(lambda writer: _write_once(self.store, name, writer), range(WRITERS)))
        answers.append(_write_once(self.store, name, WRITERS))
        wins = answers.count(None)
        errors = [answer for answer in answers if answer and not isinstance(answer, ExistsError)]
        advice = _CONDITIONS_ADVICE if self.store.local_root is None else _LINKS_ADVICE
        if wins == 1:
            yield good(check, f"of {len(answers)} writers of one object, one succeeded")
        elif wins or not errors:
            yield bad(check, f"{wins} of {len(answers)} writers created the same object, expected 1", advice)
        else:
            yield bad(check, in_short(errors[0]), advice_for(errors[0], advice))

    def _sync(self) -> Iterator[Finding]:
        if not self._name:
            yield unchecked("fsync", "not checked, as nothing can be created")
            return
        started = time.monotonic()
        self.store.sync([self._name])
        seconds = time.monotonic() - started
        yield good("fsync", f"{1000 * seconds:.1f} ms for a folder", fsync_s=seconds)

    def _latency(self) -> Iterator[Finding]:
        if not self._name:
            yield unchecked("latency", "not measured, as nothing can be created")
            return
        yield check_latency(self.scratch)

    def _bandwidth(self) -> Iterator[Finding]:
        if not self._name:
            yield unchecked("bandwidth", "not measured, as nothing can be created")
            return
        yield from check_streams(self.scratch)

    def _delete(self) -> Iterator[Finding]:
        self.is_clean = True
        if self.scratch.is_empty:
            yield unchecked("delete", "not checked, as nothing was written")
            return
        found = check_clean_up(self.scratch)
        is_known = bool(self._name) or found.level is Level.GOOD  # else nothing could be created
        yield found if is_known else unchecked("delete", "not checked, as nothing can be created")


_CONDITIONS_ADVICE = (
    "two builds could overwrite each other's data: use a store with conditional writes (If-None-Match: *), such as AWS "
    "S3, GCS, Azure, or newer releases of MinIO, Ceph and SeaweedFS; a proxy before it must pass the header on"
)
_LINKS_ADVICE = "use a disk with hard links (ext4, XFS, NFS, Lustre; not exFAT and many FUSE mounts), or object storage"


def check_clean_up(scratch: Scratch) -> Finding:
    """Removes the temporary objects; the finding names those that remain."""
    try:
        left = scratch.clean_up()
    except (StoreError, OSError) as exc:
        advice = f"delete {scratch.url} yourself, and allow the key to delete (s3:DeleteObject): dray gc needs it"
        return bad("delete", f"could not clean up: {in_short(exc)}", advice)
    if left:
        return warning("delete", f"could not clean up: {', '.join(left)} remain", f"delete {scratch.url} yourself")
    return good("delete", "all temporary objects are deleted")


def first_object(store: Store) -> ObjectInfo | None:
    """Returns any object below the store's URL; None if there is none. Costs one small request."""
    if store.local_root is not None:
        return _first_file(store, Path(store.local_root))
    found: list[ObjectInfo] = []

    def ask(client: Any, key: str) -> None:  # noqa: ARG001  the client is rooted at the URL
        for page in obstore.list(client, prefix=None, chunk_size=1):
            found.extend(ObjectInfo(meta["path"], meta["size"], "", meta["last_modified"]) for meta in page)
            return

    store.call("list", "", ask, 0)
    return found[0] if found else None


def _first_file(store: Store, root: Path) -> ObjectInfo | None:
    def ask(*_: object) -> None:
        if root.exists():
            with os.scandir(root) as entries:
                files = (entry.name for entry in entries if entry.is_file())
                found.extend(name for name in [next(files, None)] if name)

    found: list[str] = []
    store.call("list", "", ask, 0)
    return store.head(found[0]) if found else None


def _put(store: Store, name: str, data: bytes) -> None:
    """Creates an object of the doctor's own without a condition."""
    if store.local_root is not None:

        def write(*_: object) -> None:
            path = Path(str(store.local_root), name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        store.call("write", name, write, 0)
        return
    store.call("write", name, lambda client, key: _check(client.put(key, data, use_multipart=False)), len(data))


def _check(answer: object) -> None:
    """Takes the answer of a request, which is checked by having come."""


def _write_once(store: Store, name: str, writer: int) -> StoreError | None:
    """Returns None if this writer created the object, else why it did not."""
    try:
        store.put_new(name, f"writer {writer}".encode())
    except StoreError as exc:
        return exc
    return None
