"""Which versions of a dataset are kept, and which one a number or a name means.

A hold keeps a version under a name. Each commit names the list of all holds by its digest, so a commit stays small
however many there are. A list is stored before the commit that names it and is never changed or deleted. The order of
holds and garbage collection is therefore that of the commits. A hold is committed after a version was dropped, and then
it is refused, or before: then the commit that drops versions names a list that has it, and so does every later commit
until the one that releases it. What garbage collection deletes follows from one commit alone. It never matters when it
reads a list, or what is committed meanwhile.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dray.shards.arguments import as_int
from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.index import digest_of
from dray.shards.layout import Location
from dray.shards.log import Commit, check_holds, put_content, read_commit, read_head
from dray.shards.parsing.records import FormatError, read_record, write_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """The list of all holds as it is stored."""

    holds: dict[str, int]  # name -> version


def put_holds(location: Location, holds: Mapping[str, int]) -> str | None:
    """Stores a list of holds, durably. Returns the digest by which a commit names it; None for an empty one."""
    if not holds:
        return None
    body = write_record(Holds(holds=dict(holds)))
    digest = digest_of(body)
    put_content(location.store, location.layout.hold_list(digest), body)
    return digest


def read_holds(location: Location, commit: Commit) -> dict[str, int]:
    """Returns name -> version of all holds as of a commit.

    Raises:
        DamagedError: The list is missing, or is not the one that was committed.
    """
    if commit.holds is None:
        return {}
    name = location.layout.hold_list(commit.holds)
    try:
        body = location.store.get(name)
        if digest_of(body) != commit.holds:
            raise ValueError("its digest differs")
        holds = read_record(Holds, body).holds
        check_holds(holds, commit.number)
    except FormatError as exc:
        raise DamagedError(str(exc), url=location.store.url_of(name)) from exc
    except (ValueError, NotFoundError) as exc:
        raise DamagedError(
            f"not a readable list of the holds of commit {commit.number} ({exc}): restore it "
            "from a copy; nothing is deleted until then",
            url=location.store.url_of(name),
        ) from exc
    return holds


def keeps(location: Location, head: Commit, version: int) -> bool:
    """Returns whether a version is kept as of a commit."""
    return version >= head.kept_from or version in read_holds(location, head).values()


def read_version(location: Location, version: int | str | None = None) -> Commit:
    """Returns the commit that made a version.

    Args:
        location: Where the dataset is.
        version: A number, also as text; the name of a hold; None: the last.

    Raises:
        CallError: It is neither a number nor text.
        NotFoundError: Nothing was ever committed, or there is no such version or hold.
    """
    if version is not None and not isinstance(version, str):
        return _numbered(location, as_int("version", version, 1))
    if version is not None and version.isdecimal():
        return _numbered(location, int(version))
    head = require_dataset(location, read_head(location))
    number = head.version if version is None else _held(location, head, version)
    return head if number == head.number else _numbered(location, number)


def require_dataset(location: Location, head: Commit | None) -> Commit:
    """Returns the last commit of a location.

    Raises:
        NotFoundError: It is None: nothing was ever committed there.
    """
    if head is None:
        raise NotFoundError(
            f"no dataset with prefix {location.prefix!r} under {location.url}: "
            "check the URL and the prefix, or build one with `dray build`"
        )
    return head


def _numbered(location: Location, version: int) -> Commit:
    try:
        commit = read_commit(location, version)
    except NotFoundError as exc:
        head = read_head(location)
        raise NotFoundError(
            f"no version {version} of prefix {location.prefix!r} under {location.url}; the last one there is "
            f"{head.version if head else 'none'}: check the URL, the prefix and the version"
        ) from exc
    if not commit.makes_version:
        raise NotFoundError(
            f"number {version} of {location.prefix!r} under {location.url} is a {commit.operation}, which makes no "
            f"version: the last one then was {commit.version}"
        )
    return commit


def _held(location: Location, head: Commit, name: str) -> int:
    holds = read_holds(location, head)
    if name not in holds:
        names = ", ".join(sorted(holds)) or "none"
        raise NotFoundError(
            f"no hold {name!r} of prefix {location.prefix!r} under {location.url}; there are: {names}. "
            "A version is a number or the name of a hold: dray log shows them"
        )
    return holds[name]
