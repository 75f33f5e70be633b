"""The client of a cluster's jobs: addresses, tokens and silence are explained, and no secret is in a message."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dray.cluster.jobs.client import dashboard_url, job_client
from dray.shards.errors import CallError, ClusterError, UnknownJobError, UnreachableError

TOKEN = "planted-token"
WRONG = json.dumps({"Authorization": "Bearer planted"})
Answer = Callable[[str, str | None], tuple[int, object]]  # path, header of the token -> status, body


def open_cluster(path: str, token: str | None) -> tuple[int, object]:
    """Answers everybody."""
    if path == "/api/version":
        return 200, {"version": "4", "ray_version": "2.60.0"}
    return (404, "Job j does not exist") if path == "/api/jobs/j" else (503, "starting")


def token_cluster(path: str, token: str | None) -> tuple[int, object]:
    """Answers those who have the token."""
    if token is None:
        return 401, "Unauthorized"
    return open_cluster(path, token) if token == f"Bearer {TOKEN}" else (403, "Forbidden")


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], int]]:
    """Starts a server that answers as Ray's dashboard does; returns its port."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Answer) -> int:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.path, self.headers.get("Authorization"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        servers.append(http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, "http://head:8265"),
        ("head:6379", "http://head:8265"),
        ("ray://head:10001", "http://head:8265"),
        ("auto", "expected the URL"),
        ("http://", "expected the URL"),
    ],
)
def test_an_address_of_another_kind_is_refused_with_the_right_one(address: str | None, words: str) -> None:
    """Ray's other addresses, which `dray build` takes, are no dashboards."""
    with pytest.raises(CallError, match=words):
        dashboard_url(address)


@pytest.mark.parametrize("address", ["http://me:planted@head:8265", "me:planted@head:8265"])
def test_a_password_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    """Job records and errors repeat addresses."""
    with pytest.raises(CallError) as refusal:
        job_client(address)
    assert "planted" not in str(refusal.value)


def test_the_given_address_wins_over_the_environment(
    serve: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own client takes that of the environment."""
    url = f"http://127.0.0.1:{serve(open_cluster)}"
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert job_client(f"{url}/").get_address() == url
    with pytest.raises(UnreachableError, match="no answer"):
        job_client()


def test_a_cluster_elsewhere_without_a_token_is_refused_unless_allowed(serve: Callable[[Answer], int]) -> None:
    """On loopback, as through a tunnel, none is needed."""
    port = serve(open_cluster)
    with pytest.raises(CallError, match=r"asks for no token.*allow_no_token=True"):
        job_client(f"http://0.0.0.0:{port}")
    job_client(f"http://0.0.0.0:{port}", allow_no_token=True)
    job_client(f"http://localhost:{port}")


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "put it into RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "planted"}, "set RAY_AUTH_MODE=token, so that"),
        ({"RAY_AUTH_TOKEN": "planted", "RAY_AUTH_MODE": "disabled"}, "set RAY_AUTH_MODE=token, so that"),
        ({"RAY_AUTH_TOKEN_PATH": "/nonexistent"}, "put it into RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "planted", "RAY_AUTH_MODE": "token", "RAY_JOB_HEADERS": WRONG}, "refuses the token"),
    ],
)
def test_a_refused_token_is_explained(
    serve: Callable[[Answer], int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    host: str,
    environment: dict[str, str],
    words: str,
) -> None:
    """The message says what is missing, without the token. Ray reads its variables once: here the header is given."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError, match=words) as refusal:
        job_client(f"http://{host}:{serve(token_cluster)}")
    assert "planted" not in str(refusal.value)


def test_a_header_that_cannot_be_sent_is_not_repeated(
    serve: Callable[[Answer], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The HTTP library quotes it."""
    monkeypatch.setenv("RAY_JOB_HEADERS", json.dumps({"Authorization": "Bearer planted\n"}))
    with pytest.raises(ClusterError, match="InvalidHeader") as refusal:
        job_client(f"http://127.0.0.1:{serve(open_cluster)}")
    assert "planted" not in str(refusal.value)


def test_jobs_that_are_unknown_and_heads_that_start_differ(serve: Callable[[Answer], int]) -> None:
    """One is a final answer, the other is none."""
    client = job_client(f"http://127.0.0.1:{serve(open_cluster)}")
    with pytest.raises(UnknownJobError, match="Job j does not exist"):
        client.get_job_info("j")
    with pytest.raises(UnreachableError, match="503"):
        client.get_job_info("other")


def test_a_server_that_is_not_ray_is_named(serve: Callable[[Answer], int]) -> None:
    """A wrong port often has another server."""
    port = serve(lambda path, token: (200, "<html>"))
    with pytest.raises(ClusterError, match="something else answers"):
        job_client(f"http://127.0.0.1:{port}")
