"""KubeRay manifests pass KubeRay's and Kubernetes' own schemas, which find planted faults."""

import shlex
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dray.cluster.deploy.deployment import Deployment, SecretRef
from dray.cluster.deploy.kuberay import render_kuberay
from tests.support.manifests.kubernetes import cluster_of, pods_of, problems_of

BUILD = ("build", "s3://lab/raw", "s3://lab/shards", "--suffix", "tensor.pyd")
SECRETS = {"AWS_SECRET_ACCESS_KEY": SecretRef("store", "key")}
CLUSTER = Deployment(image="lab/dray:1", workers=16, secrets=SECRETS, service_account="packer")
JOB = Deployment(image="lab/dray@sha256:0123", words=BUILD, env={"AWS_REGION": "eu-west-1"}, time_limit_s=3600)
TRAINING = Deployment(image="lab/dray:1", name="train", gpus=1, words=("run", "/srv/train.py", "--epochs", "8"))


def manifest_of(deployment: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(render_kuberay(deployment))
    return found


@pytest.mark.parametrize("deployment", [CLUSTER, JOB, TRAINING], ids=["cluster", "build", "training"])
def test_the_schemas_have_nothing_to_say(deployment: Deployment) -> None:
    """All fields exist and have the right types."""
    assert problems_of(manifest_of(deployment)) == []


def test_a_cluster_grows_with_the_work_and_asks_for_a_token() -> None:
    """No worker exists without work; the head runs no tasks."""
    manifest = manifest_of(CLUSTER)
    cluster = cluster_of(manifest)
    assert (manifest["kind"], cluster["authOptions"]) == ("RayCluster", {"mode": "token"})
    assert cluster["enableInTreeAutoscaling"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 16)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_secrets_are_references_and_pods_have_the_service_account() -> None:
    """On the head and on workers; what they use is what they asked for."""
    for pod in pods_of(manifest_of(CLUSTER)):
        (container,) = pod["spec"]["containers"]
        reference = {"secretKeyRef": {"name": "store", "key": "key"}}
        assert container["env"] == [{"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference}]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["spec"]["serviceAccountName"] == "packer"
        assert pod["spec"]["securityContext"]["runAsNonRoot"]


def test_a_build_is_a_job_that_ends_its_cluster() -> None:
    """It is tried once more, and stopped at the limit."""
    spec = manifest_of(JOB)["spec"]
    assert spec["entrypoint"].endswith(shlex.join(BUILD))
    assert (spec["shutdownAfterJobFinishes"], spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (True, 1, 3600)


def test_a_training_has_all_its_workers_from_the_start() -> None:
    """Ray Train needs them at once, so nothing grows; each has its GPU."""
    manifest = manifest_of(TRAINING)
    (group,) = cluster_of(manifest)["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 2)
    assert not cluster_of(manifest)["enableInTreeAutoscaling"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "/srv/train.py --epochs 8" in manifest["spec"]["entrypoint"]


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a misspelt field": (lambda m: m["spec"].update(entrypont="x"), "entrypont"),
    "a misspelt field of the cluster": (lambda m: cluster_of(m).update(autoscalingOptions={}), "autoscalingOptions"),
    "text for a number": (lambda m: cluster_of(m)["workerGroupSpecs"][0].update(maxReplicas="16"), "maxReplicas"),
    "a number for text": (lambda m: cluster_of(m)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "cpus"),
    "an unknown mode": (lambda m: cluster_of(m).update(authOptions={"mode": "tokens"}), "authOptions.mode"),
    "a group without a name": (lambda m: cluster_of(m)["workerGroupSpecs"][0].pop("groupName"), "groupName"),
    "a key of no container": (lambda m: _container(m).update(resource={}), "resource"),
    "a container without a name": (lambda m: _container(m).pop("name"), "name"),
    "a number as a variable": (lambda m: _container(m)["env"].append({"name": "A", "value": 1}), "env"),
    "a reference without a key": (
        lambda m: _container(m)["env"].append({"name": "A", "valueFrom": {"secretKeyRef": {"name": "store"}}}),
        "'key'",
    ),
    "no name": (lambda m: m["metadata"].clear(), "'name'"),
}


def _container(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pods_of(manifest)[1]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str) -> None:
    """The checkers are worth their place: each fault is named."""
    manifest = manifest_of(JOB)
    plant, word = FAULTS[fault]
    plant(manifest)
    assert any(word in problem for problem in problems_of(manifest))


@given(
    word=st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    value=st.text(st.characters(codec="utf-8", exclude_characters="\0")),
)
def test_hostile_words_and_values_stay_values(word: str, value: str) -> None:
    """Whatever the characters, a shell and Kubernetes get back what was given."""
    manifest = manifest_of(Deployment(image="lab/dray:1", words=("build", word), env={"A": value}))
    assert shlex.split(manifest["spec"]["entrypoint"])[-2:] == ["build", word]
    for pod in pods_of(manifest):
        (variable,) = pod["spec"]["containers"][0]["env"]
        assert expanded(variable["value"]) == value
    plain = manifest_of(Deployment(image="lab/dray:1", words=("build", "x"), env={"A": "x"}))
    assert _shape(manifest) == _shape(plain)


def expanded(value: str) -> str:
    """A variable's value after Kubernetes: `$(NAME)` is replaced, `$$` is a dollar."""
    found, rest = "", value
    while rest:
        if rest.startswith("$("):
            raise AssertionError(rest)
        step = 2 if rest.startswith("$$") else 1
        found, rest = found + rest[0], rest[step:]
    return found


def _shape(value: Any) -> Any:
    """A manifest with its texts left out."""
    if isinstance(value, dict):
        return {name: _shape(item) for name, item in value.items()}
    return [_shape(item) for item in value] if isinstance(value, list) else type(value)
