"""Exit codes by kind of error; commands that are interrupted keep stored shards and say so in one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dray.cluster.cli.exits import ExitCode, exit_code
from dray.pipelines import pickles_to_tars
from dray.shards import errors
from tests.conftest import MakeInputs

DRAY = Path(sys.executable).parent / "dray"
NUM_SHARDS = 400

CODES = {
    errors.StoreError: ExitCode.STORE,
    errors.NotFoundError: ExitCode.STORE,
    errors.ExistsError: ExitCode.STORE,
    errors.DeniedError: ExitCode.STORE,
    OSError: ExitCode.STORE,
    errors.CallError: ExitCode.WRONG_CALL,
    errors.PositionError: ExitCode.WRONG_CALL,
    TypeError: ExitCode.WRONG_CALL,
    ValueError: ExitCode.WRONG_CALL,
    errors.ClusterError: ExitCode.CLUSTER,
    errors.ConflictError: ExitCode.CONFLICT,
    errors.InputError: ExitCode.BAD_DATA,
    errors.MissingInputError: ExitCode.BAD_DATA,
    errors.DamagedError: ExitCode.BAD_DATA,
    errors.ChangedError: ExitCode.BAD_DATA,
    errors.RefusedError: ExitCode.BAD_DATA,
    KeyError: None,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_kind_of_error_has_an_exit_code(kind: type[Exception], code: ExitCode | None) -> None:
    """A missing input is bad data although it is an OSError; a fault of dray has no code of its own."""
    assert exit_code(kind("it")) == code


def test_an_error_of_ray_is_one_of_the_cluster() -> None:
    """Ray raises its own where the driver only waits."""
    import ray

    assert exit_code(ray.exceptions.RaySystemError("the head is gone")) == ExitCode.CLUSTER


def test_the_traceback_does_not_change_the_exit_code() -> None:
    """A job that sets DRAY_TRACEBACK is judged as any other."""
    done = subprocess.run([DRAY, "--traceback", "ls", "ftp://host"], capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.WRONG_CALL
    assert "Traceback" in done.stderr


def test_a_reader_that_ends_early_is_not_an_error_of_the_data(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """`dray ls | head -0` ends as other programs do that SIGPIPE stops."""
    inputs = make_inputs(3)
    pickles_to_tars(inputs.folder, inputs.names, "tensor.pyd", tmp_path / "out", "wdshards", progress=False)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as closed:
        done = subprocess.run(
            [DRAY, "ls", tmp_path / "out"], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == ExitCode.CLOSED_OUTPUT
    assert "Traceback" not in done.stderr


def interrupted(number: signal.Signals, when: Callable[[], bool], *words: object) -> subprocess.CompletedProcess[str]:
    """Runs a command that gets a signal as soon as a condition holds."""

    def listen() -> None:
        signal.signal(number, signal.SIG_DFL)  # a shell makes its background jobs ignore Ctrl-C

    command = [str(DRAY), *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=listen
    ) as process:
        while not when() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        return subprocess.CompletedProcess(command, process.wait(60), *process.communicate())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda value: getattr(value, "name", "")
)
@pytest.mark.parametrize("address", ["none", pytest.param("local", marks=pytest.mark.heavy)])
def test_a_stopped_build_says_what_is_kept_and_a_rerun_continues(
    make_inputs: MakeInputs, tmp_path: Path, address: str, number: signal.Signals, code: int
) -> None:
    """It prints one line without a stack and makes no version; the next build adopts its shards."""
    inputs, out = make_inputs(NUM_SHARDS), tmp_path / "out"
    words = ("build", inputs.folder, out, "--suffix", "tensor.pyd", "--shards", NUM_SHARDS, "--address", address)
    done = interrupted(number, lambda: bool(list(out.glob("*.tar"))), *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert "every shard that was stored is kept: run the same command again" in done.stderr
    assert not list(out.glob("__dray__/*/commits/*"))
    report = pickles_to_tars(
        inputs.folder, inputs.names, "tensor.pyd", out, "wdshards", min_num_shards=NUM_SHARDS, progress=False
    )
    assert report.version == 1
    assert 0 < report.num_reused < NUM_SHARDS


@pytest.mark.parametrize(
    ("command", "kept"),
    [("build", "every shard that was stored is kept"), ("plan", "nothing was changed")],
)
def test_ctrl_c_says_what_each_command_leaves(tmp_path: Path, command: str, kept: str) -> None:
    """The signal arrives while the command waits for its names."""
    names = tmp_path / "names"
    os.mkfifo(names)
    opened: list[int] = []

    def is_reading() -> bool:
        with suppress(OSError):  # no process reads yet
            opened.append(os.open(names, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    words = (command, tmp_path, tmp_path.parent / "out", "--suffix", "pyd", "--names", names)
    done = interrupted(signal.SIGINT, lambda: is_reading() and os.close(opened[0]) is None, *words)
    assert done.returncode == 130
    assert done.stderr.startswith(f"dray: interrupted; {kept}")
    assert done.stderr.count("\n") == 1
