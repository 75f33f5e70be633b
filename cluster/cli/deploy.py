"""`dray deploy`: print the manifest or script that starts Ray with dray on it."""

import re
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Annotated, Any

import typer

from dray.cluster.cli.options import parse_duration
from dray.cluster.deploy.compose import render_compose
from dray.cluster.deploy.deployment import Deployment, SecretRef
from dray.cluster.deploy.docker import render_docker
from dray.cluster.deploy.kuberay import render_kuberay
from dray.cluster.deploy.slurm import render_slurm
from dray.shards.errors import CallError


class Target(StrEnum):
    """Where Ray runs."""

    kuberay = "kuberay"
    slurm = "slurm"
    compose = "compose"
    docker = "docker"


_SIZE = {"name", "workers", "cpus", "memory_gib", "env", "words"}
_OPTIONS = {"memory_gib": "memory", "secrets": "secret", "time_limit_s": "time-limit"}  # where the field is no option
_TAKES = {  # target -> the fields that mean something there
    Target.kuberay: _SIZE | {"image", "min_workers", "gpus", "secrets", "service_account", "time_limit_s"},
    Target.slurm: _SIZE | {"gpus", "time_limit_s", "venv"},
    Target.compose: _SIZE | {"image"},
    Target.docker: set[str](),
}
_RENDER: dict[Target, Callable[[Deployment], str]] = {
    Target.kuberay: render_kuberay,
    Target.slurm: render_slurm,
    Target.compose: render_compose,
    Target.docker: lambda _: render_docker(),
}


def deploy(
    target: Annotated[
        Target,
        typer.Argument(
            help="[bold]kuberay[/]: a RayJob for Kubernetes, or a RayCluster if there is no COMMAND. [bold]slurm[/]: a "
            "batch script. [bold]compose[/]: a cluster and an S3 server on this machine. [bold]docker[/]: the "
            "Dockerfile of the image."
        ),
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND...",
            help="What the job does: a command of dray, such as [bold]build SRC DEST --suffix tensor.pyd[/], or "
            "[bold]run script.py ARGUMENTS[/] for a Python program that every node has.",
        ),
    ] = None,
    *,
    image: Annotated[
        str | None, typer.Option(help="Container image of all nodes; it has dray and the Ray that is installed here.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the cluster or job.", show_default="dray")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of nodes that do the work; with KubeRay the maximum, as it starts and stops them as needed.",
            show_default="2",
        ),
    ] = None,
    min_workers: Annotated[
        int | None,
        typer.Option(
            help="Number of workers that KubeRay always keeps.", show_default="0; for `run` the number of workers"
        ),
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs of a worker.", show_default="4")] = None,
    memory: Annotated[
        int | None, typer.Option(metavar="GIB", help="Memory of a worker, in GiB.", show_default="16")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a worker.", show_default="0")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Environment variable of all nodes, not for secrets; repeatable."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SECRET/KEY",
            help="Environment variable of all nodes whose value is a key of a Kubernetes Secret; repeatable.",
        ),
    ] = None,
    service_account: Annotated[
        str | None,
        typer.Option(help="Kubernetes service account of all nodes, for the role that it has in the cloud."),
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop the job after this time: 90m, 12h, 3d.")
    ] = None,
    venv: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Virtual environment on the nodes.", show_default="what is on PATH"),
    ] = None,
) -> None:
    r"""Print a manifest or script that runs dray with KubeRay, Slurm or Docker Compose, or its Dockerfile.

    Nothing is started or sent. Its first lines say how to use it. Each cluster asks for a token, and secrets are named,
    never contained.

    [bold]Examples[/]

    The image, from a checkout of dray:

    [cyan]dray deploy docker > Dockerfile && docker build --file Dockerfile --tag lab/dray:1 .[/]

    A build on Kubernetes, on up to 16 nodes that exist while there is work:

    [cyan]dray deploy kuberay --image lab/dray:1 --workers 16 --service-account packer \
      -- build s3://lab/raw s3://lab/shards --suffix tensor.pyd | kubectl apply -f -[/]

    A cluster for `dray submit`, with the key of the store from a Kubernetes Secret:

    [cyan]dray deploy kuberay --image lab/dray:1 --workers 16 --secret AWS_ACCESS_KEY_ID=store/id \
      --secret AWS_SECRET_ACCESS_KEY=store/key > cluster.yaml[/]

    A training with Ray Train, on two nodes with a GPU each:

    [cyan]dray deploy kuberay --image lab/dray:1-cuda --name train --workers 2 --gpus 1 \
      -- run /home/dray/examples/train_ray.py --data s3://lab/shards --results s3://lab/runs[/]

    A build on four nodes of a Slurm cluster:

    [cyan]dray deploy slurm --workers 4 --cpus 16 --time-limit 12h --venv /shared/venv \
      -- build /shared/raw /shared/shards --suffix tensor.pyd > build.sh && sbatch build.sh[/]

    A rehearsal on this machine, with an S3 server:

    [cyan]dray deploy compose --image lab/dray:1 > compose.yaml[/]
    """
    fields: dict[str, Any] = {
        "image": image,
        "name": name,
        "workers": workers,
        "min_workers": min_workers,
        "cpus": cpus,
        "memory_gib": memory,
        "gpus": gpus,
        "words": tuple(command) if command else None,
        "env": parse_env(env) if env else None,
        "secrets": parse_secrets(secret) if secret else None,
        "service_account": service_account,
        "time_limit_s": round(parse_duration(time_limit, "--time-limit")) if time_limit else None,
        "venv": venv,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    _check_given(target, given)
    typer.echo(_RENDER[target](Deployment(**given)), nl=False)


def parse_env(pairs: list[str]) -> dict[str, str]:
    """Returns {"AWS_REGION": "eu-west-1"} for ["AWS_REGION=eu-west-1"].

    Raises:
        CallError: A pair has no `=`; the message does not quote it, as it may hold a secret.
    """
    split = [pair.partition("=") for pair in pairs]
    if not all(equals for _, equals, _ in split):
        raise CallError("--env: expected NAME=VALUE, such as AWS_REGION=eu-west-1")
    return {name: value for name, _, value in split}


def parse_secrets(pairs: list[str]) -> dict[str, SecretRef]:
    """Returns {"AWS_SECRET_ACCESS_KEY": SecretRef("store", "key")} for ["AWS_SECRET_ACCESS_KEY=store/key"].

    Raises:
        CallError: A pair has another form; the message does not quote it, as it may be the secret itself.
    """
    found = [re.fullmatch(r"(\w+)=([-.a-z0-9]+)/([-._A-Za-z0-9]+)", pair) for pair in pairs]
    matches = [match for match in found if match]
    if len(matches) < len(pairs):
        raise CallError(
            "--secret: expected NAME=SECRET/KEY, such as AWS_SECRET_ACCESS_KEY=store/key for `kubectl create secret "
            "generic store --from-file=key`"
        )
    return {match[1]: SecretRef(match[2], match[3]) for match in matches}


def _check_given(target: Target, given: Collection[str]) -> None:
    """Check that the target has the image that it needs, and a use for each option.

    Raises:
        CallError: It lacks one, or has none.
    """
    if "image" in _TAKES[target] and "image" not in given:
        raise CallError(
            f"dray deploy {target} needs --image REFERENCE; `dray deploy docker` prints a Dockerfile for it"
        )
    if useless := sorted(set(given) - _TAKES[target]):
        words = ", ".join("COMMAND" if name == "words" else f"--{_OPTIONS.get(name, name)}" for name in useless)
        raise CallError(f"dray deploy {target} has no use for {words.replace('_', '-')}")
