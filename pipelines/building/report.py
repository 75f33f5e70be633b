"""The report of a build."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.inputs.scan import Unscanned
from dray.pipelines.planning.changes import Changes
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did."""

    url: str
    prefix: str
    version: int  # number of the last version
    is_new: bool  # whether this build made it
    num_shards: int
    num_samples: int
    num_bytes: int  # bytes of the version's tars
    num_added: int  # samples whose key the previous version did not have
    num_changed: int  # samples with a file whose content differs from the previous version's
    num_removed: int  # samples of the previous version whose key this one does not have
    num_reused: int  # shards that were already stored, complete
    num_skipped: int  # inputs that the version leaves out
    num_quarantined: int
    num_empty: int  # inputs for which func_output_data returned None
    left_out_url: str | None  # URL of the Parquet table of these three; None if there are none
    num_pickles: int  # parts of the version that stayed pickles although encode="auto" tried them
    pickle_reason: str | None  # the most frequent reason among those that this build packed; None if it packed none
    unscanned: Unscanned | None  # what the scan of the input folder left out; None if the samples were listed
    seconds: float
    renamed: Mapping[str, str] = field(default_factory=dict)  # field -> suffix, where a sample's field got another one

    def __str__(self) -> str:
        packed = self.num_shards - self.num_reused
        done = "nothing to do"
        if self.is_new:
            changes = Changes(num_added=self.num_added, num_changed=self.num_changed, num_removed=self.num_removed)
            done = f"{changes}; {packed:,} packed, {self.num_reused:,} reused"
        unscanned = f"; not scanned: {self.unscanned}" if self.unscanned else ""
        left_out = ""
        if self.left_out_url:
            empty = f", {self.num_empty:,} empty" if self.num_empty else ""
            left_out = (
                f"; {self.num_skipped:,} skipped, {self.num_quarantined:,} quarantined{empty}: "
                f"dray ls {self.url} --left-out"
            )
        pickles = ""
        if self.num_pickles:
            stayed = "1 part stayed a pickle" if self.num_pickles == 1 else f"{self.num_pickles:,} parts stayed pickles"
            pickles = f"; {stayed}" + (f", most often because {self.pickle_reason}" if self.pickle_reason else "")
        renamed = ", ".join(f"{field} as {suffix}" for field, suffix in sorted(self.renamed.items()))
        stored = f"; stored: {renamed}" if renamed else ""
        return (
            f"{self.url} {self.prefix} version {self.version}: {counted(self.num_samples, 'sample')} in "
            f"{counted(self.num_shards, 'shard')}, {self.num_bytes / 1e6:,.1f} MB; {done}; {self.seconds:.1f} s"
            f"{left_out}{pickles}{unscanned}{stored}"
        )


def report_of(
    snapshot: Snapshot,
    changes: Changes | None,
    *,
    num_stored: int = 0,
    stayed: Counter[str] | None = None,
    unscanned: Unscanned | None = None,
    renamed: Mapping[str, str] | None = None,
    seconds: float,
) -> BuildReport:
    """Returns the report of a build.

    Args:
        snapshot: The last version.
        changes: How it differs from the previous one; None if this build did not make it.
        num_stored: Number of shards that the build stored, without those that it adopted.
        stayed: Reason -> number of parts that stayed pickles although encode="auto" tried them.
        unscanned: What the scan of the inputs left out.
        renamed: See `BuildReport`.
        seconds: Duration of the build.
    """
    made = changes or Changes()
    reasons = stayed or Counter[str]()
    return BuildReport(
        url=snapshot.store.url,
        prefix=snapshot.layout.prefix,
        version=snapshot.version,
        is_new=changes is not None,
        num_shards=len(snapshot.shards),
        num_samples=snapshot.num_samples,
        num_bytes=snapshot.num_bytes,
        num_added=made.num_added,
        num_changed=made.num_changed,
        num_removed=made.num_removed,
        num_reused=len(snapshot.shards) - num_stored,
        num_skipped=snapshot.manifest.accounting.skipped,
        num_quarantined=snapshot.manifest.accounting.quarantined,
        num_empty=snapshot.manifest.accounting.empty,
        left_out_url=snapshot.left_out_url(),
        num_pickles=_num_pickles(snapshot),
        pickle_reason=max(sorted(reasons), key=reasons.__getitem__, default=None),
        unscanned=unscanned,
        seconds=seconds,
        renamed=renamed or {},
    )


def _num_pickles(snapshot: Snapshot) -> int:
    """Returns the number of parts that "auto" could not encode."""
    encoder = Encoder.from_json(snapshot.manifest.recipe)
    if encoder is None:
        return 0
    counts = (item for part in snapshot.manifest.parts for item in part.forms.items())
    return sum(count for suffix, count in counts if encoder.may_stay(suffix))
