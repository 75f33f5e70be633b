"""Builds that are told to stop: what is stored is kept, one line says so, and the exit code tells the signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dray.pipelines import pickles_to_tars
from tests.conftest import Inputs, MakeInputs

DRAY = Path(sys.executable).parent / "dray"
NUM_SHARDS = 400


def stopped(inputs: Inputs, output: Path, address: str, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """A build that gets a signal when it has stored its first shards."""
    command = [DRAY, "build", inputs.folder, output, "--suffix", "tensor.pyd", "--shards", str(NUM_SHARDS)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def listen() -> None:
        signal.signal(number, signal.SIG_DFL)  # a shell lets what it starts in the background ignore Ctrl-C

    with subprocess.Popen(
        [*command, "--address", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=listen,
    ) as process:  # fmt: skip
        while not list(output.glob("*.tar")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        return subprocess.CompletedProcess(command, process.wait(60), *process.communicate())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda value: getattr(value, "name", "")
)
@pytest.mark.parametrize("address", ["none", pytest.param("local", marks=pytest.mark.heavy)])
def test_a_stopped_build_says_what_is_kept_and_a_rerun_goes_on(
    make_inputs: MakeInputs, tmp_path: Path, address: str, number: signal.Signals, code: int
) -> None:
    """One line, no stack; no version, and shards that the next build adopts."""
    inputs = make_inputs(NUM_SHARDS)
    done = stopped(inputs, tmp_path / "out", address, number)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert "every shard that was stored is kept: run the same command again" in done.stderr
    assert not list((tmp_path / "out").glob("__dray__/*/commits/*"))
    if address == "local":
        report = pickles_to_tars(
            inputs.folder, inputs.names, "tensor.pyd", tmp_path / "out", "wdshards", min_num_shards=NUM_SHARDS
        )
        assert report.version == 1
        assert 0 < report.num_reused < NUM_SHARDS
