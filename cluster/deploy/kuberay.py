"""RayCluster and RayJob manifests for the KubeRay operator, version 1.6 or later."""

import importlib.metadata
import shlex
from typing import Any

import yaml

from dray.cluster.deploy.deployment import Deployment
from dray.shards.errors import CallError

HEAD_CPUS = 2  # the head runs Ray's services and the job's driver, no tasks
IDLE_S = 300  # before the autoscaler removes a worker that has nothing to do
START_S = 1800  # a job whose cluster has not started by then fails, so that nobody waits in vain for a node
KEEP_S = 600  # how long the cluster of a finished job stays, for its logs
TOKEN_SINCE = (2, 52)  # the first Ray that can ask for a token

_HEADER = """\
# {title}, for the KubeRay operator (1.6 or later). Rendered by `dray deploy kuberay`.
#
#   kubectl apply -f FILE
{follow}
#
# The operator makes the cluster's token, and every request to it needs that token.
"""
_FOLLOW_JOB = """\
#   kubectl get rayjob {name} --watch
#
# While it runs, and afterwards, the record of the job beside the dataset says how far it is."""
_FOLLOW_CLUSTER = """\
#   kubectl get raycluster {name} --watch
#   kubectl port-forward service/{name}-head-svc 8265
#   export RAY_AUTH_MODE=token
#   export RAY_AUTH_TOKEN="$(kubectl get secret {name} -o jsonpath='{{.data.auth_token}}' | base64 -d)"
#   dray submit build s3://lab/raw s3://lab/shards --suffix tensor.pyd --address http://localhost:8265"""


def render_kuberay(deployment: Deployment) -> str:
    """Returns the YAML of a RayJob that runs the command, or of a RayCluster if there is none.

    Raises:
        CallError: The Ray that is installed here is too old to ask for a token.
    """
    title, follow = "A job on a Ray cluster of its own", _FOLLOW_JOB
    if not deployment.words:
        title, follow = "A Ray cluster", _FOLLOW_CLUSTER
    header = _HEADER.format(title=title, follow=follow.format(name=deployment.name))
    return f"{header}{yaml.safe_dump(manifest(deployment), sort_keys=False, width=1000)}"


def manifest(deployment: Deployment) -> dict[str, Any]:
    """Returns the manifest as plain values."""
    kind, spec = "RayCluster", _cluster_spec(deployment)
    if deployment.words:
        kind, spec = "RayJob", _job_spec(deployment, spec)
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": deployment.name}, "spec": spec}


def _job_spec(deployment: Deployment, cluster: dict[str, Any]) -> dict[str, Any]:
    limit = {} if deployment.time_limit_s is None else {"activeDeadlineSeconds": deployment.time_limit_s}
    return {
        # The operator sends the entrypoint to the head as it is, and one shell there reads it. The other modes paste it
        # into the command line of a pod, where a shell and Kubernetes read it before.
        "submissionMode": "HTTPMode",
        "entrypoint": shlex.join(deployment.command),
        "backoffLimit": 1,  # once more on a new cluster: what is stored stays, so only the rest is done
        "preRunningDeadlineSeconds": START_S,
        **limit,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEEP_S,
        "rayClusterSpec": cluster,
    }


def _cluster_spec(deployment: Deployment) -> dict[str, Any]:
    grows = deployment.kept_workers < deployment.workers
    scaling = {"autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": IDLE_S}} if grows else {}
    head = _resources(HEAD_CPUS, deployment.memory_gib)
    worker = _resources(deployment.cpus, deployment.memory_gib, deployment.gpus)
    return {
        "rayVersion": _ray_version(),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": grows,
        **scaling,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104  inside the pod's network
            "template": {"spec": _pod(deployment, "ray-head", head)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "gpu" if deployment.gpus else "cpu",
                "replicas": deployment.kept_workers,
                "minReplicas": deployment.kept_workers,
                "maxReplicas": deployment.workers,
                "rayStartParams": {},
                "template": {"spec": _pod(deployment, "ray-worker", worker)},
            }
        ],
    }


def _pod(deployment: Deployment, container: str, resources: dict[str, Any]) -> dict[str, Any]:
    account = {} if deployment.service_account is None else {"serviceAccountName": deployment.service_account}
    return {
        **account,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": container,
                "image": deployment.image,
                "env": _environment(deployment),
                "resources": resources,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }


def _environment(deployment: Deployment) -> list[dict[str, Any]]:
    """Returns the variables of a container. The operator adds those of the token."""
    plain = [
        {"name": name, "value": value.replace("$", "$$")}  # Kubernetes would replace $(NAME)
        for name, value in deployment.env.items()
    ]
    secret = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}
        for variable, (name, key) in deployment.secrets.items()
    ]
    return plain + secret


def _resources(cpus: int, memory_gib: int, gpus: int = 0) -> dict[str, Any]:
    """Returns requests that are also limits: Ray counts what a pod may use, so a pod must have it."""
    found = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    if gpus:
        found["nvidia.com/gpu"] = str(gpus)
    return {"requests": found, "limits": dict(found)}


def _ray_version() -> str:
    version = importlib.metadata.version("ray")
    if tuple(map(int, version.split(".")[:2])) < TOKEN_SINCE:
        raise CallError(f"Ray {version} cannot ask for a token: install Ray 2.52 or later, here and in the image")
    return version
