"""A version of the samples that a function makes of inputs: only new and changed inputs are given to the function."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from dray.pipelines.building.fill import bytes_in_tar
from dray.pipelines.building.report import BuildReport, report_of
from dray.pipelines.building.tables import LeftOut
from dray.pipelines.events import report_bad
from dray.pipelines.inputs.sources import EMPTY, BadInput
from dray.pipelines.inputs.tolerance import NAMED, named
from dray.pipelines.making.tasks import Carried, Made, MakeJob, MakeTask, make_shards, measure_inputs
from dray.pipelines.making.work import MakePlan, MakeSpec, plan_work
from dray.pipelines.planning.fills import Fill, Item, deal, num_tasks_for, numbers_of
from dray.pipelines.progress import sample_progress, say
from dray.pipelines.running.parcel import Witness
from dray.pipelines.running.processes import run_in_processes
from dray.pipelines.running.ray_session import IN_PROCESS
from dray.pipelines.running.tasks import fit_workers, run_tasks
from dray.pipelines.versions.attempts import stored_indexes
from dray.pipelines.writing.announce import announce_writing, open_written
from dray.pipelines.writing.shard import Sample
from dray.pipelines.writing.version import Contents, Writing
from dray.shards.index import digest_of
from dray.shards.parsing.records import canonical_json
from dray.shards.snapshot import Snapshot

SHARDS_PER_TASK = 1000  # shard numbers that are reserved for a task
MEASURED = 8  # maximum number of inputs that are measured


def write_inputs(spec: MakeSpec) -> BuildReport:
    """Make a version of the samples of just these inputs. Atomic; see `write_samples` for arguments and errors."""
    started = time.monotonic()
    recipe = spec.recipe()
    base = open_written(spec.location)
    plan = plan_work(spec, base, recipe)
    if base is not None and not plan.has_work:
        return report_of(base, None, seconds=time.monotonic() - started)
    if spec.transform_version is None:
        say("make_sample has no transform_version: nothing of an earlier run is reused", show=spec.progress)
    with fit_workers(IN_PROCESS if spec.num_workers else spec.address):
        return _write(spec, plan, base, recipe)


def _write(spec: MakeSpec, plan: MakePlan, base: Snapshot | None, recipe: Mapping[str, Any]) -> BuildReport:
    marks = spec.items.marks().tolist()
    stored = stored_indexes(spec.location)
    job = MakeJob(
        location=spec.location,
        base=plan.base,
        maker=spec.maker,
        size=spec.size,
        keep_pickles=spec.keep_pickles,
        leaves_out_bad=spec.tolerance.leaves_out,
    )
    measured: dict[int, list[Sample]] = {}

    def count() -> int:
        if spec.samples_per_shard is None and plan.base is None and len(plan.calls) > 1:
            measured.update(_measure(spec, job, plan, marks))
        return max(1, _num_tasks(spec, plan, measured)) * SHARDS_PER_TASK

    writing = announce_writing(
        spec.location,
        recipe,
        base,
        build_id=_build_id(spec, plan, base, recipe),
        count=count,
        retention=spec.retention,
        progress=spec.progress,
    )
    fills = [*plan.fills, *_deal(spec, plan, writing.intent.count // SHARDS_PER_TASK - len(plan.fills))]
    tasks = []
    for position, fill in enumerate(fills):
        numbers = numbers_of(writing.intent.first, writing.intent.numbers.stop, position, len(fills))
        task = _task(spec, fill, marks, measured)
        tasks.append(replace(task, numbers=numbers, looks=numbers.start in stored))
    made = _run(spec, job, tasks, writing)
    return _commit(spec, plan, writing, recipe, made)


def _build_id(spec: MakeSpec, plan: MakePlan, base: Snapshot | None, recipe: Mapping[str, Any]) -> str:
    """Returns the name of a run, equal for a rerun with the same inputs, also if their contents changed since."""
    keys = spec.items.keys
    named = [[fill.shard, *(keys[item.position] for item in fill.items)] for fill in plan.fills]
    known = {"recipe": recipe, "base": base.version if base else 0, "fills": named}
    return digest_of(canonical_json(known | {"new": [keys[position] for position in plan.calls]}))


def _measure(spec: MakeSpec, job: MakeJob, plan: MakePlan, marks: Sequence[int]) -> dict[int, list[Sample]]:
    """Returns the samples of the first inputs, by position; these are not made again."""
    task = _task(spec, Fill(tuple(map(Item, plan.calls[:MEASURED]))), marks, {})
    with closing(_results(spec, measure_inputs, job, [task], None)) as results:
        found: dict[int, list[Sample]] = next(results)
    return found


def _num_tasks(spec: MakeSpec, plan: MakePlan, measured: Mapping[int, list[Sample]]) -> int:
    new = len(plan.calls)
    if spec.samples_per_shard is not None:
        return len(plan.fills) + -(-new // spec.samples_per_shard)
    if not new:
        return len(plan.fills)
    if plan.base is not None:
        average = plan.base.num_bytes / max(1, plan.base.manifest.accounting.packed)
    else:
        samples = chain.from_iterable(measured.values())
        average = sum(bytes_in_tar(sample.key, sample.parts) for sample in samples) / max(1, len(measured))
    return len(plan.fills) + num_tasks_for(new, average, spec.size.num_bytes, is_default=spec.is_default_size)


def _deal(spec: MakeSpec, plan: MakePlan, num_tasks: int) -> list[Fill]:
    """Returns the tasks of new shards: each of as many inputs as a shard has samples, or of an even share."""
    new = len(plan.calls)
    if not new:
        return []
    if spec.samples_per_shard is not None:
        bounds = np.append(np.arange(0, new, spec.samples_per_shard), new)
    else:
        bounds = np.arange(num_tasks + 1) * new // num_tasks
    return deal(plan.calls, bounds.astype(np.int64))


def _task(spec: MakeSpec, fill: Fill, marks: Sequence[int], measured: Mapping[int, list[Sample]]) -> MakeTask:
    called = [item.position for item in fill.items if item.rows is None]
    return MakeTask(
        items=fill.items,
        values=Carried({position: spec.items.values[position] for position in called}),
        keys={item.position: spec.items.keys[item.position] for item in fill.items},
        marks={item.position: marks[item.position] for item in fill.items},
        shard=fill.shard,
        made={position: measured[position] for position in called if position in measured},
    )


def _results(
    spec: MakeSpec, function: Any, job: MakeJob, tasks: Sequence[MakeTask], witness: Witness | None
) -> Generator[Any, None, None]:
    if spec.num_workers:
        yield from run_in_processes(function, job, tasks, spec.num_workers)
    else:
        yield from run_tasks(function, job, tasks, spec.address, witness=witness, progress=spec.progress)


def _run(spec: MakeSpec, job: MakeJob, tasks: Sequence[MakeTask], writing: Writing) -> list[Made]:
    """Run the tasks; returns their results in order.

    Raises:
        InputError: More inputs are bad than are accepted. What is stored is kept for a rerun.
    """
    made: list[Made] = []
    bad: list[BadInput] = []
    num_inputs, most = len(spec.items.keys), spec.tolerance.most(len(spec.items.keys)) or NAMED
    witness = Witness(spec.location.store, spec.location.layout.intent(writing.intent.number))
    title = f"writing {spec.location.prefix}"
    total = sum(len(task.items) for task in tasks)
    with (
        closing(_results(spec, make_shards, job, tasks, witness)) as results,
        sample_progress(title, total=total, unit="inputs", show=spec.progress) as advance,
    ):
        for result in results:
            made.append(result)
            advance(result.num_inputs, sum(shard.num_bytes for shard in result.shards))
            found = [entry for entry in result.bad if not entry.is_empty]
            bad += found
            report_bad(found)
            if len(bad) > most:
                break
    spec.tolerance.check(bad, num_inputs, "the inputs")
    return sorted(made, key=lambda result: result.first)


def _commit(
    spec: MakeSpec, plan: MakePlan, writing: Writing, recipe: Mapping[str, Any], made: Sequence[Made]
) -> BuildReport:
    items, fates = spec.items, {True: EMPTY, False: spec.tolerance.fate}
    stamps = dict(zip(items.keys, items.marks().tolist(), strict=True))
    new = [entry for result in made for entry in result.bad]
    left_out = [
        *plan.still_left,
        *(LeftOut(bad=entry, fate=fates[entry.is_empty], stamp=stamps[entry.name]) for entry in new),
    ]
    if failed := [entry for entry in new if not entry.is_empty]:
        say(f"{spec.tolerance.fate}: {named(failed)}", show=spec.progress)
    without = {left.bad.name for left in left_out}
    held = np.array([position for position, key in enumerate(items.keys) if key not in without], np.int64)
    old = plan.base.manifest.counted_shards() if plan.base else []
    return writing.commit(
        Contents(
            recipe=recipe,
            written=[shard for result in made for shard in result.shards],
            kept=[shard for shard in old if shard.number in plan.kept],
            source_keys=items.keys,
            sources=items.table(held),
            left_out=left_out,
            renamed={field: suffix for result in made for field, suffix in result.renamed.items()},
        )
    )
