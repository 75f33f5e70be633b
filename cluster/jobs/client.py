"""A client of a Ray cluster's job API whose requests end, and whose errors say what to do.

Ray's own client waits for an answer without limit, replaces the address that it is given by that in RAY_ADDRESS, and
raises the errors of its HTTP library.
"""

import ipaddress
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from dray.shards.errors import CallError, ClusterError, UnknownJobError, UnreachableError

REQUEST_TIMEOUT_S = 30  # to connect, and between two pieces of an answer
_BUSY = (502, 503, 504)  # what a proxy says while the head restarts
_SERVER_ERROR = 500  # what Ray itself says while its control service restarts; and of a job id that is taken
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # variables, as Ray reads them
_TOKEN_PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH (a file) or ~/.ray/auth_token"  # noqa: S105  no token itself


class JobClient(JobSubmissionClient):
    """Ray's client with a time limit for each request, and dray's errors."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            options.setdefault("timeout", REQUEST_TIMEOUT_S)
            answer: requests.Response = super()._do_request(method, endpoint, **options)
        except AuthenticationError as exc:
            raise ClusterError(_explain_token(self.get_address())) from exc
        except (requests.ConnectionError, requests.Timeout) as exc:
            raise UnreachableError(_explain_silence(self.get_address())) from exc
        except requests.RequestException as exc:  # its text may hold a header, and so the token
            raise ClusterError(f"{self.get_address()}: the request cannot be made: {type(exc).__name__}") from None
        if answer.status_code in _BUSY:
            raise UnreachableError(f"{self.get_address()}: answered {answer.status_code}: is the head starting?")
        return answer

    def _raise_error(self, r: requests.Response) -> NoReturn:
        """Raise the last line of Ray's answer, which is often a traceback."""
        reason = (r.text.strip().splitlines() or ["no reason was given"])[-1]
        kinds = {requests.codes.not_found: UnknownJobError, _SERVER_ERROR: UnreachableError}
        raise kinds.get(r.status_code, ClusterError)(f"{self.get_address()}: answered {r.status_code}: {reason}")


def job_client(address: str | None = None, *, allow_no_token: bool = False) -> JobClient:
    """Returns a client of the cluster's jobs, once the cluster has answered it.

    Args:
        address: URL of the cluster's dashboard, such as http://head:8265; None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS.
        allow_no_token: Accept a cluster on another machine that asks for no token: anybody who reaches it can run code
            there.

    Raises:
        CallError: The address is no URL of a dashboard, or that cluster asks for no token.
        UnreachableError: Nothing answers.
        ClusterError: The cluster refuses the token of this machine, or what answers is not Ray.
    """
    url = dashboard_url(address)
    if not allow_no_token and not _is_loopback(url):
        _check_asks_for_token(url)
    with _without(_ADDRESSES):
        try:
            return JobClient(url, headers=_headers())
        except AuthenticationError as exc:  # RAY_AUTH_MODE=token, and Ray finds none
            raise ClusterError(_explain_token(url)) from exc
        except (requests.HTTPError, RuntimeError, ValueError, KeyError) as exc:
            if isinstance(exc, ClusterError):
                raise
            raise ClusterError(f"{url}: expected the dashboard of a Ray cluster; something else answers there") from exc


def dashboard_url(address: str | None) -> str:
    """Returns the URL of a dashboard, from the environment if `address` is None.

    Raises:
        CallError: None is given, or it has another form.
    """
    found = address or next(filter(None, map(os.environ.get, _ADDRESSES)), None)
    if found is None:
        raise CallError("address=...: give the URL of the cluster's dashboard, such as http://head:8265")
    if "@" in found:
        raise CallError("address=...: give no password in a URL; RAY_JOB_HEADERS holds headers for a proxy, as JSON")
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        host = found.removeprefix("ray://").partition(":")[0] or "head"
        raise CallError(
            f"address={found!r}: expected the URL of the cluster's dashboard, often http://{host}:8265; for KubeRay, "
            "kubectl port-forward service/CLUSTER-head-svc 8265, then http://localhost:8265"
        )
    return found.rstrip("/")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_asks_for_token(url: str) -> None:
    """Check that the cluster refuses a request without a token."""
    try:
        answer = requests.get(f"{url}/api/version", timeout=REQUEST_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as exc:
        raise UnreachableError(_explain_silence(url)) from exc
    if answer.ok:
        raise CallError(
            f"{url}: this cluster asks for no token, so anybody who reaches it can run code on it: start it with "
            "RAY_AUTH_MODE=token (KubeRay: authOptions: {mode: token}), or reach it by a tunnel to localhost; "
            "allow_no_token=True accepts it in a network that you trust"
        )


def _headers() -> dict[str, str]:
    """Returns the headers of RAY_JOB_HEADERS, which a proxy before the cluster may ask for."""
    try:
        headers = json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}")
    except ValueError:
        headers = None
    if not isinstance(headers, dict):
        raise CallError('RAY_JOB_HEADERS: expected a JSON object, such as {"Name": "value"}')
    return headers


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Environment variables are unset within this context."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _explain_silence(url: str) -> str:
    return f"{url}: no answer: is the cluster running, is this its dashboard's port (often 8265), is a tunnel needed?"


def _explain_token(url: str) -> str:
    """Returns why the cluster refused this machine, and what to do."""
    source = _token_source()
    get_it = "KubeRay: kubectl get secret CLUSTER -o jsonpath='{.data.auth_token}' | base64 -d"
    if source is None:
        problem = f"the cluster asks for its token: put it into {_TOKEN_PLACES}, and set RAY_AUTH_MODE=token; {get_it}"
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        problem = f"the cluster asks for its token: set RAY_AUTH_MODE=token, so that Ray sends that in {source}"
    else:
        problem = (
            f"the cluster refuses the token in {source}: it is that of another cluster, or was replaced; Ray takes the "
            f"first of {_TOKEN_PLACES}; {get_it}"
        )
    return f"{url}: {problem}"


def _token_source() -> str | None:
    """Returns where Ray finds its token on this machine; None if nowhere."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return "RAY_AUTH_TOKEN_PATH" if Path(path).is_file() else None
    return "~/.ray/auth_token" if (Path.home() / ".ray" / "auth_token").is_file() else None
