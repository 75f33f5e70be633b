"""What a build determines before it writes anything: its inputs, the last version, and the plan.

Inputs are looked up, those that were touched are read to see whether they changed, and those that an earlier build left
out are tried again.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.building.fill import find_bad
from dray.pipelines.building.hashing import hash_contents
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.tables import LeftOut
from dray.pipelines.inputs.scan import Scan
from dray.pipelines.inputs.sources import EMPTY, BadInput, Sources, find_missing, find_sources
from dray.pipelines.inputs.tolerance import OnError, Tolerance
from dray.pipelines.planning.changes import Changes, Guard
from dray.pipelines.planning.plan import Last, Plan, changes_of, find_in, fingerprints_in, places_and_prints, plan
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.progress import say
from dray.pipelines.versions.attempts import check_is_build, stored_sizes, whole_shards
from dray.shards.errors import InputError
from dray.shards.log import Commit
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BuildSpec:
    """The arguments of a build.

    Attributes:
        job: Where inputs and dataset are, and how samples are made.
        recipe: Everything but the samples that decides the dataset's bytes.
        names: The samples.
        unusable: Further samples, whose names cannot become keys.
        optional: Suffixes of files that samples may lack.
        scan: The scan that found the samples; None if the caller listed them.
        guard: The changes that the build may make; None: any.
        tolerance: How inputs that cannot be packed are treated.
        checksum: Whether inputs are compared by their content, for which all of them are read.
        address: See `run_tasks`.
        progress: Whether to show progress on standard error.
    """

    job: PackJob
    recipe: Recipe
    names: Sequence[str]
    unusable: tuple[BadInput, ...] = ()
    optional: Collection[str] = ()
    scan: Scan | None = None
    guard: Guard | None = None
    tolerance: Tolerance
    checksum: bool = False
    address: str | None = None
    progress: bool = True


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Work:
    """The result of a survey: what a build is going to do.

    Attributes:
        num_inputs: Number of inputs, usable or not.
        sources: The inputs of the plan.
        left_out: The inputs that the plan leaves out.
        snapshot: The last version, with the last commit; None if there is none.
        last: The last version as the plan used it.
        stored: Name -> bytes of the objects in the dataset's directory.
        planned: The plan.
        has_work: Whether the next version would differ from the last.
        refusal: Why the build is refused; empty if it is not.
        head: The last commit.
        seconds: Duration of the survey.
    """

    num_inputs: int
    sources: Sources
    left_out: tuple[LeftOut, ...]
    snapshot: Snapshot | None
    last: Last | None
    stored: dict[str, int]
    planned: Plan
    has_work: bool
    refusal: str
    head: Commit | None
    seconds: float


def survey_dataset(spec: BuildSpec, head: Commit | None) -> Work:
    """Returns what a build is going to do: fingerprints of the inputs, the last version, and a plan. Writes nothing.

    Args:
        spec: The arguments of the build.
        head: The last commit.

    Raises:
        CallError: The names cannot become keys, or a shard would pass 4 GiB.
        InputError: More inputs are missing or bad than are accepted.
    """
    started = time.monotonic()
    job, tolerance = spec.job, spec.tolerance
    num_inputs = len(spec.names) + len(spec.unusable)
    sources, left_out = find_usable(spec, num_inputs)
    snapshot = Snapshot.load(job.location, head) if head else None
    if snapshot is not None:
        check_is_build(snapshot)
    stored = stored_sizes(job.location)
    last = last_of(snapshot, stored) if snapshot else None
    is_same = None
    if snapshot is not None and last is not None and not changes_of(spec.recipe, sources.url, last):
        left_out += _still_bad(job, sources, snapshot, tolerance)
        sources = without(sources, left_out)
        is_same = same_contents(spec, sources, last)
    tolerance.check([left.bad for left in left_out], num_inputs, job.inputs.url)
    if not len(sources):
        raise InputError(none_left(num_inputs, job.inputs.url, left_out))
    planned = plan(sources, spec.recipe, last, is_same)
    _say_if_too_few(spec, len(sources))
    _say_if_folders_are_new(spec, sources, last)
    return Work(
        num_inputs=num_inputs,
        sources=sources,
        left_out=tuple(left_out),
        snapshot=snapshot,
        last=last,
        stored=stored,
        planned=planned,
        has_work=snapshot is None or planned.has_work or marks_of(left_out) != marks_in(snapshot),
        refusal=refusal_of(spec, last, planned.changes),
        head=head,
        seconds=time.monotonic() - started,
    )


def find_usable(spec: BuildSpec, num_inputs: int) -> tuple[Sources, list[LeftOut]]:
    """Returns the fingerprints of the inputs that are complete, and the inputs that are not."""
    job, tolerance, unusable = spec.job, spec.tolerance, spec.unusable
    tolerance.check(unusable, num_inputs, job.inputs.url)
    if unusable and not spec.names:
        raise InputError(none_left(num_inputs, job.inputs.url, ()))
    found = find_sources(job.inputs, spec.names, spec.recipe.suffixes, spec.scan.prints if spec.scan else None)
    missing = find_missing(found, spec.optional)
    tolerance.check([*unusable, *missing], num_inputs, job.inputs.url)
    left_out = as_left_out(missing, found, tolerance)
    sources = without(found, left_out)
    left_out += [LeftOut(bad=entry, fate=tolerance.fate, stamp=0) for entry in unusable]
    return (_by_content(spec, sources) if spec.checksum else sources), left_out


def refusal_of(spec: BuildSpec, last: Last | None, changes: Changes) -> str:
    """Returns why a build with these changes is refused; empty if it is not."""
    if spec.guard is None or last is None:
        return ""
    then = last.source_url, frozenset(last.recipe["suffixes"])
    reasons = (
        spec.guard.refuses_source(then, (spec.job.inputs.url, frozenset(spec.recipe.suffixes))),
        spec.guard.refuses_removal(changes),
    )
    if not any(reasons):
        return ""
    problems = "; and ".join(filter(None, reasons))
    return f"{spec.job.location.url}: this build is refused, and nothing was written: {problems}"


def _say_if_folders_are_new(spec: BuildSpec, sources: Sources, last: Last | None) -> None:
    """Say that the dataset gets its first samples from sub-folders, if it does."""
    if last is None or last.recipe.get("recursive") or not spec.recipe.recursive:
        return
    old = find_in(last.table, sources) >= 0
    count = sum("/" in name for name, is_old in zip(sources.names, old.tolist(), strict=True) if not is_old)
    if count:
        say(
            f"{count:,} new samples lie in sub-folders of {spec.job.inputs.url}, which builds of this dataset did not "
            "scan before",
            show=spec.progress,
        )


def none_left(num_inputs: int, url: str, left_out: Sequence[LeftOut]) -> str:
    """Returns the message for a build of which no sample is left."""
    num_empty = sum(left.bad.is_empty for left in left_out)
    why = f"; func_output_data returned None for {num_empty:,}" if num_empty else ""
    return f"none of the {counted(num_inputs, 'sample')} of {url} can be packed{why}"


def _say_if_too_few(spec: BuildSpec, num_samples: int) -> None:
    if spec.recipe.num_shards is not None and spec.recipe.num_shards > num_samples:
        asked = counted(spec.recipe.num_shards, "shard was", "shards were")
        made = counted(num_samples, "sample")
        say(f"{asked} asked for, and there are {made}: a shard holds one at least", show=spec.progress)


def last_of(snapshot: Snapshot, stored: dict[str, int]) -> Last:
    """Returns the last version as far as a plan needs it; shards that someone deleted are not whole."""
    return Last(
        recipe=snapshot.manifest.recipe,
        source_url=snapshot.manifest.source_url,
        shards=snapshot.shards,
        whole=frozenset(shard.number for shard in whole_shards(snapshot, stored)),
        table=snapshot.sources(),
    )


def same_contents(spec: BuildSpec, sources: Sources, last: Last) -> NDArray[np.bool_]:
    """Returns (n,) whether a sample's files were touched but not changed: those of equal size are read to compare."""
    rows = find_in(last.table, sources)
    candidates = np.flatnonzero(rows >= 0)
    old = places_and_prints(last.table, rows[candidates])
    has_same_size = (fingerprints_in(old, sources.suffixes, "size") == sources.sizes[candidates]).all(axis=1)
    has_same_stamp = (fingerprints_in(old, sources.suffixes, "stamp") == sources.stamps[candidates]).all(axis=1)
    touched = np.flatnonzero(has_same_size & ~has_same_stamp)
    suspects = sources.take(candidates[touched])
    found = suspects.stamps.view(np.uint64) if sources.by_content else _hashed(spec, suspects, "touched")
    is_same = np.zeros(len(sources), bool)
    is_same[candidates[touched]] = (found == fingerprints_in(old, sources.suffixes, "xxh3_64")[touched]).all(axis=1)
    return is_same


def _hashed(spec: BuildSpec, sources: Sources, why: str) -> NDArray[np.uint64]:
    return hash_contents(spec.job.inputs, sources, why, address=spec.address, progress=spec.progress)


def _by_content(spec: BuildSpec, sources: Sources) -> Sources:
    """Returns the sources with hashes of their content as stamps."""
    hashes = _hashed(spec, sources, "to compare by content")
    return replace(sources, stamps=hashes.view(np.int64), by_content=True)


def _still_bad(job: PackJob, sources: Sources, snapshot: Snapshot, tolerance: Tolerance) -> list[LeftOut]:
    """Returns inputs that the last version left out and this one leaves out again, because they did not change.

    Skipped and empty ones are not read; quarantined ones are tried again.
    """
    table = snapshot.left_out()
    if table is None:
        return []
    listed = [entry for entry in table.to_pylist() if tolerance.leaves_out or entry["fate"] == EMPTY]
    then = {entry["name"]: entry for entry in listed if entry["stage"] != "find"}
    rows = np.array([row for row, name in enumerate(sources.names) if name in then], np.int64)
    known = sources.take(rows)
    stamps = stamps_of(known)
    same = [row for row, name in enumerate(known.names) if then[name]["stamp"] == stamps[name]]
    kept = {EMPTY, "skipped"} if tolerance.on_error == OnError.SKIP else {EMPTY}
    tried = [row for row in same if then[known.names[row]]["fate"] not in kept]
    bad = {entry.name: entry for entry in find_bad(job, known.take(np.array(tried, np.int64)))} if tried else {}
    works = {known.names[row] for row in tried} - bad.keys()
    left = [name for row in same if (name := known.names[row]) not in works]
    entries = [
        bad[name]
        if name in bad and bad[name].is_empty
        else BadInput(name=name, file=then[name]["file"], stage=then[name]["stage"], error=then[name]["error"])
        for name in left
    ]
    return as_left_out(entries, known, tolerance)


def as_left_out(bad: Sequence[BadInput], sources: Sources, tolerance: Tolerance) -> list[LeftOut]:
    """Returns bad inputs as the tables list them."""
    wanted = {entry.name for entry in bad}
    rows = np.array([row for row, name in enumerate(sources.names) if name in wanted], np.int64) if wanted else None
    stamps = stamps_of(sources.take(rows)) if rows is not None else {}
    return [
        LeftOut(bad=entry, fate=EMPTY if entry.is_empty else tolerance.fate, stamp=stamps[entry.name]) for entry in bad
    ]


def leave_out(bad: Sequence[BadInput], work: Work, tolerance: Tolerance) -> tuple[LeftOut, ...]:
    """Returns the inputs that the next version leaves out: those of the survey, and those that could not be packed."""
    return (*work.left_out, *as_left_out(bad, work.sources, tolerance))


def stamps_of(sources: Sources) -> dict[str, int]:
    """Returns name -> xxh3_64 of the fingerprints of its files."""
    prints = np.hstack([sources.sizes, sources.stamps])
    return {name: xxh3_64_intdigest(prints[row].tobytes()) for row, name in enumerate(sources.names)}


def without(sources: Sources, left_out: Sequence[LeftOut]) -> Sources:
    """Returns the sources that are not left out."""
    gone = {left.bad.name for left in left_out}
    if not gone:
        return sources
    return sources.take(np.array([row for row, name in enumerate(sources.names) if name not in gone], np.int64))


def marks_of(left_out: Sequence[LeftOut]) -> set[tuple[str, str, int]]:
    """Returns what of the inputs that are left out a version records."""
    return {(left.bad.name, left.fate, left.stamp) for left in left_out}


def marks_in(snapshot: Snapshot) -> set[tuple[str, str, int]]:
    """Returns `marks_of` for those that a version leaves out."""
    table = snapshot.left_out()
    entries = table.select(["name", "fate", "stamp"]).to_pylist() if table is not None else []
    return {(entry["name"], entry["fate"], entry["stamp"]) for entry in entries}
