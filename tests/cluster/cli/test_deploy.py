"""`dray deploy` prints a manifest, and refuses what means nothing for its target."""

import subprocess
import sys

import pytest
import yaml

from tests.conftest import Dray
from tests.support.manifests.kubernetes import cluster_of, pods_of, problems_of

COMMAND = ("--", "build", "s3://lab/raw", "s3://lab/shards", "--suffix", "tensor.pyd")


def test_every_option_reaches_the_manifest(dray: Dray) -> None:
    """Of KubeRay, which has the most."""
    size = ("--name", "pack", "--workers", 8, "--min-workers", 2, "--cpus", 6, "--memory", 32, "--gpus", 1)
    rights = ("--env", "A=b=c", "--secret", "TOKEN=store/key.txt", "--service-account", "packer")
    done = dray("deploy", "kuberay", "--image", "lab/dray:1", *size, *rights, "--time-limit", "2h", *COMMAND)
    assert (done.code, done.err) == (0, "")
    manifest = yaml.safe_load(done.out)
    assert problems_of(manifest) == []
    assert manifest["metadata"]["name"] == "pack"
    assert manifest["spec"]["activeDeadlineSeconds"] == 7200
    (group,) = cluster_of(manifest)["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 8)
    pod = pods_of(manifest)[1]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"cpu": "6", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert container["env"] == [
        {"name": "A", "value": "b=c"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "store", "key": "key.txt"}}},
    ]
    assert (container["image"], pod["serviceAccountName"]) == ("lab/dray:1", "packer")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kuberay"], "needs --image REFERENCE"),
        (["compose"], "needs --image REFERENCE"),
        (["slurm", "--image", "a", *COMMAND], "dray deploy slurm has no use for --image"),
        (["slurm", "--secret", "A=b/c", *COMMAND], "has no use for --secret"),
        (["slurm", "--min-workers", 1, "--service-account", "a", *COMMAND], "for --min-workers, --service-account"),
        (["compose", "--image", "a", "--time-limit", "1h"], "no use for --time-limit"),
        (["docker", "--memory", 4, *COMMAND], "no use for --memory, COMMAND"),
        (["slurm"], "a Slurm job needs a command"),
        (["kuberay", "--image", "a b"], "--image 'a b': expected a reference"),
        (["kuberay", "--image", "a", "--workers", 0], "--workers 0: expected at least 1"),
        (["kuberay", "--image", "a", "--memory", 1], "--memory 1: expected at least 2"),
        (["kuberay", "--image", "a", "--time-limit", "long", *COMMAND], "--time-limit 'long': expected a time"),
        (["kuberay", "--image", "a", "--env", "planted"], "--env: expected NAME=VALUE"),
        (["kuberay", "--image", "a", "--env", "S3_PASSWORD=planted"], "looks like a secret"),
        (["kuberay", "--image", "a", "--secret", "A=planted+x"], "--secret: expected NAME=SECRET/KEY"),
    ],
)
def test_a_wrong_call_says_what_to_change(dray: Dray, words: list[object], message: str) -> None:
    """In the words of the command line, and without a value that may be secret."""
    done = dray("deploy", *words)
    assert (done.code != 0, done.out) == (True, "")
    assert message in done.err
    assert "planted" not in done.err


def test_ray_is_not_imported() -> None:
    """Printing a file takes no seconds."""
    code = "import sys, dray.cluster.cli.deploy; print([name for name in ('ray', 'torch') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
