"""kill -9 of builds, in process and on Ray, and of a node: readers see whole versions, reruns end in the same bytes."""

# Long: one case, killed in process and on Ray, and one check of what readers then see.

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dray.pipelines import BuildReport, pickles_to_tars
from dray.pipelines.inputs.transform import Function
from dray.pipelines.versions.gc import gc
from dray.pipelines.versions.retention import Retention
from dray.shards import Snapshot, Store
from dray.shards.layout import Layout, Location
from dray.shards.verify import verify
from tests.conftest import Inputs
from tests.support import processes

pytestmark = pytest.mark.heavy

SUFFIX = "tensor.pyd"
NUM_CALLS = 50
NUM_SHARDS = 8
NUM_KILLS_ON_RAY = 10
NUM_SHARDS_ON_RAY = 14
CALLS = ("put_new", "takes_again", "get", "get_ranges", "head", "list_folder", "_delete", "leftovers", "sync")
RECORDS = ("commits", "intents")
NOTHING = Retention(keep=1, grace_s=0)
DEADLINE_S = 120

Content = dict[str, bytes]
Parts = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """An incremental build that is to be killed again and again.

    Attributes:
        inputs: What the second version is to hold.
        before: A folder with the first version.
        old: Key -> bytes of the first version.
        new: Key -> bytes of the second.
        cleared: All that is stored after an undisturbed build and a gc that keeps one version.
        num_packed: Shards that the second build packs.
        num_calls: Calls to the store that it makes.
    """

    inputs: Inputs
    before: Path
    old: Parts
    new: Parts
    cleared: Content
    num_packed: int
    num_calls: int = 0


def build(inputs: Inputs, output: Path, num_shards: int, function: Function = lambda key, parts: parts) -> BuildReport:
    """Keeps one version: the build deletes the shards of the other at its end."""
    return pickles_to_tars(
        inputs.folder, inputs.names, SUFFIX, output, "wds", function, num_shards, transform_version="1",
        keep=1, grace_s=0, address="none", progress=False,
    )  # fmt: skip


def rebuild(inputs: Inputs, output: Path, num_shards: int) -> list[str]:
    """Build; the keys of the samples that were packed."""
    packed = list[str]()

    def note(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        packed.append(key)
        return parts

    build(inputs, output, num_shards, note)
    return packed


def parts_in(inputs: Inputs) -> Parts:
    return {name.replace(".", "-"): inputs.part(name, SUFFIX) for name in inputs.names}


def content(folder: Path) -> Content:
    """All that is stored, unfinished writes too, but for the records that hold a time and a write id."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.parent.name not in RECORDS}


def tars(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> inode and time of each stored shard."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("wds-*.tar")}


def clear(output: Path) -> Content:
    """What is left after a gc that keeps one version."""
    gc(Location(Store(output), Layout("wds")), NOTHING)
    return content(output)


def read_whole(output: Path) -> tuple[int, Parts]:
    """The last version's number and samples, every byte of it checked."""
    snapshot = Snapshot.open(output, "wds")
    assert list(verify(snapshot, "full")) == []
    parts = {key: snapshot.read_row(shard, index, row)[SUFFIX] for shard in snapshot.shards
             for index in [snapshot.index(shard)] for row, key in enumerate(index.keys)}  # fmt: skip
    assert len(parts) == snapshot.num_samples
    return snapshot.version, parts


def names_of_last(output: Path) -> set[str]:
    """The objects of the last version, but for its records."""
    snapshot = Snapshot.open(output, "wds")
    numbers = [shard.number for shard in snapshot.shards]
    shards = {name for number in numbers for name in (snapshot.layout.shard(number), snapshot.layout.index(number))}
    return shards | set(snapshot.record_names())


def make_case(folder: Path, num_samples: int, num_shards: int, change: Callable[[Inputs], Inputs]) -> Case:
    """Write the inputs, build the first version, change the inputs, build them once undisturbed."""
    inputs = Inputs(folder / "inputs", [f"sample.{number:04d}" for number in range(num_samples)], (SUFFIX,))
    inputs.folder.mkdir()
    for number, name in enumerate(inputs.names):
        inputs.path(name, SUFFIX).write_bytes(f"{name} ".encode() * (number % 97))
    build(inputs, folder / "before", num_shards)
    old = parts_in(inputs)
    inputs = change(inputs)
    shutil.copytree(folder / "before", folder / "undisturbed")
    report = build(inputs, folder / "undisturbed", num_shards)
    assert report.version == 2
    return Case(
        inputs=inputs,
        before=folder / "before",
        old=old,
        new=parts_in(inputs),
        cleared=clear(folder / "undisturbed"),
        num_packed=report.num_shards - report.num_reused,
    )


def check_reader(case: Case, output: Path) -> int:
    """The reader sees the old version or the new one, whole."""
    version, parts = read_whole(output)
    assert parts == {1: case.old, 2: case.new}[version]
    return version


def check_end(case: Case, output: Path, stored: dict[str, tuple[int, int]]) -> None:
    """After the rerun: the new version, whole; what was stored when the build was killed was not touched again."""
    assert read_whole(output) == (2, case.new)
    now = tars(output)
    assert {name: stored[name] for name in stored.keys() & now.keys()}.items() <= now.items()
    assert stored.keys() - now.keys() <= tars(case.before).keys()


# In process


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """40 samples in 8 shards; then two changed, one removed, four new: 4 shards are packed, 5 stay."""

    def change(inputs: Inputs) -> Inputs:
        for number in (7, 23):
            inputs.path(inputs.names[number], SUFFIX).write_bytes(b"changed")
        new = [f"sample.{number}" for number in range(9000, 9004)]
        for name in new:
            inputs.path(name, SUFFIX).write_bytes(name.encode() * 99)
        return Inputs(inputs.folder, [name for name in inputs.names if name != inputs.names[31]] + new, inputs.suffixes)

    folder = tmp_path_factory.mktemp("kill")
    case = make_case(folder, 40, NUM_SHARDS, change)
    assert case.num_packed == 4
    shutil.copytree(case.before, folder / "counted")
    num_calls = run_and_die(case, folder / "counted", 0, "never")
    return Case(case.inputs, case.before, case.old, case.new, case.cleared, case.num_packed, num_calls)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(output: Path, fatal: int, when: str) -> Iterator[int]:
    """Every call to the output's store asks this for its number; the process dies before or after one of them."""
    numbers, url = count(1), Store(output).url

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Store, *args: Any, **kwargs: Any) -> Any:
            number = next(numbers) if self.url == url else 0
            if number == fatal and when == "before":
                die()
            try:
                return method(self, *args, **kwargs)
            finally:
                if number == fatal and when == "after":
                    die()

        return call

    for name in CALLS:
        setattr(Store, name, counted(getattr(Store, name)))
    return numbers


def build_and_die(inputs: Inputs, output: Path, fatal: int, when: str) -> None:
    """Runs in a process of its own."""
    numbers = count_calls(output, fatal, when)
    build(inputs, output, NUM_SHARDS)
    output.with_suffix(".calls").write_text(str(next(numbers) - 1))


def run_and_die(case: Case, output: Path, fatal: int, when: str) -> int:
    """Build in another process, which dies before or after a call; how many it made where it did not die."""
    process = processes.start(build_and_die, case.inputs, output, fatal, when)
    process.join(DEADLINE_S)
    assert process.exitcode == (-signal.SIGKILL if fatal else 0)
    return 0 if fatal else int(output.with_suffix(".calls").read_text())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", range(NUM_CALLS))
def test_a_build_killed_at_any_call_to_the_store_is_finished_by_the_next(
    case: Case, tmp_path: Path, point: int, when: str
) -> None:
    """Laws 1 to 3; and a gc leaves what it leaves after an undisturbed build."""
    output, fatal = tmp_path / "out", 1 + point * (case.num_calls - 1) // (NUM_CALLS - 1)
    assert case.num_calls >= NUM_CALLS
    shutil.copytree(case.before, output)
    run_and_die(case, output, fatal, when)
    for other in ("given-up", "changed"):
        shutil.copytree(output, tmp_path / other)
    version, stored = check_reader(case, output), tars(output)
    packed = rebuild(case.inputs, output, NUM_SHARDS)
    assert packed == ([] if version == 2 else keys_of_others(output, stored))
    check_end(case, output, stored)
    assert clear(output) == case.cleared
    check_gc_then_rerun(case, tmp_path / "given-up")
    check_rerun_of_other_inputs(case, tmp_path / "changed")


def keys_of_others(output: Path, stored: Collection[str]) -> list[str]:
    """The samples, in order, of those shards of the last version that were not stored then."""
    snapshot = Snapshot.open(output, "wds")
    missing = [shard for shard in snapshot.shards if snapshot.layout.shard(shard.number) not in stored]
    return [key for shard in missing for key in snapshot.index(shard).keys]


def check_gc_then_rerun(case: Case, output: Path) -> None:
    """A gc takes away all that the killed build left; a build after it makes the new version all the same."""
    version = check_reader(case, output)
    assert clear(output) == (content(case.before) if version == 1 else case.cleared)
    assert check_reader(case, output) == version
    build(case.inputs, output, NUM_SHARDS)
    assert read_whole(output)[1] == case.new
    assert clear(output).keys() == names_of_last(output)


def check_rerun_of_other_inputs(case: Case, output: Path) -> None:
    """A sample was removed before the rerun: it has another plan, and what the killed build stored serves it too."""
    inputs, stored = Inputs(case.inputs.folder, case.inputs.names[1:], case.inputs.suffixes), tars(output)
    packed = rebuild(inputs, output, NUM_SHARDS)
    assert packed == keys_of_others(output, stored)
    assert stored.keys() - tars(case.before).keys() <= names_of_last(output)
    assert read_whole(output)[1] == parts_in(inputs)
    assert clear(output).keys() == names_of_last(output)


def build_large(inputs: Inputs, output: Path) -> None:
    build(inputs, output, 2)


def test_a_build_killed_while_it_writes_a_shard_leaves_no_truncated_one(tmp_path: Path) -> None:
    """Half a shard lies under another name; the next build is not disturbed, and a gc deletes it."""
    inputs = Inputs(tmp_path / "inputs", ["a", "b"], (SUFFIX,))
    inputs.folder.mkdir()
    for name in inputs.names:
        inputs.path(name, SUFFIX).write_bytes(os.urandom(48 << 20))
    build_large(inputs, tmp_path / "undisturbed")
    size = (tmp_path / "undisturbed" / "wds-000001.tar").stat().st_size
    for attempt in range(50):
        output = tmp_path / str(attempt)
        staged, whole = output / "wds-000001.tar#1", output / "wds-000001.tar"
        process = processes.start(build_large, inputs, output)
        while process.is_alive() and not whole.exists() and not (staged.exists() and staged.stat().st_size > size // 3):
            pass
        process.kill()
        process.join()
        if staged.exists() and not whole.exists() and staged.stat().st_size < size:
            break
        shutil.rmtree(output)
    else:
        pytest.fail("no build was killed in the middle of a shard")
    assert tars(output).keys() == {"wds-000000.tar"}
    kept = tars(output)
    report = build(inputs, output, 2)
    assert (report.version, report.num_reused) == (1, 1)
    assert kept.items() <= tars(output).items()
    assert content(output).keys() - content(tmp_path / "undisturbed").keys() == {"wds-000001.tar#1"}
    assert clear(output) == content(tmp_path / "undisturbed")


# On Ray

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 << 20}
head = {"num_cpus": 0, "include_dashboard": False, "dashboard_port": 0}  # the default port may be taken
cluster = Cluster(initialize_head=True, head_node_args=head | small)
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, *[node.node_id for node in nodes], flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes[int(line)], allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""

# A driver whose tasks wait as soon as a given number of shards is stored, until they are let go on.
DRIVER = """
import json, os, sys, time
from pathlib import Path
import ray
from dray.pipelines import pickles_to_tars

folder, output, marks, most, num_shards, names = json.loads(sys.argv[1])
output, marks = Path(output), Path(marks)
num_before = len(list(output.glob("wds-*.tar")))

def wait_for_a_kill(key, parts):
    me = f"{ray.get_runtime_context().get_node_id()}-{os.getpid()}"
    (marks / f"working-{me}").touch()
    while len(list(output.glob("wds-*.tar"))) - num_before >= most and not (marks / "go").exists():
        (marks / f"waiting-{me}").touch()
        time.sleep(0.01)
    return parts

ray.init(log_to_driver=False)
print("ready", flush=True)
input()
report = pickles_to_tars(
    folder, names, "tensor.pyd", output, "wds", wait_for_a_kill, transform_version="1",
    min_num_shards=num_shards, progress=False,
)
print("report", report.version, report.num_shards - report.num_reused, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Nodes:
    """A cluster: a head that runs nothing and two nodes of one CPU."""

    process: subprocess.Popen[str]
    environment: dict[str, str]
    nodes: tuple[str, ...]

    def kill(self, node: int) -> None:
        """SIGKILL of all its own processes."""
        say(self.process, str(node))
        assert hear(self.process) == "killed"


@contextmanager
def ray_nodes() -> Iterator[Nodes]:
    """In a process of its own; a token protects its ports, which are open to the network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with started(CLUSTER, environment=environment) as process:
        address, *nodes = hear(process).split()
        yield Nodes(process, environment | {"RAY_ADDRESS": address}, tuple(nodes))
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(DEADLINE_S)


@contextmanager
def started(code: str, *args: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A Python process; killed at the end, if it still runs."""
    command = [sys.executable, "-c", code, *args]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def hear_report(driver: subprocess.Popen[str]) -> tuple[int, int]:
    """Version and number of shards packed; before it Ray may say that a node died."""
    assert driver.stdout is not None
    report = next(line for line in driver.stdout if line.startswith("report "))
    _, version, num_packed = report.split()
    return int(version), int(num_packed)


def driver(nodes: Nodes, case: Case, output: Path, marks: Path, most: int) -> Any:
    """A driver that is connected and waits for a line to begin; its tasks wait when `most` shards are stored."""
    options = json.dumps([str(case.inputs.folder), str(output), str(marks), most, NUM_SHARDS_ON_RAY, case.inputs.names])
    return started(DRIVER, options, environment=nodes.environment)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def ray_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """42 samples in 14 shards; then one changed in each of 12 shards."""

    def change(inputs: Inputs) -> Inputs:
        for name in inputs.names[:36:3]:
            inputs.path(name, SUFFIX).write_bytes(b"changed")
        return inputs

    case = make_case(tmp_path_factory.mktemp("ray"), 42, NUM_SHARDS_ON_RAY, change)
    assert case.num_packed == NUM_SHARDS_ON_RAY - 2
    return case


def is_running(mark: Path) -> bool:
    """Whether the worker that left a mark is still there."""
    return Path("/proc", mark.name.rpartition("-")[2]).exists()


@pytest.mark.parametrize("num_stored", range(NUM_KILLS_ON_RAY))
def test_a_driver_on_ray_killed_at_any_time_is_followed_by_the_next(
    cluster: Nodes, ray_case: Case, tmp_path: Path, num_stored: int
) -> None:
    """It starts at once, while tasks of the dead one may still run."""
    output, marks = tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    shutil.copytree(ray_case.before, output)
    start = partial(driver, cluster, ray_case, output, marks)
    with start(num_stored) as doomed, start(1000) as second:
        assert hear(doomed) == hear(second) == "ready"
        say(doomed)
        wait_for(lambda: len(tars(output)) >= NUM_SHARDS_ON_RAY + num_stored and any(marks.glob("waiting-*")))
        stored = tars(output)
        (marks / "go").touch()
        doomed.send_signal(signal.SIGKILL)
        say(second)
        while second.stdout not in select.select([second.stdout], [], [], 0)[0]:
            check_reader(ray_case, output)
        version, num_packed = hear_report(second)
        assert (version, doomed.wait()) == (2, -signal.SIGKILL)
        assert num_packed <= NUM_SHARDS_ON_RAY - 2 + NUM_SHARDS_ON_RAY - len(stored)
        assert second.wait(DEADLINE_S) == 0
    check_end(ray_case, output, stored)
    wait_for(lambda: not any(map(is_running, marks.glob("*-*"))))
    assert clear(output) == ray_case.cleared


@pytest.mark.parametrize("num_stored", [0, 5])
def test_a_node_killed_in_the_middle_of_its_work_leaves_no_trace(
    ray_case: Case, tmp_path: Path, num_stored: int
) -> None:
    """Its tasks are done by the node that is left; the bytes are those of a build in process."""
    output, marks = tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    shutil.copytree(ray_case.before, output)
    with ray_nodes() as nodes, driver(nodes, ray_case, output, marks, num_stored) as building:
        assert hear(building) == "ready"
        say(building)
        wait_for(lambda: all(any(marks.glob(f"waiting-{node}-*")) for node in nodes.nodes))
        assert len(tars(output)) >= NUM_SHARDS_ON_RAY + num_stored
        nodes.kill(1)
        (marks / "go").touch()
        assert hear_report(building)[0] == 2
        assert building.wait(DEADLINE_S) == 0
    assert read_whole(output) == (2, ray_case.new)
    assert clear(output) == ray_case.cleared
