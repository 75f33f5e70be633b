"""The steps around the commit of a version: retries, checks before it, and deletion of old objects after it."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from dray.pipelines.progress import say
from dray.pipelines.versions.gc import sweep
from dray.pipelines.versions.retention import Retention
from dray.shards.errors import CallError, ConflictError, DamagedError, StoreError
from dray.shards.layout import Location, indexed_number
from dray.shards.log import Commit, read_head
from dray.shards.manifest import Kind, Shard
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot

ATTEMPTS = 8  # maximum number of attempts to commit while others commit as well
Report = TypeVar("Report", covariant=True)


class Attempt(Protocol[Report]):
    """An attempt to make a version."""

    def __call__(self, head: Commit | None, *, is_first: bool) -> Report | None:
        """Returns a report, or None if another writer committed after `head`."""
        ...


def until_committed(location: Location, attempt: Attempt[Report], *, progress: bool) -> Report:
    """Returns the report of the first attempt that no other writer overtakes; each starts from the last commit.

    Raises:
        ConflictError: Other writers were faster `ATTEMPTS` times.
    """
    for number in range(ATTEMPTS):
        head = read_head(location)
        try:
            report = attempt(head, is_first=number == 0)
        except (StoreError, DamagedError):
            if read_head(location) == head:
                raise
            report = None  # a gc without a grace may have deleted what it read or stored
        if report is not None:
            return report
        say("another writer committed meanwhile: planning again from there", show=progress)
    raise ConflictError(
        f"{location.url}: other writers of {location.prefix!r} were faster {ATTEMPTS} times in a row; "
        "nothing was lost: run it again"
    )


def check_is_build(base: Snapshot) -> None:
    """Check that each sample of a version was packed from one source, which builds rely on.

    Raises:
        CallError: It was not.
    """
    check_has_own_tars(base)
    if base.manifest.kind != Kind.BUILD or base.manifest.samples is not None:
        function = base.manifest.recipe.get("function")
        again = (
            f"the function {function!r} made its samples, so give transform=... and transform_version=..., which "
            "`build_dataset` and `dray build` take, or "
        )
        raise CallError(
            f"{base.name} is a dataset of kind {base.manifest.kind!r}; builds work only on one that `dray build` made "
            f"of one source a sample: {again if function else ''}choose another prefix or directory"
        )


def check_has_own_tars(base: Snapshot) -> None:
    """Check that dray wrote the tars of a version, before it is replaced by one with other tars.

    Raises:
        CallError: It indexes tars of other programs.
    """
    if base.tars.is_foreign:
        raise CallError(
            f"{base.name} indexes tars that dray did not write, and dray neither changes, merges nor replaces them: "
            f"choose another directory or prefix; `dray reshard {base.store.url} OUT_URL` copies the samples into "
            "shards of another size"
        )


def stored_sizes(location: Location) -> dict[str, int]:
    """Returns name -> size in bytes of the objects in the dataset's directory."""
    return {info.name: info.size for info in location.store.list_folder()}


def stored_indexes(location: Location) -> set[int]:
    """Returns the numbers of the indexes that are stored."""
    numbers = (indexed_number(info.name) for info in location.store.list_folder(location.layout.indexes))
    return {number for number in numbers if number is not None}


def whole_shards(base: Snapshot, stored: Mapping[str, int]) -> list[Shard]:
    """Returns the shards of a version that are stored with their size and an index.

    Args:
        base: The version.
        stored: See `stored_sizes`.
    """
    indexed = stored_indexes(base.location)
    return [
        shard
        for shard in base.shards
        if stored.get(base.layout.shard(shard.number)) == shard.num_bytes and shard.number in indexed
    ]


def check_stored(location: Location, expected: Mapping[int, int]) -> None:
    """Check that the shards of the tasks' records are stored, and make them durable.

    Args:
        location: Where the dataset is.
        expected: Shard number -> size of its tar.

    Raises:
        StoreError: A shard is missing: its task wrote to another place.
    """
    stored = stored_sizes(location) if expected else {}
    for number, num_bytes in expected.items():
        name = location.layout.shard(number)
        if stored.get(name) == num_bytes:
            continue
        found = location.store.head(name)  # a network mount may list from a stale cache
        if found is None or found.size != num_bytes:
            raise StoreError(
                f"{location.store.url_of(name)} was stored with {num_bytes} bytes, but here is "
                f"{f'one of {found.size}' if found else 'nothing'}: do the workers write to another place? "
                "A local directory must be on a disk that all nodes share"
            )
    for number in list(expected)[:1]:  # all shards share their folders
        location.store.sync([location.layout.shard(number), location.layout.index(number)])


def finish(made: Snapshot, base: Snapshot | None, retention: Retention | None, *, progress: bool) -> None:
    """Say what the new version supersedes, and delete what its commit released.

    The version stands: a deletion that fails is only said.
    """
    if base is None:
        return
    numbers = {shard.number for shard in made.shards}
    superseded = [shard for shard in base.shards if shard.number not in numbers]
    if superseded and made.manifest.kind != Kind.INDEXED:  # its shards are tars that dray neither writes nor deletes
        of = f"of version {base.version}"
        say(
            f"{counted(len(superseded), f'shard {of} stays', f'shards {of} stay')} for its readers; programs that glob "
            f"{made.layout.prefix}-*.tar see {'it' if len(superseded) == 1 else 'them'} beside the new ones (dray's "
            "readers, and `dray ls --urls`, do not)",
            show=progress,
        )
    before, after = base.commit, made.commit
    if retention is None or (before.kept_from, before.open_intent) == (after.kept_from, after.open_intent):
        return
    try:
        deleted = sweep(made.location, after, retention.grace_s)
    except (StoreError, DamagedError) as exc:
        say(f"version {made.version} stands, but old objects were not deleted: {exc}; dray gc tries again")
        return
    if deleted:
        what = f"versions before {after.kept_from} and of builds that never ended"
        say(f"{counted(len(deleted), f'object of {what} was', f'objects of {what} were')} deleted", show=progress)
