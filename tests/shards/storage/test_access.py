"""Credentials and endpoints as people have them: options, variables, shared files, programs and roles."""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards import CallError, DeniedError, Store, StoreError
from tests.shards.storage.test_rights import SECRET, _errors_of, _shown

Configure = Callable[..., None]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without AWS files, an environment without AWS variables, and a machine without a role."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture
def configure(home: Path) -> Configure:
    """Writes sections of `~/.aws/config` or, if they hold keys, of `~/.aws/credentials`."""

    def write(file: str, **sections: dict[str, str]) -> None:
        lines = [
            line
            for section, values in sections.items()
            for line in [f"[{section}]", *(f"{name} = {value}" for name, value in values.items())]
        ]
        (home / ".aws" / file).write_text("\n".join(lines) + "\n")

    return write


def keys(server: SeaweedServer) -> dict[str, str]:
    options = server.storage_options
    return {f"aws_{name}": options[name] for name in ("access_key_id", "secret_access_key")}


def settings(server: SeaweedServer) -> dict[str, str]:
    return {"endpoint_url": server.endpoint, "region": "us-east-1"}


def check_works(server: SeaweedServer, options: dict[str, Any] | None = None) -> Store:
    """Writes and reads, also by a copy from a pickle, which holds no secret that was not given."""
    store = Store(server.url(f"access/{time.monotonic_ns()}"), options)
    store.put_new("a", b"cargo")
    pickled = pickle.dumps(store)
    assert pickle.loads(pickled).get("a") == b"cargo"
    assert server.storage_options["secret_access_key"].encode() not in pickled
    return store


# Credentials


def test_a_profile_of_the_shared_files_is_used(
    s3: SeaweedServer, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, region and endpoint of the default profile, or of the one that AWS_PROFILE names."""
    configure("credentials", default=keys(s3), lab={**keys(s3), "aws_secret_access_key": SECRET})
    configure("config", default=settings(s3), **{"profile lab": settings(s3)})
    check_works(s3)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    errors = _errors_of(Store(s3.url("access/wrong")))
    assert {type(error) for error in errors} == {DeniedError}
    shown = "".join(map(_shown, errors))
    assert not [value for value in (SECRET, s3.storage_options["access_key_id"]) if value in shown]


def test_an_endpoint_of_the_services_section_is_used(s3: SeaweedServer, configure: Configure, home: Path) -> None:
    """As the AWS command line does, and before the profile's own."""
    configure("credentials", default=keys(s3))
    (home / ".aws/config").write_text(
        "[default]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:9\nservices = here\n"
        f"[services here]\ns3 =\n  endpoint_url = {s3.endpoint}\n"
    )
    check_works(s3)


def test_a_program_may_give_credentials(s3: SeaweedServer, configure: Configure, home: Path) -> None:
    """`credential_process`, as vaults offer; its files may lie elsewhere."""
    found = {"Version": 1, "AccessKeyId": keys(s3)["aws_access_key_id"]}
    (home / "keys.json").write_text(json.dumps({**found, "SecretAccessKey": keys(s3)["aws_secret_access_key"]}))
    configure("config", default={**settings(s3), "credential_process": f"cat {home}/keys.json"})
    check_works(s3)


class _Role(BaseHTTPRequestHandler):
    """What a machine or a container is asked for its role's credentials."""

    def do_PUT(self) -> None:
        self._reply("token")

    def do_GET(self) -> None:
        is_list = self.path.endswith("/security-credentials/")
        self._reply("role" if is_list else json.dumps(self.server.role))  # type: ignore[attr-defined]

    def _reply(self, text: str) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def role(s3: SeaweedServer) -> Iterator[Any]:
    """A server on loopback that gives the S3 server's keys; `asked` lists its requests."""
    ends = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Role) as server:
        server.asked = []  # type: ignore[attr-defined]
        server.role = {  # type: ignore[attr-defined]
            "AccessKeyId": keys(s3)["aws_access_key_id"],
            "SecretAccessKey": keys(s3)["aws_secret_access_key"],
            "Code": "Success",
            "Expiration": ends,
            "Token": "",
        }
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["machine", "container"])
def test_a_role_is_used_where_nothing_else_is_known(
    s3: SeaweedServer, home: Path, role: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of the machine or the container; it is asked once, and not at all by who has keys."""
    place = f"http://127.0.0.1:{role.server_port}"
    if kind == "machine":
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", place)
    else:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{place}/role")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    Store(s3.url("access"), s3.storage_options).head("a")
    assert role.asked == []
    check_works(s3)
    assert 0 < len(role.asked) <= 6


def test_no_credentials_is_said_at_once(s3: SeaweedServer, configure: Configure) -> None:
    """With all places that were looked at, and without a request to any machine."""
    configure("config", default=settings(s3))
    store, started = Store(s3.url("access")), time.monotonic()
    errors = _errors_of(store)
    assert time.monotonic() - started < 10
    for error in errors:
        assert type(error) is DeniedError
        for words in (
            "no credentials found: looked at",
            "AWS_ACCESS_KEY_ID",
            "~/.aws/credentials",
            "'default'",
            "role",
        ):
            assert words in str(error)
        assert "169.254" not in _shown(error)


def test_a_profile_that_is_not_there_is_named(
    s3: SeaweedServer, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It matters only to who needs it."""
    configure("credentials", default=keys(s3))
    monkeypatch.setenv("AWS_PROFILE", "lba")
    with pytest.raises(DeniedError, match=r"no credentials: .*\(lba\) could not be found"):
        Store(s3.url("access"), {"endpoint": s3.endpoint}).head("a")
    Store(s3.url("access"), s3.storage_options).head("a")


def test_an_sso_session_that_has_ended_says_so(s3: SeaweedServer, configure: Configure) -> None:
    """In botocore's words, which name the remedy."""
    sso = {
        "sso_start_url": "https://sso.invalid",
        "sso_region": "us-east-1",
        "sso_account_id": "1",
        "sso_role_name": "r",
    }
    configure("config", default={**settings(s3), **sso})
    with pytest.raises(DeniedError, match=r"no credentials: .*SSO"):
        Store(s3.url("access")).head("a")


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_no_credentials_elsewhere_is_said_as_well(scheme: str, home: Path) -> None:
    """The client would name the address of the machine's identity. A proxy keeps it from going there."""
    options = {"proxy_url": "http://127.0.0.1:9", "retry_config": {"max_retries": 0}}
    store = Store(f"{scheme}://bucket/a", options | ({"account_name": "lab"} if scheme == "az" else {}))
    with pytest.raises(DeniedError, match="no credentials found: looked at storage_options") as caught:
        store.head("a")
    assert "169.254" not in _shown(caught.value)


@pytest.mark.parametrize("name", ["access_key_id", "secret_access_key", "token", "region"])
def test_a_value_with_a_line_break_is_a_wrong_call(
    s3: SeaweedServer, name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As read from a file that was not stripped; the client would panic. It is not shown."""
    with pytest.raises(CallError, match=f"{name} holds a line break") as caught:
        Store(s3.url("access"), {**s3.storage_options, name: f"{SECRET}\n"})
    assert SECRET not in _shown(caught.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}\r")
    with pytest.raises(CallError, match="AWS_SECRET_ACCESS_KEY holds a line break"):
        Store(s3.url("access"))


# Endpoints


def test_the_nearest_endpoint_wins(s3: SeaweedServer, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option, then AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile; http:// needs no further option."""
    configure("credentials", default=keys(s3))
    configure("config", default=settings(s3))
    check_works(s3)
    dead = "http://127.0.0.1:9"
    configure("config", default={"endpoint_url": dead})
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    check_works(s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", dead)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
    check_works(s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", dead)
    for name in ("endpoint", "endpoint_url", "aws_endpoint", "AWS_ENDPOINT_URL"):
        check_works(s3, {name: s3.endpoint})


@pytest.mark.parametrize("name", ["endpoint", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:9000", "localhost:9000", "minio", "//minio", "http://", "http://h:99999", "ftp://h", "http://a b"],
)
def test_an_endpoint_that_is_none_is_a_wrong_call(
    home: Path, name: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the option or variable, and what was expected; the client would panic, at the first request."""
    options = {"endpoint": endpoint} if name == "endpoint" else {}
    monkeypatch.setenv(name, endpoint)
    with pytest.raises(CallError, match=f"{name}.* is no endpoint: expected https://host or http://host:port"):
        Store("s3://bucket/a", options)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1}, {"timeout": 1e300}, {"timeout": ""}, {"connect_timeout": "-5s"}, {"proxy_url": "::"},
        {"allow_http": "maybe"}, {"skip_signature": "perhaps"}, {"retry_config": 5},
        {"retry_config": {"max_retries": "x"}}, {"retry_config": {"max_retries": -1}},
        {"bucket": "c"}, {"credential_provider": 5}, {"region": None},
        {"checksum_algorithm": "foo"}, {"conditional_put": "z"},
    ],
)  # fmt: skip
def test_no_option_ends_in_a_panic(home: Path, options: dict[str, Any]) -> None:
    """Whatever its value: an error that the caller can catch."""
    with pytest.raises(CallError):
        Store("s3://bucket/a", {"access_key_id": "a", "secret_access_key": "b", **options})


WAIT = """
import socket, sys
from dray.shards import Store, StoreError
from dray.shards.storage import retry
retry.SILENT_S = 0.2
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as silent:
    try:
        Store("s3://bucket/a", {"timeout": "1s", "retry_config": {"max_retries": 0}}).list_folder()
    except StoreError as exc:
        print(type(exc).__name__, exc)
"""


def test_a_dead_endpoint_is_named_while_it_is_waited_for(home: Path, unused_port: int) -> None:
    """On standard error after a while, and in the error: the endpoint, and who named it."""
    place = f"http://127.0.0.1:{unused_port}"
    variables = {"AWS_ENDPOINT_URL_S3": place, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    command = [sys.executable, "-c", WAIT, str(unused_port)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=True)
    named = f"endpoint {place} from AWS_ENDPOINT_URL_S3"
    assert done.stderr == f"dray: waiting for an answer: list s3://bucket/a; {named}\n"
    assert done.stdout.startswith("StoreError cannot list s3://bucket/a: ")
    assert done.stdout.endswith(f"(no answer in time; {named})\n")


def test_a_refused_connection_says_so(home: Path, unused_port: int) -> None:
    """The client's message leaves out why."""
    options = {"access_key_id": "a", "secret_access_key": "b", "retry_config": {"max_retries": 1}}
    place = f"http://user:{SECRET}@127.0.0.1:{unused_port}"
    with pytest.raises(
        StoreError, match=r"\(Connection refused; endpoint http://\*\*\*@127.* from option 'endpoint'\)"
    ):
        Store("s3://bucket/a", {**options, "endpoint": place}).list_folder()
