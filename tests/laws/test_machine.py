"""A dataset under every operation, crash and interleaving that hypothesis thinks of, held against a dict.

What an operation committed is read from the log after it, whether it ended, crashed or met another writer: each new
commit must be one that this operation may make of the dataset as the model knows it then.
"""

# Long: one model of a dataset; each rule refers to the state that the others leave.

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dray.pipelines.building import merge, pack
from dray.pipelines.building.build import build
from dray.pipelines.building.compact import compact
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.survey import BuildSpec
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.versions.gc import gc
from dray.pipelines.versions.holds import hold, release, rollback
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.shards import CallError, ConflictError, DrayError, ExistsError, NotFoundError, Snapshot, Store, StoreError
from dray.shards.layout import Layout, Location
from dray.shards.log import Commit, read_commit, read_head
from dray.shards.verify import verify
from dray.shards.versions import read_holds, read_version
from tests.support.faults import Crash, Fault, FaultyStore

SUFFIX = "x.pyd"
LAYOUT = Layout("wds")
RECIPE = Recipe(suffixes=(SUFFIX,), shard_samples=3)
NAMES = [f"s.{number}" for number in range(8)]
EXECUTOR = ThreadPoolExecutor.__name__
numbered = count(1)

File = tuple[bytes, int]  # content, mtime in ns


# The model


@dataclass(frozen=True)
class Version:
    """What a version was made of; a rollback has the origin of the version that it went back to."""

    files: dict[str, File]
    origin: int

    @property
    def samples(self) -> dict[str, bytes]:
        return {name.replace(".", "-"): content for name, (content, _) in self.files.items()}


@dataclass
class Model:
    """What is true of a dataset, by the replies that its writers got."""

    commits: list[Commit] = field(default_factory=list)
    versions: dict[int, Version] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    floor: int = 1

    @property
    def last(self) -> int:
        return max(self.versions, default=0)

    def keeps(self, version: int) -> bool:
        return version in self.versions and (version >= self.floor or version in self.holds.values())

    def kept(self) -> list[int]:
        return [version for version in self.versions if self.keeps(version)]

    def floor_by(self, retention: Retention | None, *made: int) -> int:
        """All versions here are younger than a day."""
        if retention is None or retention.grace_s > 0 or not (self.versions or made):
            return self.floor
        return [*(version for version in self.versions if version >= self.floor), *made][-retention.keep :][0]

    @property
    def floors(self) -> tuple[int, int]:
        """A gc, or a build's, moves them."""
        return self.floor, self.commits[-1].open_intent if self.commits else 1

    def is_dropped_for_good(self, version: int) -> bool:
        """Whether it is dropped and no kept version has its manifest."""
        origin = self.versions[version].origin
        return not self.keeps(version) and all(self.versions[kept].origin != origin for kept in self.kept())


# What writers do


class Operation(Protocol):
    """One call of a writer."""

    def on(self, machine: "Machine") -> "Operation":
        """The same with what it leaves open settled."""
        ...

    def run(self, machine: "Machine", store: Store) -> Any: ...

    def refusal(self, model: Model) -> type[DrayError] | None:
        """What it must raise; None where it must succeed."""
        ...

    def check_commit(self, model: Model, commit: Commit) -> None:
        """A commit that it made of the dataset as the model has it; the model follows."""
        ...

    def check_result(self, model: Model, result: Any) -> None:
        """What it returned, by the model after it."""
        ...


@dataclass(frozen=True)
class Build:
    without: frozenset[str]
    retention: Retention | None
    files: dict[str, File] = field(default_factory=dict, repr=False)

    def on(self, machine: "Machine") -> "Build":
        some = {name: file for name, file in machine.files.items() if name not in self.without}
        return replace(self, files=some or dict(machine.files))

    def run(self, machine: "Machine", store: Store) -> Any:
        job = PackJob(inputs=Store(machine.folder), location=Location(store, LAYOUT), transform=None)
        names = list(self.files)
        spec = BuildSpec(job=job, recipe=RECIPE, names=names, tolerance=Tolerance(), address="none", progress=False)
        return build(spec, retention=self.retention)

    def refusal(self, model: Model) -> type[DrayError] | None:
        return None

    def check_commit(self, model: Model, commit: Commit) -> None:
        assert not model.last or model.versions[model.last].files != self.files, "a no-op build committed"
        assert (commit.operation, commit.version) == ("build", commit.number)
        model.floor = model.floor_by(self.retention, commit.number)
        model.versions[commit.number] = Version(self.files, commit.number)

    def check_result(self, model: Model, result: Any) -> None:
        assert result.version == model.last
        assert model.versions[result.version].files == self.files


@dataclass(frozen=True)
class Gc:
    retention: Retention

    def on(self, machine: "Machine") -> "Gc":
        return self

    def run(self, machine: "Machine", store: Store) -> Any:
        return gc(Location(store, LAYOUT), self.retention)

    def refusal(self, model: Model) -> type[DrayError] | None:
        return None if model.versions else NotFoundError

    def check_commit(self, model: Model, commit: Commit) -> None:
        assert (commit.operation, commit.version) == ("gc", model.last)
        model.floor = model.floor_by(self.retention)

    def check_result(self, model: Model, result: Any) -> None:
        assert model.floor == model.floor_by(self.retention)
        assert list(result.kept) == model.kept()


@dataclass(frozen=True)
class Hold:
    name: str
    back: int  # number of commits
    version: int = 0

    def on(self, machine: "Machine") -> "Hold":
        return replace(self, version=machine.number(self.back))

    def run(self, machine: "Machine", store: Store) -> Any:
        return hold(Location(store, LAYOUT), self.name, self.version)

    def refusal(self, model: Model) -> type[DrayError] | None:
        if not model.keeps(self.version):
            return NotFoundError
        return CallError if model.holds.get(self.name, self.version) != self.version else None

    def check_commit(self, model: Model, commit: Commit) -> None:
        assert self.refusal(model) is None
        assert self.name not in model.holds
        assert (commit.operation, commit.version) == ("hold", model.last)
        model.holds[self.name] = self.version

    def check_result(self, model: Model, result: Any) -> None:
        assert model.holds.get(self.name) == self.version == result


@dataclass(frozen=True)
class Release:
    name: str

    def on(self, machine: "Machine") -> "Release":
        return self

    def run(self, machine: "Machine", store: Store) -> Any:
        return release(Location(store, LAYOUT), self.name)

    def refusal(self, model: Model) -> type[DrayError] | None:
        return None if self.name in model.holds else NotFoundError

    def check_commit(self, model: Model, commit: Commit) -> None:
        assert (commit.operation, commit.version) == ("release", model.last)
        del model.holds[self.name]

    def check_result(self, model: Model, result: Any) -> None:
        assert self.name not in model.holds


@dataclass(frozen=True)
class Rollback:
    back: int  # number of commits
    version: int = 0

    def on(self, machine: "Machine") -> "Rollback":
        return replace(self, version=machine.number(self.back))

    def run(self, machine: "Machine", store: Store) -> Any:
        return rollback(Location(store, LAYOUT), self.version)

    def refusal(self, model: Model) -> type[DrayError] | None:
        return None if model.keeps(self.version) else NotFoundError

    def check_commit(self, model: Model, commit: Commit) -> None:
        assert self.refusal(model) is None
        old = model.versions[self.version]
        assert old.origin != model.versions[model.last].origin, "a no-op rollback committed"
        assert (commit.operation, commit.version) == ("rollback", commit.number)
        model.versions[commit.number] = old

    def check_result(self, model: Model, result: Any) -> None:
        assert result.version == model.last
        assert model.versions[model.last].origin == model.versions[self.version].origin


@dataclass(frozen=True)
class Compact:
    retention: Retention | None

    def on(self, machine: "Machine") -> "Compact":
        return self

    def run(self, machine: "Machine", store: Store) -> Any:
        return compact(Location(store, LAYOUT), retention=self.retention, address="none", progress=False)

    def refusal(self, model: Model) -> type[DrayError] | None:
        return None if model.versions else NotFoundError

    def check_commit(self, model: Model, commit: Commit) -> None:
        assert (commit.operation, commit.version) == ("compact", commit.number)
        files = model.versions[model.last].files
        model.floor = model.floor_by(self.retention, commit.number)
        model.versions[commit.number] = Version(files, commit.number)

    def check_result(self, model: Model, result: Any) -> None:
        assert result.version == model.last
        assert result.num_samples == len(model.versions[model.last].files)


names = st.sampled_from(NAMES)
no_grace, grace = (st.builds(Retention, keep=st.integers(1, 3), grace_s=st.just(grace_s)) for grace_s in (0.0, DAY_S))
subsets = st.just(frozenset[str]()) | st.frozensets(names, max_size=4)
builds = st.one_of(*(st.builds(Build, without=subsets, retention=kept) for kept in (st.none(), no_grace, grace)))
hold_names, backs = st.sampled_from("ab"), st.integers(0, 8)
others = st.one_of(
    st.builds(Gc, retention=no_grace),
    st.builds(Gc, retention=grace),
    st.builds(Compact, retention=st.none() | no_grace | grace),
    st.builds(Hold, name=hold_names, back=backs),
    st.builds(Release, name=hold_names),
    st.builds(Rollback, back=backs),
)
operations = builds | others
some_names = st.frozensets(names, min_size=1, max_size=3)
calls = st.integers(1, 8) | st.integers(1, 45)  # an operation has 3 to 60


# The machine


class Machine(RuleBasedStateMachine):
    """A dataset and a dict.

    Args:
        folder: An empty one.
        on_disk: Whether the dataset lies below it, or in memory.
        store_type: Of the writers.
    """

    def __init__(self, folder: Path, *, on_disk: bool = False, store_type: type[FaultyStore] = FaultyStore) -> None:
        super().__init__()
        self.folder = folder / "inputs"
        for old in (self.folder, folder / "out"):
            shutil.rmtree(old, ignore_errors=True)
        self.folder.mkdir()
        self.url = f"file://{folder}/out" if on_disk else f"memory://machine-{next(numbered)}"
        self.store_type = store_type
        self.plain = Store(self.url)
        self.files: dict[str, File] = {}
        self.time = 0
        self.model = Model()
        self.swept: set[int] = set()  # versions of which nothing may be stored any more
        self.named: dict[int, set[str]] = {}  # by each version

    def teardown(self) -> None:
        self.plain.delete(sorted(self.stored()))  # what is in memory would stay

    # Inputs

    @initialize(some=st.frozensets(names, min_size=1))
    def start(self, some: frozenset[str]) -> None:
        self.write(some)

    @rule(name=names)
    def touch(self, name: str) -> None:
        if name in self.files:
            self.time += 1
            self.files[name] = self.files[name][0], self.time
            os.utime(self.folder / f"{name}.{SUFFIX}", ns=(self.time, self.time))

    @rule(some=st.frozensets(names, min_size=1, max_size=4))
    def remove(self, some: frozenset[str]) -> None:
        for name in sorted(some & self.files.keys()):
            if len(self.files) > 1:
                del self.files[name]
                (self.folder / f"{name}.{SUFFIX}").unlink()

    def write(self, some: frozenset[str]) -> None:
        """Add or change samples: each gets a content of its own, of the same size."""
        for name in sorted(some):
            self.time += 1
            path = self.folder / f"{name}.{SUFFIX}"
            self.files[name] = b"%08d" % self.time, self.time
            path.write_bytes(self.files[name][0])
            os.utime(path, ns=(self.time, self.time))

    # Writers

    @rule(operation=builds, changed=st.just(frozenset[str]()) | some_names)
    def build(self, operation: Build, changed: frozenset[str]) -> None:
        self.write(changed)
        self.do(operation.on(self))

    @rule(operation=others)
    def manage(self, operation: Operation) -> None:
        self.do(operation.on(self))

    @rule(operation=operations, changed=some_names, at=calls, fault=st.sampled_from(Fault), again=st.booleans())
    def fail(self, operation: Operation, changed: frozenset[str], at: int, fault: Fault, again: bool) -> None:
        """And run it again, now or whenever."""
        self.write(changed)
        operation, result = operation.on(self), None
        before = deepcopy(self.model)
        try:
            result = operation.run(self, self.store_type(self.url, at=at, fault=fault))
        except Crash:
            pass
        except DrayError as exc:
            refusal = operation.refusal(before)
            not_retried = {Fault.NO_REACH, Fault.LOST_REPLY} | ({Fault.UNANSWERED} if self.plain.local_root else set())
            is_injected = fault in not_retried and isinstance(exc, StoreError)
            if not is_injected and type(exc) is not refusal:
                raise AssertionError("not what was injected") from exc
        self.judge(operation)
        if result is not None:
            operation.check_result(self.model, result)
        if again:
            self.do(operation.on(self))

    @rule(first=operations, changed=some_names, at=calls, second=operations)
    def interleave(self, first: Operation, changed: frozenset[str], at: int, second: Operation) -> None:
        self.write(changed)
        self.meet(first, at, second)

    def meet(self, first: Operation, at: int, second: Operation) -> bool:
        """The second writer does all its work right before the n-th call of the first; whether there was one."""
        first, second = first.on(self), second.on(self)
        states = [deepcopy(self.model)]

        def meanwhile() -> None:
            self.judge(first)
            states.append(deepcopy(self.model))
            try:
                self.do(second)
            except DrayError as exc:
                raise AssertionError("the writer in between failed") from exc
            states.append(deepcopy(self.model))

        try:
            result = first.run(self, self.store_type(self.url, at=at, fault=meanwhile))
        except DrayError as exc:
            self.judge(first)
            if type(exc) not in self.may_raise(first, [*states, self.model]):
                raise AssertionError("the writer that was met failed") from exc
            self.do(first.on(self))
            return True
        self.judge(first)
        states.append(self.model)
        assert any(_passes(first, state, result) for state in states), f"{result!r} was true at no moment"
        return len(states) > 2

    def may_raise(self, operation: Operation, states: Sequence[Model]) -> set[type[DrayError]]:
        """What an operation may raise during which the dataset was in these states."""
        errors = {refusal for state in states if (refusal := operation.refusal(state))}
        if isinstance(operation, Rollback):
            met = any(state.last != states[0].last or not state.keeps(operation.version) for state in states)
            errors |= {ConflictError} if met else set()
        return errors

    def do(self, operation: Operation) -> None:
        """Undisturbed."""
        store, num_before, stored_before = self.store_type(self.url), len(self.model.commits), self.stored()
        if refusal := operation.refusal(self.model):
            with pytest.raises(refusal) as raised:
                operation.run(self, store)
            assert raised.type is refusal
            assert self.stored() == stored_before, "a refused operation wrote"
            return
        result = operation.run(self, store)
        self.judge(operation)
        operation.check_result(self.model, result)
        num_made = len(self.model.commits) - num_before
        assert num_made <= 1
        if not num_made:
            new, gone = self.stored() - stored_before, stored_before - self.stored()
            assert not new, "a no-op wrote"
            assert not gone or isinstance(operation, Gc), "a no-op deleted"
        if isinstance(operation, Gc) or (isinstance(operation, Build | Compact) and num_made and num_before):
            self.check_swept(operation.retention, is_gc=isinstance(operation, Gc))

    def judge(self, operation: Operation) -> None:
        """Hold what was committed since against what the operation may do."""
        head = read_head(Location(self.plain, LAYOUT))
        number = head.number if head else 0
        found = [read_commit(Location(self.plain, LAYOUT), n) for n in range(1, number + 1)]
        known = self.model.commits
        assert found[: len(known)] == known, "a commit is gone or another one"
        for commit in found[len(known) :]:
            before = known[-1] if known else None
            if before is not None:
                assert (commit.open_intent, commit.open_shard) >= (before.open_intent, before.open_shard)
            operation.check_commit(self.model, commit)
            assert (commit.kept_from, read_holds(Location(self.plain, LAYOUT), commit)) == (
                self.model.floor,
                self.model.holds,
            )
            known.append(commit)

    # Readers

    @rule(back=backs)
    def read(self, back: int) -> None:
        """A kept version in full; a dropped one is not there."""
        number = self.number(back)
        if self.model.keeps(number):
            self.check_version(number)
        elif number not in self.model.versions or number in self.swept:
            with pytest.raises(NotFoundError):
                self.open(number)

    @rule()
    def read_all(self) -> None:
        for version in self.model.kept():
            self.check_version(version)

    @rule(name=st.sampled_from("ab"))
    def read_held(self, name: str) -> None:
        if name in self.model.holds:
            assert self.open(name).version == self.model.holds[name]
        else:
            with pytest.raises(NotFoundError):
                self.open(name)

    def open(self, version: int | str) -> Snapshot:
        return Snapshot.load(Location(self.plain, LAYOUT), read_version(Location(self.plain, LAYOUT), version))

    def check_version(self, number: int) -> None:
        snapshot = self.open(number)
        assert list(verify(snapshot, "full")) == []
        assert _samples_in(snapshot) == self.model.versions[number].samples
        accounting = snapshot.manifest.accounting
        assert accounting.inputs == accounting.packed == snapshot.num_samples == len(self.model.versions[number].files)

    def number(self, back: int) -> int:
        return max(1, len(self.model.commits) - back)

    # What is always true

    @invariant()
    def the_last_commit_is_the_models(self) -> None:
        head = read_head(Location(self.plain, LAYOUT))
        assert head == (self.model.commits[-1] if self.model.commits else None)
        if head is not None:
            assert (head.version, head.kept_from) == (self.model.last, self.model.floor)
            assert read_holds(Location(self.plain, LAYOUT), head) == self.model.holds
            snapshot = Snapshot.load(Location(self.plain, LAYOUT), head)
            assert _samples_in(snapshot) == self.model.versions[head.version].samples

    @invariant()
    def all_that_kept_versions_name_lies_there(self) -> None:
        assert self.names_of_kept() <= self.stored()

    def check_swept(self, retention: Retention | None, *, is_gc: bool) -> None:
        """After a gc, or what moved the floors: dropped versions are gone.

        Without a grace, nothing is stored but what kept versions name, and the logs.
        """
        has_grace = retention is None or retention.grace_s > 0
        if has_grace and not is_gc:
            return
        self.swept |= {version for version in self.model.versions if self.model.is_dropped_for_good(version)}
        if has_grace:
            return
        logs = {name for name in self.stored() if name.startswith((LAYOUT.commits, LAYOUT.intents, LAYOUT.holds))}
        assert self.stored() == self.names_of_kept() | logs

    def names_of_kept(self) -> set[str]:
        for version in self.model.kept():
            if version not in self.named:
                snapshot = self.open(version)
                numbers = [shard.number for shard in snapshot.shards]
                shards = {name for number in numbers for name in (LAYOUT.shard(number), LAYOUT.index(number))}
                self.named[version] = shards | set(snapshot.record_names())
        return set().union(*(self.named[version] for version in self.model.kept()))

    def stored(self) -> set[str]:
        """Every object, and what unfinished writes left."""
        folders = ("", LAYOUT.indexes, LAYOUT.manifests, LAYOUT.commits, LAYOUT.intents, LAYOUT.holds)
        listings = (self.plain.list_folder, self.plain.leftovers)
        return {info.name for folder in folders for listing in listings for info in listing(folder)}


def _passes(operation: Operation, model: Model, result: Any) -> bool:
    try:
        operation.check_result(model, result)
    except AssertionError:
        return False
    return True


def _samples_in(snapshot: Snapshot) -> dict[str, bytes]:
    """By index; a key that is there twice fails."""
    found: dict[str, bytes] = {}
    for shard in snapshot.shards:
        index = snapshot.index(shard)
        starts, sizes = index.offsets[:, 0].tolist(), index.sizes[:, 0].tolist()
        parts = snapshot.store.get_ranges(snapshot.layout.shard(shard.number), starts, sizes)
        assert not found.keys() & set(index.keys)
        found |= {key: bytes(data) for key, data in zip(index.keys, parts, strict=True)}
    return found


class _Inline:
    """An executor that works at once: so the calls of a build are in the same order every time."""

    def __init__(self, max_workers: int) -> None: ...

    def __enter__(self) -> "_Inline":
        return self

    def __exit__(self, *raised: object) -> None: ...

    def submit(self, function: Any, /, *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future

    def map(self, function: Any, items: Iterable[Any]) -> list[Any]:
        return [function(item) for item in items]


class _Overwriting(Store):
    """As a store that knows no conditional create, but for what it holds already: so that the probe finds nothing."""

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        store = Store(self.url)
        try:
            if store.get(name) == data:
                raise ExistsError(name)
        except NotFoundError:
            pass
        store.delete([name])
        store.put_new(name, data)


class OverwritingStore(FaultyStore, _Overwriting):
    """A faulty store whose `put_new` is not a conditional create."""


@contextmanager
def inline() -> Iterator[None]:
    """Builds and compactions without threads of their own."""
    with mock.patch.object(pack, EXECUTOR, _Inline), mock.patch.object(merge, EXECUTOR, _Inline):
        yield


def check(
    folder: Path,
    *,
    num_examples: int,
    num_steps: int,
    is_fixed: bool = False,
    machine: type[Machine] = Machine,
    **options: Any,
) -> None:
    """Run a machine; a fixed one does the same every time, and stops at its first failure as it is."""
    config = settings(
        max_examples=num_examples,
        stateful_step_count=num_steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    if is_fixed:
        config = settings(config, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False, database=None)
    make: Any = partial(machine, folder, **options)
    with inline():
        run_state_machine_as_test(make, settings=config)


def test_a_dataset_is_what_the_replies_to_its_writers_say(tmp_path: Path) -> None:
    """Laws 2 and 3 over histories of builds, other operations, crashes and writers that meet."""
    check(tmp_path, num_examples=80, num_steps=30)


def test_so_is_one_on_disk(tmp_path: Path) -> None:
    """With what unfinished writes leave there."""
    check(tmp_path, num_examples=10, num_steps=20, on_disk=True)


def test_without_the_conditional_create_it_is_not(tmp_path: Path) -> None:
    """Writers that meet overwrite each other's records, and histories alike on an honest store are fine."""
    with pytest.raises(AssertionError, match="a commit is gone or another one"):
        check(tmp_path, num_examples=300, num_steps=30, is_fixed=True, store_type=OverwritingStore)
    check(tmp_path, num_examples=60, num_steps=30, is_fixed=True)


ALL, SOME, KEEP_1 = frozenset[str](), frozenset(NAMES[1:3]), Retention(keep=1, grace_s=0.0)
FIRSTS: dict[str, Operation] = {
    "build": Build(ALL, None),
    "gc": Gc(KEEP_1),
    "compact": Compact(KEEP_1),
    "rollback": Rollback(1),
    "hold": Hold("a", 1),
}
SECONDS: dict[str, Operation] = {
    "same": Build(ALL, None),
    "other": Build(SOME, None),
    "sweeping": Build(SOME, KEEP_1),
    "gc": Gc(KEEP_1),
    "compact": Compact(None),
    "rollback": Rollback(1),
    "hold": Hold("a", 1),
}
FAST = [*(("build", second) for second in SECONDS), ("gc", "hold"), ("hold", "gc")]
_slow = [
    pytest.param(first, second, marks=pytest.mark.heavy)
    for first in FIRSTS
    for second in SECONDS
    if (first, second) not in FAST
]


@pytest.mark.parametrize(("first", "second"), [*FAST, *_slow])
def test_a_writer_may_be_met_at_each_of_its_calls(tmp_path: Path, first: str, second: str) -> None:
    """By a build of the same plan or another, a gc, a compaction, a rollback, a hold."""
    at, was_met = 0, True
    with inline():
        while was_met:
            at += 1
            machine = Machine(tmp_path)
            for changed in (NAMES[:4], NAMES[3:5], NAMES[5:6], NAMES[:1]):
                machine.write(frozenset(changed))
                if changed != NAMES[:1]:
                    machine.do(Build(ALL, None).on(machine))
            was_met = machine.meet(FIRSTS[first], at, SECONDS[second])
            machine.the_last_commit_is_the_models()
            machine.all_that_kept_versions_name_lies_there()
            machine.read_all()
            machine.teardown()
    assert at > 5


@pytest.mark.heavy
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("on_disk", [False, True])
def test_long_histories(tmp_path: Path, on_disk: bool) -> None:
    """The same for longer."""
    check(tmp_path, num_examples=150 if on_disk else 1000, num_steps=50, on_disk=on_disk)
