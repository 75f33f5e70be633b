"""Fixtures that several test files share."""

import io
import os
import pickle
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from dray.cluster.cli import app
from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards.storage import disk
from tests.support.azurite import AzuriteServer, why_not
from tests.support.chaos import Chaos


@pytest.fixture(scope="session")
def s3() -> Iterator[SeaweedServer]:
    """A real S3 server, started for the first test that asks and shared by all: write below a folder of your own."""
    with SeaweedServer() as server:
        yield server


@pytest.fixture(scope="session")
def azure() -> Iterator[AzuriteServer]:
    """A real Azure Blob server, as `s3` is an S3 server."""
    if reason := why_not():
        pytest.skip(reason)
    with AzuriteServer() as server:
        yield server


@pytest.fixture
def chaos(s3: SeaweedServer) -> Iterator[Chaos]:
    """A proxy without rules before the S3 server that all tests share."""
    with Chaos(int(s3.endpoint.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def unused_port() -> int:
    """A port on loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Place:
    """An empty folder of some store: what `Store`, `build` and every reader take."""

    url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # on S3 they hold a secret


@pytest.fixture(params=["memory", "disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A fresh place on each kind of store in turn; a server starts only for a test that reaches it."""
    return place_of(request, tmp_path)


def place_of(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A fresh place on the kind of store that a fixture's parameter names."""
    name = uuid.uuid4().hex
    if request.param == "memory":
        return Place(f"memory://{name}")
    if request.param == "disk":
        return Place(f"file://{tmp_path}/{name}")
    server: SeaweedServer | AzuriteServer = request.getfixturevalue(request.param)
    return Place(server.url(name), server.storage_options)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A folder of input files: of each name one file a suffix."""

    folder: Path
    names: list[str]
    suffixes: tuple[str, ...]

    def path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}.{suffix}"

    def part(self, name: str, suffix: str) -> bytes:
        return self.path(name, suffix).read_bytes()


class MakeInputs(Protocol):
    def __call__(self, num_samples: int, suffixes: tuple[str, ...] = ("tensor.pyd",)) -> Inputs: ...


@pytest.fixture
def make_inputs(tmp_path: Path) -> MakeInputs:
    """Writes samples of different sizes: names hold dots, contents are pickled bytes."""

    def make(num_samples: int, suffixes: tuple[str, ...] = ("tensor.pyd",)) -> Inputs:
        folder = tmp_path / "inputs"
        folder.mkdir()
        inputs = Inputs(folder, [f"sample.{number:04d}" for number in range(num_samples)], suffixes)
        for number, name in enumerate(inputs.names):
            for suffix in suffixes:
                inputs.path(name, suffix).write_bytes(pickle.dumps(f"{name} {suffix} ".encode() * (number % 97)))
        return inputs

    return make


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk of `tmp_path/out`, in order: relative paths, a file's under the name that it gets then."""
    paths: list[str] = []

    def record(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        paths.append(os.path.relpath(path, tmp_path / "out").removesuffix("#1"))
        os.close(descriptor)

    monkeypatch.setattr(disk, "fsync", record)
    return paths


class Outcome(NamedTuple):
    """What a run of the command left."""

    code: int
    out: str
    err: str


Dray = Callable[..., Outcome]


@pytest.fixture
def dray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dray:
    """Runs a command line in this process: words, and what lies on standard input."""
    monkeypatch.setenv("DRAY_TRACEBACK", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*words: object, stdin: str = "") -> Outcome:
        monkeypatch.setattr("sys.argv", ["dray", *map(str, words)])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            app.main()
        return Outcome(int(end.value.code or 0), *capsys.readouterr())

    return run
