"""Checks of a Ray cluster, by a job if a dashboard's URL is given, else by a child process that connects to it."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dray.cluster.doctor import node_probe
from dray.cluster.doctor.finding import Finding, bad, good, warning
from dray.cluster.doctor.nodes import findings_of
from dray.cluster.doctor.running import Check
from dray.cluster.jobs.asking import PYTHON, answer_in, ask
from dray.pipelines.running.node import identity
from dray.pipelines.running.ray_session import check_address
from dray.shards.errors import CallError, ClusterError
from dray.shards.storage.client import SECRET_NAME
from dray.shards.storage.urls import normal_url

if TYPE_CHECKING:
    from dray.cluster.jobs.client import JobClient

NODES_S = 0.5  # part of the time limit that the nodes have for their answers
STOP_S = 5.0  # left for stopping a job that does not end
_SIGN_IN_ADVICE = (
    "set RAY_AUTH_MODE=token, and put the cluster's token into RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH (a file) or "
    "~/.ray/auth_token"
)
_OPEN_ADVICE = "start the cluster with RAY_AUTH_MODE=token (KubeRay: authOptions: {mode: token})"


def cluster_checks(address: str, url: str | None, options: Mapping[str, Any], timeout_s: float) -> list[Check]:
    """Returns the checks of a cluster.

    Args:
        address: A dashboard's URL, HOST:PORT of a cluster, or `local`.
        url: A URL that every node should reach; None for none.
        options: Its storage options; those that hold secrets are in no job.
        timeout_s: Time limit.
    """
    is_job = address.startswith("http")
    if is_job:
        from dray.cluster.jobs.client import dashboard_url

        dashboard_url(address)  # a wrong form is a wrong call
    safe = {name: value for name, value in options.items() if not (is_job and SECRET_NAME.search(name))}
    request = {
        "address": "auto" if is_job else address,
        "url": None if url is None else normal_url(url),
        "options": safe,
        "identity": identity(),
        "timeout_s": timeout_s * NODES_S,
    }
    if is_job:
        return [Check("Ray", lambda: _by_job(address, request, time.monotonic() + timeout_s))]
    return [Check("Ray", lambda: _by_child(address, request, timeout_s))]


def _by_child(address: str, request: Mapping[str, Any], timeout_s: float) -> Iterator[Finding]:
    """Connects in a process of its own: Ray waits for a cluster that refuses it, and prints to standard error."""
    try:
        check_address(address)
    except ClusterError as exc:
        yield bad("Ray", str(exc), "is it running, is this the port of its head (often 6379), is a firewall between?")
        return
    command = [sys.executable, str(node_probe.__file__), "-"]
    try:
        done = subprocess.run(  # noqa: S603  our own program
            command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout_s * 0.95, check=False
        )
    except subprocess.TimeoutExpired as exc:
        yield _failure(address, str(exc.stderr or ""), f"no answer in {timeout_s:.0f} s")
        return
    answer = answer_in(done.stdout, node_probe.MARK)
    if answer is None:
        yield _failure(address, done.stderr, (done.stderr.strip().splitlines() or ["no answer"])[-1])
        return
    yield good("Ray", f"connected to {address}")
    yield from findings_of(answer, _ray_version(), can_ship=False)


def _failure(address: str, errors: str, reason: str) -> Finding:
    """Returns the finding of a cluster that could not be asked."""
    if re.search("InvalidAuthToken|Unauthenticated|AuthenticationError", errors):
        return bad(
            "Ray", f"{address}: the cluster asks for a token, and refuses this machine's, or none", _SIGN_IN_ADVICE
        )
    return bad("Ray", f"{address}: {reason}", "see ray status on the head, and compare the versions of Ray and Python")


def _by_job(address: str, request: Mapping[str, Any], deadline: float) -> Iterator[Finding]:
    from dray.cluster.jobs.client import job_client

    try:
        client = job_client(address, allow_no_token=True)
    except ClusterError as exc:
        yield bad("Ray", str(exc), _SIGN_IN_ADVICE if "token" in str(exc) else "see ray status on the head")
        return
    yield good("Ray", f"{address} takes jobs")
    yield _token(address)
    try:
        answer = _run_job(client, request, max(1.0, deadline - time.monotonic() - STOP_S))
    except ClusterError as exc:
        yield bad("nodes", f"could not be asked: {exc}", "see ray status on the head")
        return
    yield from findings_of(answer, _ray_version(), can_ship=True)


def _token(address: str) -> Finding:
    """Returns whether the cluster refuses a request without a token; only a tunnel or this machine may do without."""
    import requests

    from dray.cluster.jobs.client import job_client

    answer = requests.get(f"{address.rstrip('/')}/api/version", timeout=10, allow_redirects=False)
    if not answer.ok:
        return good("token", "the cluster asks for a token, and accepts this machine's")
    try:
        job_client(address)
    except CallError:
        return bad("token", "the cluster asks for none: anybody who reaches it can run code there", _OPEN_ADVICE)
    return warning("token", "the cluster asks for none; it is reached on this machine or by a tunnel", _OPEN_ADVICE)


def _run_job(client: "JobClient", request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Returns the answer of `node_probe` as a job.

    Raises:
        ClusterError: There is none.
    """
    with TemporaryDirectory(prefix="dray-doctor-") as folder:
        shutil.copy(str(node_probe.__file__), folder)
        Path(folder, "request.json").write_text(json.dumps(request))
        return ask(
            client,
            f"{PYTHON} node_probe.py request.json",
            mark=node_probe.MARK,
            timeout_s=timeout_s,
            runtime_env={"working_dir": folder},
            metadata={"dray": "doctor"},
        )


def _ray_version() -> str:
    import ray

    return ray.__version__
