"""Announcing a plan: the log of intents gives every builder its shard numbers before it writes a shard.

Ranges of numbers ascend with the log, so a range that starts after the last intent's starts after all of them.
"""

from collections.abc import Iterable

from dray.pipelines.building.job import PackJob
from dray.pipelines.planning.plan import Plan, number_shards
from dray.pipelines.progress import say
from dray.shards.log import Intent, create_intent, new_write_id, now, numbers_in, read_intent
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot

LOOK_BACK = 16  # intents read from before the last commit's


def announce(
    job: PackJob, planned: Plan, last: Snapshot | None, stored: Iterable[str], *, progress: bool = True
) -> Intent:
    """The intent that a plan works under: an earlier one of the same plan and base, or a new one at the log's end.

    Whole shards of recent intents are adopted where their digest is the plan's.
    A new range starts after every earlier range and every stored tar.

    Args:
        job: Where the dataset lies.
        planned: What is to be built.
        last: The snapshot that the plan starts from.
        stored: The names of what lies in the dataset's directory.
        progress: Whether to say what is kept.
    """
    tars = {number for name in stored if (number := job.location.layout.shard_number(name)) is not None}
    numbers = numbers_in(job.location.store, job.location.layout.intents)
    if not numbers:
        _say_what_is_kept(job, tars, show=progress)
    log = [read_intent(job.location, number) for number in _recent(numbers, last)]
    while True:
        for intent in log:
            if _is_ours(intent, planned, last):
                return intent
        log.append(create_intent(job.location, _next_intent(planned, last, tars, log)))


def _recent(numbers: list[int], last: Snapshot | None) -> list[int]:
    """The intents that may hold shards to adopt: since the last commit's, and some before that may have failed."""
    if last is None:
        return numbers
    first = max(last.commit.open_intent, last.manifest.intent - LOOK_BACK)
    return [number for number in numbers if number >= first] or numbers[-1:]


def _is_ours(intent: Intent, planned: Plan, last: Snapshot | None) -> bool:
    """Whether an intent is of the same plan, and no gc gave up what it counts on."""
    base = last.version if last else 0
    if (intent.base, intent.plan) != (base, planned.digest):
        return False
    reused = {shard.number for shard in planned.shards if shard.number is not None}
    return last is None or (
        intent.number >= last.commit.open_intent
        and all(number >= last.commit.open_shard or number in reused for number in intent.shards)
    )


def _next_intent(planned: Plan, last: Snapshot | None, stored: set[int], log: list[Intent]) -> Intent:
    adoptable = stored - {shard.number for shard in (last.shards if last else ())}  # those stay, or are damaged
    open_shard = last.commit.open_shard if last else 0  # a gc may have given up those before
    known = {
        digest: number
        for intent in log
        for digest, number in zip(intent.digests, intent.shards, strict=True)
        if number in adoptable and number >= open_shard
    }
    first = max([*stored, *(intent.numbers.stop - 1 for intent in log), -1]) + 1
    numbering = number_shards(planned, known, first)
    return Intent(
        number=log[-1].number + 1 if log else 1,
        plan=planned.digest,
        base=last.version if last else 0,
        first=first,
        count=numbering.count,
        shards=numbering.numbers,
        digests=tuple(shard.digest for shard in planned.shards),
        write_id=new_write_id(),
        created=now(),
    )


def _say_what_is_kept(job: PackJob, foreign: set[int], *, show: bool) -> None:
    if foreign:
        say(
            f"{counted(len(foreign), 'tar')} that dray did not write under {job.location.url}/{job.location.prefix}-*: "
            f"kept; new shards start at {max(foreign) + 1:06d}, and readers that glob see both; dray's see the new",
            show=show,
        )
