"""Announcing a plan: the log of intents gives every builder its shard numbers before it writes a shard.

Ranges of numbers ascend with the log, so a range that starts after the last intent's starts after all of them.
"""

from dray.pipelines.plan import Plan, number_shards
from dray.pipelines.progress import say
from dray.shards.layout import Layout
from dray.shards.log import Intent, create_intent, new_write_id, now, numbers_in, read_intent
from dray.shards.snapshot import Snapshot
from dray.shards.store import Store


def announce(output: Store, layout: Layout, planned: Plan, last: Snapshot | None, *, progress: bool = True) -> Intent:
    """The intent that a plan works under: an earlier one of the same plan and base, or a new one at the log's end.

    Shards of the last snapshot, and whole ones of uncommitted intents, are adopted where their digest is the plan's.
    A new range starts after every range and every tar that lies there.

    Args:
        output: The dataset's directory.
        layout: The names in it.
        planned: What is to be built.
        last: The snapshot that the plan starts from.
        progress: Whether to say what is kept.
    """
    base = last.version if last else 0
    log = [read_intent(output, layout, number) for number in _open_numbers(output, layout, last)]
    if not log:
        _say_what_is_kept(output, layout, show=progress)
    while True:
        for intent in log:
            if intent.base == base and intent.plan == planned.digest:
                return intent
        wanted = _next_intent(output, layout, planned, last, log)
        log.append(create_intent(output, layout, wanted))


def _open_numbers(output: Store, layout: Layout, last: Snapshot | None) -> list[int]:
    """The intents that may hold shards to adopt: those after the last commit's, and that one for its range."""
    numbers = numbers_in(output, layout.intents)
    return [number for number in numbers if last is None or number >= last.manifest.intent]


def _next_intent(output: Store, layout: Layout, planned: Plan, last: Snapshot | None, log: list[Intent]) -> Intent:
    stored = _stored_numbers(output, layout)
    known = {
        digest: number
        for intent in log
        for digest, number in zip(intent.digests, intent.shards, strict=True)
        if number in stored
    }
    known |= {shard.digest: shard.number for shard in last.shards} if last else {}
    first = max([*stored, *(intent.first + intent.count - 1 for intent in log), -1]) + 1
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


def _stored_numbers(output: Store, layout: Layout) -> set[int]:
    found = (layout.shard_number(info.name) for info in output.list_folder())
    return {number for number in found if number is not None}


def _say_what_is_kept(output: Store, layout: Layout, *, show: bool) -> None:
    if foreign := _stored_numbers(output, layout):
        say(
            f"{len(foreign)} tars that dray did not write lie under {output.url_of(layout.prefix)}-*: they are kept, "
            f"new shards start at {max(foreign) + 1:06d}, and readers that glob see both; dray's readers see the new",
            show=show,
        )
