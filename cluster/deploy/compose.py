"""A Docker Compose file with an S3 server and a Ray cluster: a rehearsal of a real cluster on one machine."""

from typing import Any

import yaml

from dray.cluster.deploy.deployment import Deployment

STORE_IMAGE = "chrislusf/seaweedfs:4.48"  # the version of the tests
BUCKET = "data"

_HEADER = """\
# An S3 server and a Ray cluster on this machine, for Docker Compose. Rendered by `dray deploy compose`.
#
#   export RAY_AUTH_TOKEN="$(openssl rand -hex 32)"
#   export AWS_ACCESS_KEY_ID="$(openssl rand -hex 10)" AWS_SECRET_ACCESS_KEY="$(openssl rand -hex 20)"
#   docker compose -f FILE up --detach --wait
#   docker compose -f FILE exec head dray build SRC s3://{bucket}/shards --suffix tensor.pyd --address auto{job}
#   docker compose -f FILE down               # --volumes also removes the objects
#
# The dashboard is at http://localhost:8265 and S3 at http://localhost:8333, with that token and that key.
"""
_JOB = """
#   docker compose -f FILE run --rm job       # does the work; its exit code is that of the command"""

_VARIABLES = {  # taken from the environment of `docker compose`, so that the file holds no secret
    name: f"${{{name}:?the header of this file says how to set it}}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
}
_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "${RAY_AUTH_TOKEN:?the header of this file says how to set it}"}


def render_compose(deployment: Deployment) -> str:
    """Returns the YAML: the services store, head, worker, and job if there is a command."""
    header = _HEADER.format(bucket=BUCKET, job=_JOB if deployment.words else "")
    return f"{header}{yaml.safe_dump(compose_file(deployment), sort_keys=False, width=1000)}"


def compose_file(deployment: Deployment) -> dict[str, Any]:
    """Returns the file as plain values."""
    services = {"store": _store(), "head": _head(deployment), "worker": _worker(deployment)}
    if deployment.words:
        services["job"] = _job(deployment)
    return {"name": deployment.name, "services": services, "volumes": {"objects": {}}}


def _store() -> dict[str, Any]:
    """Returns the S3 server, which takes its key and the name of its bucket from its environment."""
    return {
        "image": STORE_IMAGE,
        "command": ["mini", "-dir=/data", "-ip=store", "-ip.bind=0.0.0.0", "-admin.ui=false", "-webdav=false"],
        "environment": {**_VARIABLES, "S3_BUCKET": BUCKET},
        "ports": ["127.0.0.1:8333:8333"],
        "volumes": ["objects:/data"],
        "healthcheck": _healthcheck("http://127.0.0.1:8333/healthz"),
    }


def _head(deployment: Deployment) -> dict[str, Any]:
    start = ["ray", "start", "--block", "--head", "--port=6379", "--num-cpus=0", "--dashboard-host=0.0.0.0"]
    return {
        **_node(deployment, [*start, "--disable-usage-stats"]),
        "ports": ["127.0.0.1:8265:8265"],
        "depends_on": {"store": {"condition": "service_healthy"}},
        "healthcheck": _healthcheck("http://127.0.0.1:8265/api/gcs_healthz"),
    }


def _worker(deployment: Deployment) -> dict[str, Any]:
    start = ["ray", "start", "--block", "--address=head:6379", f"--num-cpus={deployment.cpus}"]
    return {
        **_node(deployment, [*start, "--disable-usage-stats"]),
        "deploy": {"replicas": deployment.workers},
        "cpus": deployment.cpus,
        "depends_on": {"head": {"condition": "service_healthy"}},
    }


def _job(deployment: Deployment) -> dict[str, Any]:
    submit = ["dray", "submit", "--address=http://head:8265", *deployment.words]
    return {
        "image": deployment.image,
        "command": list(map(_escape, submit)),
        "environment": _TOKEN,
        "depends_on": {"worker": {"condition": "service_started"}},
        "profiles": ["job"],  # not started by `up`
    }


def _node(deployment: Deployment, command: list[str]) -> dict[str, Any]:
    """Returns what all Ray nodes have: `init` passes signals on, and Ray keeps its objects in /dev/shm."""
    given = {name: _escape(value) for name, value in deployment.env.items()}
    store = {"AWS_ENDPOINT_URL_S3": "http://store:8333", "AWS_REGION": "us-east-1", **_VARIABLES}
    return {
        "image": deployment.image,
        "command": command,
        "environment": {**store, **given, **_TOKEN},
        "init": True,
        "mem_limit": f"{deployment.memory_gib}g",
        "shm_size": f"{max(1, deployment.memory_gib // 3)}g",
        "ulimits": {"nofile": 65536},
    }


def _healthcheck(url: str) -> dict[str, Any]:
    return {"test": ["CMD", "wget", "-q", "-O", "/dev/null", url], "interval": "5s", "timeout": "10s", "retries": 24}


def _escape(text: str) -> str:
    """Returns a text in which Compose replaces no variable."""
    return text.replace("$", "$$")
