"""The report of an index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dray.pipelines.indexing.changes import left_out_of
from dray.pipelines.indexing.notes import Notes
from dray.pipelines.indexing.version import Contents
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot

MOST_LINES = 20  # tars that the report names as left out


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What an index did.

    Attributes:
        url: Where the dataset's records are.
        prefix: Its prefix.
        tars_url: Where its tars are.
        version: Number of the last version.
        is_new: Whether this index made it.
        num_tars: Tars of the version.
        num_samples: Samples of the version.
        num_bytes: Bytes of its tars.
        num_added: Tars that the previous version did not have.
        num_changed: Tars whose contents differ from the previous version's.
        num_touched: Tars with another time or ETag and the same contents.
        num_removed: Tars of the previous version that are gone.
        num_scanned: Tars that were read.
        num_adopted: Tars whose index an earlier run had stored that did not end.
        left_out: Name -> why, of each tar that the version leaves out.
        own: Names of tars that were left out because dray wrote them for another dataset.
        oddities: Oddity -> number of members of the tars that were read, see `notes.Oddity`.
        examples: Oddity -> the first ones, each after the name of its tar.
        oddities_text: The oddities in words; empty if there are none.
        seconds: How long it took.
    """

    url: str
    prefix: str
    tars_url: str
    version: int
    is_new: bool
    num_tars: int
    num_samples: int
    num_bytes: int
    num_added: int = 0
    num_changed: int = 0
    num_touched: int = 0
    num_removed: int = 0
    num_scanned: int = 0
    num_adopted: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    oddities: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, list[str]] = field(default_factory=dict)
    oddities_text: str = ""
    seconds: float

    def __str__(self) -> str:
        done = "nothing to do"
        if self.is_new:
            done = (
                f"tars: {self.num_added:,} added, {self.num_changed:,} changed, {self.num_touched:,} touched, "
                f"{self.num_removed:,} removed; {self.num_scanned:,} scanned"
            )
            done += f", {self.num_adopted:,} adopted from a run that did not end" if self.num_adopted else ""
        where = "" if self.tars_url == self.url else f" of {self.tars_url}"
        lines = [
            f"{self.url} {self.prefix} version {self.version}: {counted(self.num_samples, 'sample')} in "
            f"{counted(self.num_tars, 'tar')}{where}, {self.num_bytes / 1e6:,.1f} MB; {done}; {self.seconds:.1f} s"
        ]
        if self.oddities_text:
            lines.append(f"in the tars that were read: {self.oddities_text}")
        lines += [f"left out: {name}: {why}" for name, why in list(self.left_out.items())[:MOST_LINES]]
        if (more := len(self.left_out) - MOST_LINES) > 0:
            lines.append(f"left out: {more:,} more")
        if self.own:
            lines.append(
                f"left out: {counted(len(self.own), 'tar')} of other datasets that dray wrote, {self.own[0]!r} first"
            )
        return "\n  ".join(lines)


def report_of(
    snapshot: Snapshot, contents: Contents | None, last: Snapshot | None, *, own: Sequence[str], seconds: float
) -> IndexReport:
    """Returns the report of an index.

    Args:
        snapshot: The last version.
        contents: What it was made of; None if this index did not make it.
        last: The version before.
        own: Names of tars of other datasets that dray wrote.
        seconds: How long it took.
    """
    before = {shard.name: shard.index_digest for shard in last.shards} if last else {}
    now = {shard.name for shard in snapshot.shards}
    scanned = contents.scanned if contents else ()
    held = [one for one in scanned if one.tar.name in now]
    notes = Notes()
    for one in scanned:
        notes.include(one.notes.in_tar(one.tar.name))
    old = [before[one.tar.name] == one.index_digest for one in held if one.tar.name in before]
    return IndexReport(
        url=snapshot.store.url,
        prefix=snapshot.layout.prefix,
        tars_url=snapshot.tars.url,
        version=snapshot.version,
        is_new=contents is not None,
        num_tars=len(snapshot.shards),
        num_samples=snapshot.num_samples,
        num_bytes=snapshot.num_bytes,
        num_added=len(held) - len(old),
        num_changed=len(old) - sum(old),
        num_touched=sum(old),
        num_removed=len(before.keys() - now) if contents else 0,
        num_scanned=sum(not one.adopted for one in scanned),
        num_adopted=sum(one.adopted for one in scanned),
        left_out={name: entry["why"] or "no sample" for name, entry in left_out_of(snapshot.manifest.recipe).items()},
        own=tuple(own),
        oddities=dict(notes.counts),
        examples=notes.examples,
        oddities_text=str(notes),
        seconds=seconds,
    )
