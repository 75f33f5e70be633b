"""The driver of a pipeline is killed: the next plan makes only what was not stored whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dray.pipelines import plan_changes
from tests.support.datasets import samples_at

DRIVER = """
import sys, time
import ray
from dray.pipelines import plan_changes

class Slow:
    def __init__(self, seen, pause_s):
        self.seen, self.pause_s = seen, pause_s
    def __call__(self, row):
        number = int(row["__key__"][-1]) % 3
        with open(self.seen, "a") as file:
            file.write(row["__key__"] + "\\n")
        time.sleep(self.pause_s)
        return [
            {"__key__": f"{row['__key__']}_{n}", "__source__": row["__source__"], "y.npy": row["x.npy"] * n, "cls": n}
            for n in range(number)
        ]

folder, seen, pause_s = sys.argv[1:]
ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", object_store_memory=100 << 20)
ray.data.DataContext.get_current().target_max_block_size = 1000
plan = plan_changes(f"{folder}/in", f"{folder}/out", suffixes="x.npy", transform_version="1", progress=False)
print(plan.num_done, plan.num_to_make, flush=True)
slow = Slow(seen, float(pause_s))
rows = plan.read(override_num_blocks=20).flat_map(slow.__call__)
print(plan.write(rows, samples_per_shard=20).version, flush=True)
"""


def command(folder: Path, seen: Path, pause_s: float) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(folder), str(seen), str(pause_s)]


def indexed(folder: Path) -> int:
    """Number of shards that are stored with their index."""
    return len(list(folder.glob("out/__dray__/wdshards/index/*.arrow")))


@pytest.mark.heavy
def test_after_the_death_of_a_driver_only_what_was_not_stored_whole_is_made(tmp_path: Path) -> None:
    """Inputs at an edge of the stored shards, and those without a sample, are made again; the result is the same."""
    (tmp_path / "in").mkdir()
    for number in range(400):
        np.save(tmp_path / "in" / f"s{number:03d}.x.npy", np.full(4, number))
    killed = subprocess.Popen(command(tmp_path, tmp_path / "first", 0.05), start_new_session=True)
    deadline = time.monotonic() + 120
    while indexed(tmp_path) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert 4 <= indexed(tmp_path) < 18
    plan = plan_changes(tmp_path / "in", tmp_path / "out", suffixes="x.npy", transform_version="1", progress=False)
    sources = {
        key.partition("_")[0]
        for shard in (tmp_path / "out").glob("*.tar")
        for key in subprocess.check_output(["tar", "-tf", shard], text=True).split()
    }
    assert len(sources) - 2 * indexed(tmp_path) <= plan.num_done < len(sources)
    done = subprocess.check_output(command(tmp_path, tmp_path / "second", 0), text=True).split()
    assert done == [str(plan.num_done), str(400 - plan.num_done), "1"]
    assert len((tmp_path / "second").read_text().split()) == plan.num_to_make
    found = dict(samples_at(tmp_path / "out"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "in").symlink_to(tmp_path / "in")
    subprocess.run(command(other, other / "seen", 0), check=True)
    assert dict(samples_at(other / "out")) == found
    assert len(found) == 360
