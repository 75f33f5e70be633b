"""What writers stored and did not commit, and copies of samples as they are stored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dray.pipelines.planning.rewrites import Place, StoredRows
from dray.pipelines.versions.attempts import stored_indexes, stored_sizes
from dray.pipelines.writing.shard import WrittenShard, record_of
from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Location
from dray.shards.log import Commit, Intent, new_write_id, now, numbers_in, read_intent
from dray.shards.manifest import Accounting, Kind, Manifest, part_table
from dray.shards.parsing.records import canonical_json
from dray.shards.snapshot import Snapshot

READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredShard:
    """A shard that a writer stored and did not commit, with its index.

    Attributes:
        number: Its number.
        index: Its index, with the sources of its samples.
        index_digest: Digest of the index.
    """

    number: int
    index: ShardIndex
    index_digest: str

    def rows(self) -> StoredRows:
        """Returns its samples, for a plan."""
        prints = self.index.fingerprints
        assert prints is not None  # noqa: S101  `find_stored` takes no others
        return StoredRows(number=self.number, keys=self.index.keys, fingerprints=prints)

    def record(self) -> WrittenShard:
        """Returns the record of it as an adopted shard."""
        return record_of(self.number, self.index, self.index_digest, adopted=True)


def find_stored(
    location: Location, recipe: Mapping[str, Any], base: Snapshot | None
) -> list[tuple[int, list[StoredShard]]]:
    """Returns the first number and the stored shards of each open intent with a recipe, the oldest first.

    Shards of the last version, and those without a whole index, are left out.

    Args:
        location: Where the dataset is.
        recipe: What the writers announced; see `announce_writing`.
        base: The last version.
    """
    plan = digest_of(canonical_json(recipe))
    first_open, open_shard = (base.commit.open_intent, base.commit.open_shard) if base else (1, 0)
    numbers = [n for n in numbers_in(location.store, location.layout.intents) if n >= first_open]
    intents = [intent for n in numbers if (intent := read_intent(location, n)).plan == plan]
    if not intents:
        return []
    sizes = {location.layout.shard_number(name): size for name, size in stored_sizes(location).items()}
    known = {shard.number for shard in base.shards} if base else set()
    free = sorted(n for n in stored_indexes(location) if n in sizes and n >= open_shard and n not in known)
    return [found for intent in intents if (found := _stored_of(location, intent, free, sizes))[1]]


def _stored_of(
    location: Location, intent: Intent, numbers: Iterable[int], sizes: dict[int | None, int]
) -> tuple[int, list[StoredShard]]:
    def read(number: int) -> StoredShard | None:
        name = location.layout.index(number)
        try:
            body = location.store.get(name)
            index = ShardIndex.from_bytes(body, location.store.url_of(name))
        except (DamagedError, NotFoundError):  # whoever wants its samples makes them again
            return None
        is_fit = index.fingerprints is not None and index.shard_bytes == sizes[number]
        return StoredShard(number=number, index=index, index_digest=digest_of(body)) if is_fit else None

    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        found = threads.map(read, [number for number in numbers if number in intent.numbers])
        return intent.first, [shard for shard in found if shard is not None]


def view_of(location: Location, base: Snapshot | None, stored: Iterable[StoredShard], example: int | None) -> Snapshot:
    """Returns a snapshot for readers that holds the shards of the last version and stored ones; it is not committed.

    Args:
        location: Where they are.
        base: The last version.
        stored: The stored shards.
        example: Number of a shard whose parts give the order of the parts; None: any order.
    """
    stored = list(stored)
    of_base = [base.index(shard) for shard in base.shards if shard.number == example] if base else []
    examples = [*of_base, *(shard.index for shard in stored if shard.number == example)]
    recipe = {"suffixes": list(examples[0].suffixes)} if examples else {}
    records = [shard.record() for shard in stored]
    kept = base.manifest.counted_shards() if base else []
    shards = [*kept, *(record.shard() for record in records)]
    arrays = [base.manifest.arrays() if base else {}] * len(kept)
    parts, shown = part_table(recipe, shards, [*arrays, *(record.arrays for record in records)])
    manifest = Manifest(
        kind=Kind.WRITTEN,
        prefix=location.prefix,
        source_url="",
        recipe=recipe,
        intent=0,
        num_samples=sum(shard.num_samples for shard in shown),
        accounting=Accounting(inputs=0, packed=0),
        parts=parts,
        shards=shown,
    )
    return Snapshot(location, base.commit if base else _no_commit(manifest), manifest)


def _no_commit(manifest: Manifest) -> Commit:
    return Commit(
        number=0,
        operation="write",
        version=0,
        intent=0,
        manifest="",
        num_samples=manifest.num_samples,
        num_shards=len(manifest.shards),
        num_bytes=sum(shard.num_bytes for shard in manifest.shards),
        write_id=new_write_id(),
        created=now(),
    )


def read_copies(view: Snapshot, places: Sequence[Place]) -> Iterator[dict[str, bytes]]:
    """Yields the parts of samples as they are stored, in the order of the places; the next ones are read meanwhile.

    Raises:
        DamagedError: A part differs from its index; names shard, key and suffix.
    """
    shards = {shard.number: shard for shard in view.shards}
    index_of = lru_cache(maxsize=2)(lambda number: view.index(shards[number]))

    def read(place: Place) -> dict[str, bytes]:
        number, row = place
        index = index_of(number)
        parts = view.read_row(shards[number], index, row)
        starts = dict(zip(index.suffixes, index.offsets[row].tolist(), strict=True))
        return dict(sorted(parts.items(), key=lambda part: starts[part[0]]))

    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        for start in range(0, len(places), READS_AT_ONCE):
            yield from threads.map(read, places[start : start + READS_AT_ONCE])
