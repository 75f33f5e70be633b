"""The rule by which a dataset keeps versions and intents."""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

from dray.shards.arguments import as_int, as_seconds
from dray.shards.layout import Location
from dray.shards.log import Commit, Intent, check_log, numbers_in, read_commit, read_intent, unix_time

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Keeps the last `keep` versions, those superseded less than the grace ago, and those that are held.

    An intent stays open, so that a build can still commit it, while it or a shard of it is younger than the grace.

    Attributes:
        keep: Number of versions to keep, at least 1.
        grace_s: Seconds for which a superseded version or an idle intent is kept.

    Raises:
        CallError: `keep` or `grace_s` is too small.
    """

    keep: int = 2
    grace_s: float = DAY_S

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", as_int("keep", self.keep, 1))
        object.__setattr__(self, "grace_s", as_seconds("grace_s", self.grace_s))

    def first_kept(self, versions: Sequence[tuple[int, float]], now: float) -> int:
        """Returns the first version to keep.

        Args:
            versions: (number, when it was made) of those kept so far, ascending; the last one is not superseded.
            now: Unix time.
        """
        num_droppable = max(0, len(versions) - self.keep)
        for (number, _), (_, superseded) in islice(pairwise(versions), num_droppable):
            if now - superseded < self.grace_s:
                return number
        return versions[num_droppable][0]

    def first_open(self, intents: Sequence[tuple[Intent, float]], now: float) -> tuple[int, int]:
        """Returns the first intent to keep open, and its first shard number.

        Args:
            intents: (intent, its last sign of life) of those open so far, ascending; at least one.
            now: Unix time.
        """
        for intent, alive in intents:
            if now - alive < self.grace_s:
                return intent.number, intent.first
        last = intents[-1][0]
        return last.number + 1, last.numbers.stop


def retain(location: Location, commit: Commit, retention: Retention) -> Commit:
    """Returns a commit with its floors (first kept version, open intent and shard) raised as far as the rule allows.

    Args:
        location: Where the dataset is.
        commit: The next commit, with the floors of the previous one.
        retention: The rule.
    """
    now = time.time()
    numbers = check_log(location, commit.kept_from, commit.number)
    records = [read_commit(location, number) for number in numbers]
    records += [commit] if commit.makes_version else []
    versions = [(record.version, unix_time(record.created)) for record in records if record.makes_version]
    open_numbers = [
        number for number in numbers_in(location.store, location.layout.intents) if number >= commit.open_intent
    ]
    intents = [read_intent(location, number) for number in open_numbers]
    kept = replace(commit, kept_from=retention.first_kept(versions, now)) if versions else commit
    if not intents:
        return kept
    open_intent, open_shard = retention.first_open(_with_signs_of_life(location, intents), now)
    return replace(kept, open_intent=open_intent, open_shard=open_shard)


def _with_signs_of_life(location: Location, intents: Sequence[Intent]) -> list[tuple[Intent, float]]:
    """Returns each intent with the time when it was announced, or its last shard was stored."""
    infos = (
        (location.layout.shard_number(info.name), info.modified.timestamp()) for info in location.store.list_folder()
    )
    stored = sorted((number, time_s) for number, time_s in infos if number is not None)

    def last_sign(intent: Intent) -> float:
        first, stop = (bisect_left(stored, (number,)) for number in (intent.first, intent.numbers.stop))
        return max([unix_time(intent.created), *(time_s for _, time_s in stored[first:stop])])

    return [(intent, last_sign(intent)) for intent in intents]
