"""What `write_samples` determines about its inputs before it calls the user's function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dray.pipelines.building.tables import LeftOut
from dray.pipelines.inputs.items import SUFFIXES, Items, prints_in
from dray.pipelines.inputs.maker import Maker
from dray.pipelines.inputs.sources import EMPTY, BadInput
from dray.pipelines.inputs.tolerance import OnError, Tolerance
from dray.pipelines.planning.changes import Changes, Guard
from dray.pipelines.planning.fills import Fill, plan_fills
from dray.pipelines.planning.rewrites import plan_rewrites
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.shard import ShardSize
from dray.shards.errors import CallError
from dray.shards.layout import Location
from dray.shards.log import new_write_id
from dray.shards.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSpec:
    """The arguments of `write_samples` with inputs.

    Attributes:
        location: Where the dataset is.
        items: The inputs.
        maker: Makes the samples of an input.
        transform_version: Declared version of the function; None: nothing is reused.
        size: When a shard is full.
        samples_per_shard: As given.
        is_default_size: Whether neither a number of samples nor a size was given.
        keep_pickles: Whether values of pickled names are pickled.
        tolerance: How bad inputs are treated.
        guard: How many samples may be removed.
        num_workers: Number of worker processes; 0: this process, or Ray.
        address: See `run_tasks`.
        retention: Which versions to keep; None: all.
        progress: Whether to show progress.
    """

    location: Location
    items: Items
    maker: Maker
    transform_version: str | None
    size: ShardSize
    samples_per_shard: int | None
    is_default_size: bool
    keep_pickles: bool
    tolerance: Tolerance
    guard: Guard
    num_workers: int
    address: str | None
    retention: Retention | None
    progress: bool

    def recipe(self) -> dict[str, Any]:
        """Returns what, besides the inputs, decides the bytes."""
        return {
            "writer": "write_samples",
            "suffixes": list(SUFFIXES),
            "transform": self.transform_version or f"undeclared {new_write_id()}",
            "seed": self.maker.seed,
            "shard_samples": self.size.samples,
            "shard_bytes": self.size.num_bytes,
            "keep_pickles": self.keep_pickles,
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MakePlan:
    """What a run is going to do.

    Attributes:
        base: The last version, if something of it stays.
        kept: Numbers of its shards that stay.
        fills: A task for each shard to rewrite.
        calls: Positions of the inputs for new shards, in order.
        still_left: Inputs that stay left out.
        has_work: Whether the next version differs from the last.
    """

    base: Snapshot | None
    kept: frozenset[int]
    fills: Sequence[Fill]
    calls: Sequence[int]
    still_left: Sequence[LeftOut]
    has_work: bool


def plan_work(spec: MakeSpec, base: Snapshot | None, recipe: Mapping[str, Any]) -> MakePlan:
    """Returns what to do.

    Raises:
        CallError: More samples would be removed than the guard allows.
    """
    items = spec.items
    if base is None or base.manifest.sources is None:
        return _all_again(spec)
    positions = {key: position for position, key in enumerate(items.keys)}
    sources, samples = base.sources(), base.samples()
    gone = set(sources["key"].to_pylist()) - positions.keys()
    _check_removal(spec, samples, gone)
    if base.manifest.recipe != recipe:
        return _all_again(spec)
    then = prints_in(sources)
    now = dict(zip(items.keys, map(tuple, items.prints.tolist()), strict=True))
    stale = gone | {key for key, print_ in then.items() if key in now and now[key] != print_}
    still_left, was_left = _still_left(spec, base)
    known = {left.bad.name for left in still_left} | (then.keys() - stale)
    calls = [position for position, key in enumerate(items.keys) if key not in known]
    shards = [shard.number for shard in base.shards]
    kept = frozenset(plan_rewrites(samples, shards, stale).kept)
    fills, new = plan_fills(samples, [number for number in shards if number not in kept], stale, positions, calls)
    return MakePlan(
        base=base,
        kept=kept,
        fills=fills,
        calls=new,
        still_left=still_left,
        has_work=bool(calls or stale or was_left != {left.bad.name for left in still_left}),
    )


def _all_again(spec: MakeSpec) -> MakePlan:
    return MakePlan(
        base=None,
        kept=frozenset(),
        fills=(),
        calls=range(len(spec.items.keys)),
        still_left=(),
        has_work=True,
    )


def _check_removal(spec: MakeSpec, samples: pa.Table, gone: set[str]) -> None:
    column = "source" if "source" in samples.column_names else "key"
    num_removed = sum(source in gone for source in samples[column].to_pylist()) if gone else 0
    changes = Changes(num_last=len(samples), num_removed=num_removed)
    if refusal := spec.guard.refuses_removal(changes):
        raise CallError(f"{spec.location}: nothing was written: {refusal}")


def _still_left(spec: MakeSpec, base: Snapshot) -> tuple[list[LeftOut], set[str]]:
    """Returns the inputs that gave no sample to the last version, did not change and are not tried again.

    Also the names of all inputs that gave none.
    """
    table = base.left_out()
    if table is None:
        return [], set()
    marks = dict(zip(spec.items.keys, spec.items.marks().tolist(), strict=True))
    kept = {EMPTY, "skipped"} if spec.tolerance.on_error == OnError.SKIP else {EMPTY}
    left = [
        LeftOut(
            bad=BadInput(name=row["name"], file=row["file"], stage=row["stage"], error=row["error"]),
            fate=row["fate"],
            stamp=row["stamp"],
        )
        for row in table.to_pylist()
        if row["fate"] in kept and marks.get(row["name"]) == row["stamp"]
    ]
    return left, set(table["name"].to_pylist())
