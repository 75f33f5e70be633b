"""Which tars are scanned, which keep their index, and which are gone. Pure."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dray.pipelines.indexing.listing import Tar
from dray.pipelines.planning.changes import Guard
from dray.pipelines.planning.plan import Slot
from dray.shards.layout import some
from dray.shards.manifest import Manifest, Shard
from dray.shards.messages import counted

LEFT_OUT = "left_out"  # field of the recipe: name -> digest of a tar that the version leaves out, and why


class KeyScope(StrEnum):
    """Where keys are unique: in the dataset, or in each tar."""

    UNIQUE = "unique"
    PER_TAR = "per-tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class TarPlan:
    """What is to be done with the tars of a folder.

    Attributes:
        tars: The tars that the next version may hold, in its order.
        digests: Digest of each.
        numbers: Number of each one's index if it stays; None if the tar is scanned.
        left_out: Name -> entry of each tar that the last version left out for a reason that still holds.
        changed: Shards of the last version whose tars are others now, or whose index is missing.
        removed: Shards of the last version whose tars are gone.
    """

    tars: Sequence[Tar]
    digests: Sequence[str]
    numbers: Sequence[int | None]
    left_out: Mapping[str, Mapping[str, str]]
    changed: Sequence[Shard]
    removed: Sequence[Shard]

    @property
    def slots(self) -> list[Slot]:
        """Digest and number of each shard."""
        return list(zip(self.digests, self.numbers, strict=True))

    def has_work(self, last: Manifest) -> bool:
        """Whether the next version would differ from the last."""
        kept = [shard.number for shard in last.shards]
        return list(self.numbers) != kept or self.left_out != left_out_of(last.recipe)


def plan_tars(tars: Sequence[Tar], keys: str, last: Manifest | None, indexes: Set[int], *, tries_bad: bool) -> TarPlan:
    """Returns what to do with tars.

    Args:
        tars: The tars as they are now, in order.
        keys: How keys are made of names.
        last: The last version's manifest; None if there is none.
        indexes: Numbers of the indexes that are stored.
        tries_bad: Whether unchanged tars that could not be indexed are scanned again.
    """
    shards = last.shards if last else ()
    by_digest = {shard.digest: shard.number for shard in shards if shard.number in indexes}
    entries = left_out_of(last.recipe) if last else {}
    digests = {tar.name: tar.digest(keys) for tar in tars}
    left_out = {
        name: entry
        for name, entry in entries.items()
        if entry["digest"] == digests.get(name) and not (tries_bad and entry["why"])
    }
    used = [tar for tar in tars if tar.name not in left_out]
    by_name = {shard.name: shard for shard in shards}
    changed = [by_name[tar.name] for tar in used if tar.name in by_name and digests[tar.name] not in by_digest]
    return TarPlan(
        tars=used,
        digests=[digests[tar.name] for tar in used],
        numbers=[by_digest.get(digests[tar.name]) for tar in used],
        left_out=left_out,
        changed=changed,
        removed=[shard for shard in shards if shard.name not in digests],
    )


def refusal(plan: TarPlan, last: Manifest | None, guard: Guard, base: tuple[str, str]) -> str:
    """Returns why an index is refused; empty if it is not.

    Args:
        plan: What it would do.
        last: The last version's manifest.
        guard: The changes that it may make.
        base: URLs of the tars: of the last version, and now.
    """
    if last is None:
        return ""
    if base[0] != base[1] and not guard.allow_changed_source:
        return (
            f"the last version indexes the tars of {base[0]}, and this one would index those of {base[1]}: choose "
            "another prefix=, or give allow_changed_source=True if these are the same tars in another place"
        )
    num_removed = sum(shard.num_samples for shard in plan.removed)
    if num_removed <= guard.most_removed(last.num_samples):
        return ""
    tars = counted(len(plan.removed), "tar of the last version is", "tars of the last version are")
    return (
        f"{tars} not among the {counted(len(plan.tars), 'tar')} that were found "
        f"({some([str(shard.name) for shard in plan.removed], 3)}), and {num_removed:,} of {last.num_samples:,} "
        "samples would go: check the URL and the pattern; if that is what you want, give allow_removal='100%'"
    )


def left_out_of(recipe: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the tars that a version leaves out; other programs may have written its recipe."""
    found = recipe.get(LEFT_OUT)
    entries = found.items() if isinstance(found, dict) else ()
    return {
        name: entry
        for name, entry in entries
        if isinstance(entry, dict) and all(isinstance(entry.get(field), str) for field in ("digest", "why"))
    }


def patterns_of(recipe: Mapping[str, Any]) -> list[str] | None:
    """Returns the names by which the tars of a version were chosen; None: all tars of the folder."""
    found = recipe.get("patterns")
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None


def keys_of(recipe: Mapping[str, Any]) -> KeyScope:
    """Returns how the keys of a version were made of names."""
    return KeyScope.PER_TAR if recipe.get("keys") == KeyScope.PER_TAR else KeyScope.UNIQUE
