"""Announcing a plan: the log of intents gives every builder its shard numbers before it writes a shard.

Ranges of numbers ascend with the log, so a range that starts after the last intent's starts after all of them.
"""

from collections.abc import Iterable, Sequence

from dray.pipelines.planning.plan import Slot, number_shards, plan_digest
from dray.pipelines.progress import say
from dray.shards.layout import Location
from dray.shards.log import Intent, create_intent, new_write_id, now, numbers_in, read_intent
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot

LOOK_BACK = 16  # number of intents to read from before the last commit's


def announce(
    location: Location, slots: Sequence[Slot], last: Snapshot | None, stored: Iterable[str], *, progress: bool = True
) -> Intent:
    """Returns the intent of a plan: an earlier one of the same plan and base, or a new one at the end of the log.

    Whole shards of recent intents are adopted if their digest is in the plan. A new range of numbers starts after every
    earlier range and every stored tar.

    Args:
        location: Where the dataset is.
        slots: The planned shards.
        last: The snapshot that the plan starts from.
        stored: Names of the objects in the dataset's directory.
        progress: Whether to say which foreign tars are kept.
    """
    tars = {number for name in stored if (number := location.layout.shard_number(name)) is not None}
    numbers = numbers_in(location.store, location.layout.intents)
    if not numbers:
        _say_what_is_kept(location, tars, show=progress)
    log = [read_intent(location, number) for number in _recent(numbers, last)]
    while True:
        for intent in log:
            if _is_ours(intent, slots, last):
                return intent
        log.append(create_intent(location, _next_intent(slots, last, tars, log)))


def _recent(numbers: list[int], last: Snapshot | None) -> list[int]:
    """Returns the intents that may have shards to adopt: those since the last commit's, and some before."""
    if last is None:
        return numbers
    first = max(last.commit.open_intent, last.manifest.intent - LOOK_BACK)
    return [number for number in numbers if number >= first] or numbers[-1:]


def _is_ours(intent: Intent, slots: Sequence[Slot], last: Snapshot | None) -> bool:
    """Whether an intent is of the same plan, and no gc has released its numbers."""
    base = last.version if last else 0
    if (intent.base, intent.plan) != (base, plan_digest(slots)):
        return False
    reused = {number for _, number in slots if number is not None}
    return last is None or (
        intent.number >= last.commit.open_intent
        and all(number >= last.commit.open_shard or number in reused for number in intent.shards)
    )


def _next_intent(slots: Sequence[Slot], last: Snapshot | None, stored: set[int], log: list[Intent]) -> Intent:
    adoptable = stored - {shard.number for shard in (last.shards if last else ())}  # those stay, or are damaged
    open_shard = last.commit.open_shard if last else 0  # a gc may have released those before
    known = {
        digest: number
        for intent in log
        for digest, number in zip(intent.digests, intent.shards, strict=True)
        if number in adoptable and number >= open_shard
    }
    first = max([*stored, *(intent.numbers.stop - 1 for intent in log), -1]) + 1
    numbering = number_shards(slots, known, first)
    return Intent(
        number=log[-1].number + 1 if log else 1,
        plan=plan_digest(slots),
        base=last.version if last else 0,
        first=first,
        count=numbering.count,
        shards=numbering.numbers,
        digests=tuple(digest for digest, _ in slots),
        write_id=new_write_id(),
        created=now(),
    )


def _say_what_is_kept(location: Location, foreign: set[int], *, show: bool) -> None:
    if foreign:
        say(
            f"{counted(len(foreign), 'tar')} that dray did not write under {location.url}/{location.prefix}-*: "
            f"kept; new shards start at {max(foreign) + 1:06d}, and readers that glob see both; dray's see the new",
            show=show,
        )
