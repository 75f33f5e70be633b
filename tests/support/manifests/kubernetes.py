"""What Kubernetes would say of a manifest, without a cluster.

kuberay.json.gz holds the schemas of RayCluster and RayJob, version v1, from KubeRay's custom resource definitions
(Apache-2.0), without their descriptions. Here they are made strict: an unknown field is an error, as for
`kubectl apply --validate=strict`. The pods inside are also checked by the schemas of Kubernetes itself.
"""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).with_name("kuberay.json.gz")


def problems_of(manifest: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a RayCluster or RayJob: the path of the field, and the reason."""
    errors = _validator(manifest["kind"]).iter_errors(manifest)
    found = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    return [*found, *(problem for pod in pods_of(manifest) for problem in _pod_problems(pod))]


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The specification of the Ray cluster."""
    spec: dict[str, Any] = manifest["spec"]
    found: dict[str, Any] = spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec
    return found


def pods_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The templates of all pods."""
    cluster = cluster_of(manifest)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def _pod_problems(template: dict[str, Any]) -> list[str]:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
    try:
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as exc:
        return [f"pod.{'.'.join(map(str, exc.path))}: {exc.message}"]
    return []


@cache
def _validator(kind: str) -> Draft202012Validator:
    schema = _strict(json.loads(gzip.decompress(SCHEMAS.read_bytes()))[kind])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return Draft202012Validator({**schema, "required": ["apiVersion", "kind", "metadata", "spec"]})


def _strict(schema: Any) -> Any:
    """Returns an OpenAPI schema as a JSON schema that allows no field which it does not name."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _strict(value) for name, value in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False) is True:
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    is_open = found.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in found
    if found.get("type") == "object" and isinstance(found.get("properties"), dict) and not is_open:
        found["additionalProperties"] = False
    return found
