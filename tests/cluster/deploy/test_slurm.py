"""The Slurm script passes shellcheck, and whatever its options hold remains a value."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.cluster.deploy.deployment import Deployment
from dray.cluster.deploy.slurm import render_slurm
from dray.shards.errors import CallError
from tests.support.manifests.programs import run_program

BUILD = ("build", "/shared/raw", "/shared/my shards", "--suffix", "tensor.pyd")
JOB = Deployment(words=BUILD, env={"AWS_REGION": "eu-west-1"}, gpus=2, time_limit_s=3601, venv="/shared/my venv")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def shellcheck(script: str) -> subprocess.CompletedProcess[str]:
    return run_program("shellcheck", "-", stdin=script)


def test_shellcheck_has_nothing_to_say() -> None:
    """Not even a remark."""
    done = shellcheck(render_slurm(JOB))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "code"),
    [
        ('rm -rf "$shared"', "rm -rf $shared", "SC2086"),
        ('exit "$code"', "exit $cod", "SC2154"),
        ("; then #", "; #", "SC1049"),
        ("code=$?", "code=$? )", "SC1073"),
    ],
)
def test_planted_faults_are_found(right: str, wrong: str, code: str) -> None:
    """A missing quote, a misspelt variable, broken syntax."""
    script = render_slurm(JOB)
    assert right in script
    done = shellcheck(script.replace(right, wrong))
    assert (done.returncode, code in done.stdout) == (1, True), done.stdout


def test_the_directives_come_first_and_say_the_size() -> None:
    """Sbatch reads them up to the first command; minutes are rounded up."""
    lines = render_slurm(JOB).splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert lines[:end] == [
        "#!/usr/bin/env bash",
        "#SBATCH --job-name=dray",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=16G",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --time=61",
        "#SBATCH --signal=B:TERM@120",
    ]
    assert not any(line.startswith("#SBATCH") for line in lines[end:])


@settings(max_examples=25)
@given(word=TEXT, value=TEXT, venv=TEXT)
def test_hostile_words_and_values_stay_values(word: str, value: str, venv: str) -> None:
    """Bash itself gives back what was given, and runs none of it."""
    script = render_slurm(Deployment(words=("build", word), env={"A_VALUE": value}, venv=venv))
    variables = script.partition("# A Ray cluster")[0]
    show = 'printf "%s\\0" "${command[@]}" "$A_VALUE" "${PATH%":$OLD"}"'
    done = subprocess.run(["bash", "-c", f"OLD=$PATH\n{variables}\n{show}"], check=True, capture_output=True)
    assert done.stdout.decode().split("\0")[-5:] == ["build", word, value, f"{venv}/bin", ""]


def test_a_job_without_a_command_is_refused() -> None:
    """An empty allocation would wait for nobody."""
    with pytest.raises(CallError, match="a Slurm job needs a command"):
        render_slurm(Deployment())


def test_outside_a_job_the_script_says_what_to_do(tmp_path: Path) -> None:
    """It starts nothing."""
    done = subprocess.run(
        ["bash", "-c", render_slurm(JOB)], capture_output=True, text=True, env={"PATH": "/bin:/usr/bin"}
    )
    assert done.returncode != 0
    assert "expected to run as a batch job" in done.stderr
