"""The machine of builds, for a dataset that is a copy: of a source that changes while copies crash and meet."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import rule

from dray.pipelines import write_samples
from dray.pipelines.resharding.choose import Choice
from dray.pipelines.resharding.plan import Shape
from dray.pipelines.resharding.reshard import CopySpec, reshard
from dray.pipelines.resharding.source import open_source
from dray.pipelines.writing import version
from dray.shards import ConflictError, DrayError, NotFoundError, Snapshot, Store
from dray.shards.layout import Location
from dray.shards.log import Commit
from tests.laws.test_machine import (
    EXECUTOR,
    LAYOUT,
    SUFFIX,
    Build,
    Compact,
    Fault,
    Machine,
    Model,
    Operation,
    Version,
    _Inline,
    _samples_in,
    calls,
    check,
    grace,
    no_grace,
    others,
    some_names,
    subsets,
)


@dataclass(frozen=True)
class Copy(Build):
    """A copy of a dataset that holds the samples of the files: one for each content, as its URL is recorded."""

    def run(self, machine: Machine, store: Store) -> Any:
        samples = {name.replace(".", "-"): content for name, (content, _) in sorted(self.files.items())}
        source = f"memory://source-{sha256(repr(sorted(self.files.items())).encode()).hexdigest()}"
        try:
            Snapshot.open(source)
        except NotFoundError:
            given = ({"__key__": key, SUFFIX: content} for key, content in samples.items())
            write_samples(given, source, samples_per_shard=2, progress=False)
        spec = CopySpec(
            source=open_source(source, "wdshards"),
            location=Location(store, LAYOUT),
            shape=Shape.of(3, None, None, None),
            choice=Choice(),
            address="none",
            progress=False,
        )
        return reshard(spec, retention=self.retention)

    def check_commit(self, model: Model, commit: Commit) -> None:
        assert not model.last or model.versions[model.last].files != self.files, "a no-op copy committed"
        assert (commit.operation, commit.version) == ("write", commit.number)
        model.floor = model.floor_by(self.retention, commit.number)
        model.versions[commit.number] = Version(self.files, commit.number)


copies = st.one_of(*(st.builds(Copy, without=subsets, retention=kept) for kept in (st.none(), no_grace, grace)))
managing = others.filter(lambda operation: not isinstance(operation, Compact))
operations = copies | managing


class CopyMachine(Machine):
    """A dataset that only copies and what manages versions write to."""

    @rule(operation=copies, changed=st.just(frozenset[str]()) | some_names)
    def build(self, operation: Build, changed: frozenset[str]) -> None:
        self.write(changed)
        self.do(operation.on(self))

    @rule(operation=managing)
    def manage(self, operation: Operation) -> None:
        self.do(operation.on(self))

    @rule(operation=operations, changed=some_names, at=calls, fault=st.sampled_from(Fault), again=st.booleans())
    def fail(self, operation: Operation, changed: frozenset[str], at: int, fault: Fault, again: bool) -> None:
        super().fail(operation, changed, at, fault, again)

    @rule(first=operations, changed=some_names, at=calls, second=operations)
    def interleave(self, first: Operation, changed: frozenset[str], at: int, second: Operation) -> None:
        self.write(changed)
        self.meet(first, at, second)

    def may_raise(self, operation: Operation, states: Any) -> set[type[DrayError]]:
        """A copy does not replace what another writer made meanwhile."""
        met = isinstance(operation, Copy) and any(state.last != states[0].last for state in states)
        return super().may_raise(operation, states) | ({ConflictError} if met else set())

    def check_version(self, number: int) -> None:
        snapshot = self.open(number)
        assert _samples_in(snapshot) == self.model.versions[number].samples
        assert snapshot.manifest.accounting.inputs == 0


def test_a_copy_is_what_the_replies_to_its_writers_say(tmp_path: Path) -> None:
    """Laws 2 and 3 over histories of copies, other operations, crashes and writers that meet."""
    with mock.patch.object(version, EXECUTOR, _Inline):
        check(tmp_path, num_examples=25, num_steps=25, machine=CopyMachine)
