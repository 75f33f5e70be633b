"""A batch script that starts Ray over the nodes of a Slurm allocation, and runs one command on it."""

import shlex
from collections.abc import Iterator
from importlib.resources import files

from dray.cluster.deploy.deployment import Deployment
from dray.shards.errors import CallError

NOTICE_S = 120  # between Slurm's SIGTERM and the time limit


def render_slurm(deployment: Deployment) -> str:
    """Returns the script: directives, quoted variables, and then the fixed text of slurm.sh.

    Raises:
        CallError: The deployment has no command.
    """
    if not deployment.words:
        raise CallError("a Slurm job needs a command: dray deploy slurm ... -- build SRC DEST --suffix tensor.pyd")
    lines = [*_directives(deployment), "", *_variables(deployment), ""]
    return "\n".join(lines) + "\n" + files("dray.cluster.deploy").joinpath("slurm.sh").read_text(encoding="utf-8")


def _directives(deployment: Deployment) -> Iterator[str]:
    """Yields the lines that sbatch reads; options of its command line, such as --partition, go before them."""
    yield "#!/usr/bin/env bash"
    yield f"#SBATCH --job-name={deployment.name}"
    yield f"#SBATCH --nodes={deployment.workers}"
    yield "#SBATCH --ntasks-per-node=1"
    yield f"#SBATCH --cpus-per-task={deployment.cpus}"
    yield f"#SBATCH --mem={deployment.memory_gib}G"
    if deployment.gpus:
        yield f"#SBATCH --gpus-per-node={deployment.gpus}"
    if deployment.time_limit_s is not None:
        yield f"#SBATCH --time={-(-deployment.time_limit_s // 60)}"
    yield f"#SBATCH --signal=B:TERM@{NOTICE_S}"


def _variables(deployment: Deployment) -> Iterator[str]:
    for name, value in deployment.env.items():
        yield f"export {name}={shlex.quote(value)}"
    if deployment.venv is not None:
        yield f'PATH={shlex.quote(deployment.venv)}/bin:"$PATH"'
    yield f"command=({shlex.join(deployment.command)})"
