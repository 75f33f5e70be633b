"""Commands that are interrupted: stored shards are kept, one line says so, and the exit code names the signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dray.pipelines import pickles_to_tars
from tests.conftest import MakeInputs

DRAY = Path(sys.executable).parent / "dray"
NUM_SHARDS = 400


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
