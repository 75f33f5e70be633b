"""A crash, a lost reply or an error at every call of the store: builds and gcs end well, and readers see no half.

Each scenario runs once undisturbed, which counts its calls; then once for each call and each fault, from the same
state. `check` tells what must hold after each.
"""

# Long: one model; every scenario runs through the same check.

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import pytest

from dray.pipelines.building.announce import announce
from dray.pipelines.building.build import build
from dray.pipelines.building.fill import fill_shard
from dray.pipelines.building.job import PackedShard, PackJob, PackTask
from dray.pipelines.building.manifest import next_manifest
from dray.pipelines.building.survey import BuildSpec, survey_dataset
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.gc import gc, kept_versions
from dray.pipelines.versions.retention import Retention
from dray.shards import DrayError, NotFoundError, Snapshot, Store
from dray.shards.index import digest_of
from dray.shards.layout import Layout, Location
from dray.shards.log import read_head
from dray.shards.storage import disk, retry
from dray.shards.verify import verify
from tests.conftest import Inputs, MakeInputs, Place
from tests.support.chaos import NO_PAUSES, Chaos
from tests.support.datasets import overwrite, stored
from tests.support.faults import WRITES, Call, Crash, Fault, FaultyStore

SUFFIX = "tensor.pyd"
LAYOUT = Layout("wds")
RECIPE = Recipe(suffixes=(SUFFIX,), num_shards=3)
KEEP_BOTH = Retention(keep=2)
KEEP_ONE = Retention(keep=1, grace_s=0)
READS = 12  # one of this many fails on disk and on S3

Content = Mapping[str, bytes] | None  # key -> part; None where there is no version
Objects = dict[str, bytes]
Run = Callable[[Store], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is disturbed, and between which contents.

    Attributes:
        start: What is stored before.
        run: What is disturbed.
        old: The last version before the run.
        new: And after it.
        then: What is done after it; None: the same again.
        end: The last version after that; None: `new`.
        others: The last version that somebody else may make meanwhile; None: nobody does.
    """

    start: Objects
    run: Run
    old: Content
    new: Content
    then: Run | None = None
    end: Content = None
    others: Content = None


def spec_of(job: PackJob, names: Sequence[str]) -> BuildSpec:
    return BuildSpec(job=job, recipe=RECIPE, names=names, tolerance=Tolerance(), address="none", progress=False)


def building(inputs: Inputs, names: Sequence[str], retention: Retention = KEEP_BOTH) -> Run:
    """A build in process, which stores shards from a thread."""

    def run(store: Store) -> None:
        job = PackJob(inputs=Store(inputs.folder), location=Location(store, LAYOUT), transform=None)
        build(spec_of(job, names), retention=retention)

    return run


def collecting(store: Store) -> object:
    """A gc that keeps the last version only."""
    return gc(Location(store, LAYOUT), KEEP_ONE)


class World:
    """Input files before and after a change, and what lies in a place after runs."""

    def __init__(self, inputs: Inputs, place: Place) -> None:
        """The files as they are before the change; the last one is not in use yet."""
        self.place = place
        self.inputs = inputs
        self.names = inputs.names[:-1]
        self.first = building(inputs, self.names)
        self.old = self.content(self.names)
        self._numbers = count()
        self.built = self.after({}, self.first)

    def change(self) -> None:
        """One changed, one removed, one new."""
        self.inputs.path(self.names[1], SUFFIX).write_bytes(b"changed")
        self.names = [*self.names[:4], *self.names[5:], self.inputs.names[-1]]
        self.new = self.content(self.names)

    def fresh(self) -> Place:
        """A place where nothing lies."""
        return replace(self.place, url=f"{self.place.url}-{next(self._numbers)}")

    def after(self, start: Objects, *runs: Run) -> Objects:
        """All stored objects."""
        place = self.fresh()
        copy_to(place, start)
        store = Store(place.url, place.storage_options)
        for run in runs:
            run(store)
        return stored(store)

    def content(self, names: Sequence[str]) -> Content:
        """What a version of these samples holds."""
        return {name.replace(".", "-"): self.inputs.part(name, SUFFIX) for name in names}


@pytest.fixture
def world(make_inputs: MakeInputs, place: Place, monkeypatch: pytest.MonkeyPatch) -> World:
    """After the change. The store computes what is lost without a sync: the disk need not wait for each."""
    monkeypatch.setattr(disk, "fsync", os.close)
    monkeypatch.setattr(retry, "PAUSES_S", (0, 0, 0))
    world = World(make_inputs(9), place)
    world.change()
    return world


def copy_to(place: Place, start: Objects) -> None:
    store = Store(place.url, place.storage_options)
    for name, body in start.items():
        store.put_new(name, body)


def leftovers(store: Store) -> list[str]:
    folders = ("", LAYOUT.indexes, LAYOUT.manifests, LAYOUT.commits, LAYOUT.intents)
    return [info.name for folder in folders for info in store.leftovers(folder)]


def comparable(found: Objects) -> dict[str, Any]:
    """Objects as an undisturbed run must leave them: records of the logs but for their write ids and times."""
    return {
        name: {key: value for key, value in json.loads(body).items() if key not in ("write_id", "created")}
        if name.startswith((LAYOUT.commits, LAYOUT.intents))
        else body
        for name, body in found.items()
    }


def read(place: Place, version: int | None = None) -> Content:
    """The samples of a version as a reader sees them who opens it now; it must be whole."""
    try:
        snapshot = Snapshot.open(place.url, LAYOUT.prefix, version=version, storage_options=place.storage_options)
    except NotFoundError:
        return None
    assert [str(finding) for finding in verify(snapshot, "full")] == []
    content: dict[str, bytes] = {}
    for shard in snapshot.shards:
        index = snapshot.index(shard)
        offsets, sizes = index.offsets[:, 0].tolist(), index.sizes[:, 0].tolist()
        parts = snapshot.store.get_ranges(LAYOUT.shard(shard.number), offsets, sizes)
        content |= {key: bytes(part) for key, part in zip(index.keys, parts, strict=True)}
    assert len(content) == snapshot.num_samples
    return content


def named_by_last_version(place: Place) -> set[str]:
    """Its shards, indexes, manifest and tables, and the logs."""
    last = Snapshot.open(place.url, LAYOUT.prefix, storage_options=place.storage_options)
    shards = [name(shard.number) for shard in last.shards for name in (LAYOUT.shard, LAYOUT.index)]
    logs = [info.name for folder in (LAYOUT.commits, LAYOUT.intents) for info in last.store.list_folder(folder)]
    return {*shards, *last.record_names(), *logs}


def check(
    scenario: Scenario,
    place: Place,
    at: int = 0,
    fault: Fault | Run = Fault.CRASH_BEFORE,
    expected: Objects | None = None,
    *,
    may_fail: bool = True,
) -> None:
    """Run a scenario with a fault, then what comes after it without.

    The last version is the old or the new one, and the new one if no error was raised; all kept versions are whole.
    What comes after makes what it should, as undisturbed. A gc then leaves what the last version names, and no more.

    Args:
        scenario: What to disturb.
        place: A fresh one.
        at: The call that fails; 0: none.
        fault: How; a function: what somebody else does there.
        expected: What an undisturbed run leaves; None: not compared.
        may_fail: Whether the run may raise an error there.

    Raises:
        AssertionError: Something is not as it must be.
    """
    store = Store(place.url, place.storage_options)
    copy_to(place, scenario.start)
    outcomes = [scenario.new] if scenario.others is None else [scenario.new, scenario.others]
    event = fault if isinstance(fault, Fault) else lambda: fault(store)
    try:
        scenario.run(FaultyStore(place.url, place.storage_options, at=at, fault=event))
    except (Crash, DrayError) as exc:
        if not may_fail:
            raise AssertionError("this must not stop the run") from exc
        outcomes.append(scenario.old)
    try:
        assert read(place) in outcomes
        head = read_head(Location(store, LAYOUT))
        assert head is None or None not in [
            read(place, version) for version in kept_versions(Location(store, LAYOUT), head)
        ]
        (scenario.then or scenario.run)(store)
        assert read(place) == (scenario.end or scenario.new)
        assert expected is None or comparable(stored(store)) == comparable(expected)
        collecting(store)
        assert read(place) == (scenario.end or scenario.new)
        assert set(stored(store)) == named_by_last_version(place)
        assert leftovers(store) == []
    except DrayError as exc:
        raise AssertionError(f"a reader, the rerun or the gc failed: {exc!r}") from exc


def count_calls(scenario: Scenario, place: Place) -> list[Call]:
    """Of an undisturbed run."""
    copy_to(place, scenario.start)
    store = FaultyStore(place.url, place.storage_options)
    scenario.run(store)
    return store.calls


def faults_of(call: Call, place: Place, *, exhaustive: bool) -> list[Fault]:
    """Those that make a difference at a call."""
    is_disk = place.url.startswith("file:")
    faults = [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOST_REPLY] + [Fault.UNANSWERED] * (not is_disk)
    if call.method in WRITES and exhaustive:
        faults.append(Fault.NO_REACH)
    if call.method == "put_new":
        faults += [Fault.SENT_TWICE] + [Fault.CRASH_WITHIN] * is_disk
    if call.method in ("put_new", "sync"):  # between them the disk loses the same
        faults += [Fault.POWER_CUT, Fault.LUCKY_CUT] * is_disk
    return faults


def is_borne(call: Call, fault: Fault | Run) -> bool:
    """Whether a run must go on: it reads records back, and what others do is none of its business."""
    if not isinstance(fault, Fault):
        return True
    is_record = call.name.startswith((LAYOUT.commits, LAYOUT.intents, LAYOUT.manifests))
    return fault in (Fault.SENT_TWICE, Fault.UNANSWERED) or (
        call.method == "put_new" and fault is Fault.LOST_REPLY and is_record
    )


def check_every_call(
    scenario: Scenario,
    world: World,
    *,
    faults: Sequence[Fault | Run] = (),
    compare: bool = True,
    exhaustive: bool = False,
) -> list[Call]:
    """Each fault at each call, and returns the calls.

    In memory, or if `exhaustive`. On disk and on S3 few reads fail, which are alike everywhere; and on S3, where a
    check costs most, each write fails in one way, the next one in the next.
    """
    calls = count_calls(scenario, world.fresh())
    check(scenario, world.fresh(), may_fail=False)
    expected = world.after(scenario.start, scenario.run, scenario.then or scenario.run) if compare else None
    exhaustive |= world.place.url.startswith("memory:")
    for at, call in enumerate(calls, 1):
        if call.method in WRITES or exhaustive or at % READS == 0:
            ways = faults or faults_of(call, world.place, exhaustive=exhaustive)
            if world.place.url.startswith("s3:") and not exhaustive:
                ways = [ways[at % len(ways)]]
            for fault in ways:
                with context(f"there was {fault} call {at}, {call}"):
                    check(scenario, world.fresh(), at, fault, expected, may_fail=not is_borne(call, fault))
    return calls


@contextmanager
def context(what: str) -> Iterator[None]:
    try:
        yield
    except BaseException as exc:
        exc.add_note(what)
        raise


def written(calls: Sequence[Call]) -> int:
    return sum(call.method in WRITES for call in calls)


on_memory = pytest.mark.parametrize("place", ["memory"], indirect=True)


def test_the_faulty_store_counts_every_call_of_a_store() -> None:
    """All that reaches it, but `get`, which is made of `get_object`."""
    public = {name for name, value in vars(Store).items() if callable(value) and not name.startswith("_")}
    assert public - {"url_of"} == public & vars(FaultyStore).keys()


def test_a_first_build_survives_a_fault_at_every_call(world: World) -> None:
    """Readers see nothing, or all."""
    scenario = Scenario(start={}, run=building(world.inputs, world.names), old=None, new=world.new)
    calls = check_every_call(scenario, world)
    assert written(calls) == 2 * 3 + 2 + 2 + 1  # shards and indexes, the intent twice, table and manifest, the commit


def test_an_incremental_build_survives_a_fault_at_every_call(world: World) -> None:
    """Readers see the old samples or the new, and the old version stays whole beside the new."""
    scenario = Scenario(start=world.built, run=building(world.inputs, world.names), old=world.old, new=world.new)
    calls = check_every_call(scenario, world)
    assert written(calls) == 2 * 3 + 2 + 2 + 1


def test_a_build_that_gives_up_the_old_version_survives_a_fault_at_every_call(world: World) -> None:
    """It deletes only after the commit; what it did not delete, the next gc does."""
    run = building(world.inputs, world.names, KEEP_ONE)
    scenario = Scenario(start=world.built, run=run, old=world.old, new=world.new)
    calls = check_every_call(scenario, world, compare=False)
    assert [call.method for call in calls].count("delete") == 2 * 2 + 2


def test_a_build_with_nothing_to_do_survives_a_fault_at_every_call(world: World) -> None:
    """It only reads."""
    run = building(world.inputs, world.names)
    scenario = Scenario(start=world.after({}, run), run=run, old=world.new, new=world.new)
    assert written(check_every_call(scenario, world)) == 0


def abandoned(world: World) -> Objects:
    """Two versions, and the shards of a builder that died before it indexed its last one."""
    run = building(world.inputs, world.names[1::2])
    both = world.after(world.built, building(world.inputs, world.names))
    calls = count_calls(Scenario(start=both, run=run, old=None, new=None), world.fresh())
    last = max(at for at, call in enumerate(calls, 1) if call.method == "put_new" and LAYOUT.indexes in call.name)

    def die(store: Store) -> None:
        with pytest.raises(Crash):
            run(FaultyStore(store.url, world.place.storage_options, at=last))

    return world.after(both, die)


def test_a_gc_survives_a_fault_at_every_call(world: World) -> None:
    """What it did not delete, the next one does."""
    scenario = Scenario(start=abandoned(world), run=collecting, old=world.new, new=world.new)
    calls = check_every_call(scenario, world)
    assert [call.method for call in calls].count("delete") > 2 * 2 + 2


@pytest.mark.parametrize("place", ["s3"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ({"action": "lost_reply"}, 1),
        ({"action": "lost_reply", "after": 1}, 1),
        pytest.param({"action": "lost_reply"}, 2, marks=pytest.mark.heavy),
        ({"action": "reset_body", "at": 20}, 1),
        pytest.param({"action": "status", "code": 500}, 2, marks=pytest.mark.heavy),
        pytest.param({"action": "status", "code": 429}, 2, marks=pytest.mark.heavy),
    ],
)
def test_every_request_may_fail_for_a_while(world: World, chaos: Chaos, fault: dict[str, Any], times: int) -> None:
    """Of a first build, an incremental one, a gc and a reader: they end as if nothing had been, and report the same."""
    runs = [world.first, building(world.inputs, world.names), collecting]
    expected = world.after({}, *runs)
    place = world.fresh()
    options = {**place.storage_options, "endpoint": chaos.endpoint, "retry_config": NO_PAUSES}
    rule = chaos.rule(times=times, each=True, **fault)
    for run in runs:
        run(Store(place.url, options))
    assert read(replace(place, storage_options=options)) == world.new
    assert rule.hits > 10
    assert comparable(stored(Store(place.url, place.storage_options))) == comparable(expected)


@on_memory
def test_a_build_of_other_samples_after_a_fault_ends_well(world: World) -> None:
    """What the dead one left serves it, or goes with the next gc."""
    others = world.names[1::2]
    scenario = Scenario(start=world.built, run=building(world.inputs, world.names), old=world.old, new=world.new,
                        then=building(world.inputs, others), end=world.content(others))  # fmt: skip
    check_every_call(scenario, world, compare=False)


@on_memory
def test_a_builder_that_a_gc_took_for_dead_comes_back(world: World) -> None:
    """Its intent is closed and its shards are gone, or half of them: it plans again."""
    others = world.names[1::2]
    scenario = Scenario(start=abandoned(world), run=collecting, old=world.new, new=world.new,
                        then=building(world.inputs, others), end=world.content(others))  # fmt: skip
    check_every_call(scenario, world, compare=False)


@on_memory
def test_what_others_do_at_any_call_harms_no_build(world: World) -> None:
    """The same build, one of other samples, or a gc without grace, from start to end between two calls of a build."""
    others = world.names[1::2]
    scenario = Scenario(start=world.built, run=building(world.inputs, world.names), old=world.old, new=world.new,
                        others=world.content(others))  # fmt: skip
    faults = [building(world.inputs, world.names), building(world.inputs, others), collecting]
    check_every_call(scenario, world, faults=faults, compare=False)


@on_memory
def test_what_others_do_at_any_call_harms_no_gc(world: World) -> None:
    """A build, or another gc."""
    others = world.names[1::2]
    scenario = Scenario(start=abandoned(world), run=collecting, old=world.new, new=world.new,
                        others=world.content(others), then=building(world.inputs, world.names))  # fmt: skip
    check_every_call(scenario, world, faults=[building(world.inputs, others), collecting], compare=False)


@pytest.mark.heavy
@on_memory
@pytest.mark.parametrize("retention", [KEEP_BOTH, KEEP_ONE])
def test_a_build_survives_two_crashes_anywhere(world: World, retention: Retention) -> None:
    """The rerun dies too, at each of its calls; the third one ends as if nothing had been."""
    run = building(world.inputs, world.names, retention)
    plain = Scenario(start=world.built, run=run, old=world.old, new=world.new)
    for at in range(1, len(count_calls(plain, world.fresh())) + 1):

        def then(store: Store, at: int = at) -> None:
            with suppress(Crash):
                run(FaultyStore(store.url, at=at, fault=Fault.CRASH_AFTER))
            run(store)

        check_every_call(replace(plain, then=then), world, faults=[Fault.CRASH_AFTER], compare=retention is KEEP_BOTH)


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_every_fault_at_every_call_on_s3(world: World) -> None:
    """What the tests above do on memory and disk."""
    run = building(world.inputs, world.names)
    for start, old in (({}, None), (world.built, world.old)):
        check_every_call(Scenario(start=start, run=run, old=old, new=world.new), world, exhaustive=True)
    sweeping = building(world.inputs, world.names, KEEP_ONE)
    scenario = Scenario(start=world.built, run=sweeping, old=world.old, new=world.new)
    check_every_call(scenario, world, compare=False, exhaustive=True)
    scenario = Scenario(start=abandoned(world), run=collecting, old=world.new, new=world.new)
    check_every_call(scenario, world, exhaustive=True)


NaiveFlaw = Literal["overwrites shards", "commits first", "deletes first"]


def naive_build(store: Store, inputs: Inputs, names: Sequence[str], flaw: NaiveFlaw) -> None:
    """A builder that ends as well as dray's where nothing goes wrong, with one flaw."""
    job = PackJob(inputs=Store(inputs.folder), location=Location(store, LAYOUT), transform=None)
    work = survey_dataset(spec_of(job, names), read_head(Location(store, LAYOUT)))
    if not work.has_work:
        return
    intent = announce(job.location, work.planned.slots, work.snapshot, work.stored, progress=False)
    if flaw == "overwrites shards":
        intent = replace(intent, shards=tuple(range(len(intent.shards))))
    packed: dict[int, PackedShard] = {}
    bodies: Objects = {}
    for shard, number in zip(work.planned.shards, intent.shards, strict=True):
        if shard.fate == "reused" and flaw != "overwrites shards":
            continue
        filled = fill_shard(job, PackTask(number=number, sources=work.sources.take(shard.rows), memory_bytes=0))
        assert filled.index is not None
        index = filled.index.to_bytes()
        bodies |= {LAYOUT.shard(number): bytes(filled.tar), LAYOUT.index(number): index}
        packed[number] = PackedShard(number=number, num_bytes=len(filled.tar), index_digest=digest_of(index),
                                     is_packed=filled.is_packed, source_hashes=filled.source_hashes, adopted=False,
                                     bad=())  # fmt: skip
    manifest, _ = next_manifest(job, RECIPE, work, intent, packed, ())
    if flaw == "commits first":
        commit_version(Location(store, LAYOUT), manifest, work.snapshot, retention=KEEP_ONE)
    if flaw == "deletes first" and work.snapshot is not None:
        kept = {shard.number for shard in manifest.shards}
        store.delete([LAYOUT.shard(old.number) for old in work.snapshot.shards if old.number not in kept])
    for name, body in bodies.items():
        overwrite(store, name, body)
    if flaw != "commits first":
        commit_version(Location(store, LAYOUT), manifest, work.snapshot, retention=KEEP_ONE)


@pytest.mark.parametrize("flaw", ["overwrites shards", "commits first", "deletes first"])
@on_memory
def test_the_check_finds_what_is_wrong_with_a_naive_builder(world: World, flaw: NaiveFlaw) -> None:
    """It passes undisturbed, and not with a crash at some write."""
    scenario = Scenario(start=world.built, old=world.old, new=world.new,
                        run=lambda store: naive_build(store, world.inputs, world.names, flaw))  # fmt: skip
    check(scenario, world.fresh(), may_fail=False)
    caught: list[Call] = []
    for at, call in enumerate(count_calls(scenario, world.fresh()), 1):
        try:
            check(scenario, world.fresh(), at, Fault.CRASH_AFTER)
        except AssertionError:
            caught.append(call)
    assert {call.method for call in caught} & WRITES
