"""How the samples of a version differ from those of the last, and which changes a build refuses by default.

A scan of the wrong folder looks like a build that removes nearly every sample. So if the samples come from a scan, a
build that would remove many, or that reads another folder or other suffixes than before, needs an option that allows
it.
"""

import re
from dataclasses import dataclass

from dray.shards.errors import CallError

MOST_REMOVED = 0.1  # share of the last version's samples that a build may remove by default
MOST_REMOVED_OF_FEW = 0.5  # the share if the last version has fewer than FEW samples
FEW = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Number of samples by how they differ from the last version's.

    Attributes:
        num_last: Samples of the last version; 0 if there is none.
        num_added: Samples whose key the last version does not have.
        num_changed: Samples whose key both versions have, and whose files differ.
        num_removed: Samples of the last version whose key this one does not have.
    """

    num_last: int = 0
    num_added: int = 0
    num_changed: int = 0
    num_removed: int = 0

    def __str__(self) -> str:
        return f"{self.num_added:,} added, {self.num_changed:,} changed, {self.num_removed:,} removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The changes that a build of scanned samples may make.

    Attributes:
        allow_removal: Maximum number of samples to remove, or a percentage of the last version's such as "25%";
            None: 10 %, or 50 % of fewer than 20.
        allow_changed_source: Whether the input folder and the suffixes may differ from the last version's.

    Raises:
        CallError: `allow_removal` is neither a number nor a percentage.
    """

    allow_removal: str | None = None
    allow_changed_source: bool = False

    def __post_init__(self) -> None:
        if self.allow_removal is None:
            return
        found = re.fullmatch(r"(\d+(?:\.\d+)?)%|\d+", self.allow_removal)
        if not found or float(found[1] or 0) > 100:
            raise CallError(
                f"allow_removal={self.allow_removal!r}: expected per cent of the last version's samples such as 25%, "
                "up to 100%, or a number of samples"
            )

    def most_removed(self, num_last: int) -> float:
        """Returns the maximum number of samples that may be removed from a version of `num_last`."""
        if self.allow_removal is None:
            return num_last * (MOST_REMOVED_OF_FEW if num_last < FEW else MOST_REMOVED)
        text = self.allow_removal
        return num_last * float(text[:-1]) / 100 if text.endswith("%") else int(text)

    def refuses_removal(self, changes: Changes) -> str:
        """Returns why a build with these changes is refused; empty if it is not."""
        most = self.most_removed(changes.num_last)
        if changes.num_removed <= most:
            return ""
        share = 100 * changes.num_removed / changes.num_last
        return (
            f"it would remove {changes.num_removed:,} of the {changes.num_last:,} samples of the last version "
            f"({share:.1f}%; {int(most):,} may go unasked), add {changes.num_added:,} and change "
            f"{changes.num_changed:,}: if that is what you want, give allow_removal='100%'"
        )

    def refuses_source(self, then: tuple[str, frozenset[str]], now: tuple[str, frozenset[str]]) -> str:
        """Returns why a build from another source is refused; empty if it is not.

        Args:
            then: Input folder and suffixes of the last version.
            now: Input folder and suffixes of the build.
        """
        if self.allow_changed_source or then == now:
            return ""
        changed = [f"the input folder was {then[0]}, is {now[0]}"] if then[0] != now[0] else []
        if then[1] != now[1]:
            changed.append(f"the suffixes were {', '.join(sorted(then[1]))}, are {', '.join(sorted(now[1]))}")
        return f"{'; '.join(changed)}: if that is what you want, give allow_changed_source=True"
