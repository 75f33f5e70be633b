"""Indexing on Ray gives the same bytes as in process, and runs that meet or die lose nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dray.pipelines import index_tars
from dray.shards import InputError, Snapshot, Store
from dray.shards.layout import Layout, Location
from dray.shards.log import numbers_in
from tests.support.datasets import stored
from tests.support.foreign import put_tars, tar_of

NAMES = [f"{number:05}.tar" for number in range(12)]


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster on this machine."""
    import ray

    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


@pytest.mark.heavy
def test_ray_and_threads_make_the_same_indexes(ray_address: str, tmp_path: Path) -> None:
    """And name the same bad tars."""
    for folder in ("threads", "ray"):
        put_tars(Store(tmp_path / folder), NAMES)
        (tmp_path / folder / "bad.tar").write_bytes(tar_of(range(9))[:4000])
        for path in (tmp_path / folder).iterdir():
            os.utime(path, (1e9, 1e9))
    errors = []
    for folder, address in (("threads", "none"), ("ray", ray_address)):
        with pytest.raises(InputError) as exc:
            index_tars(tmp_path / folder, address=address, progress=False)
        errors.append(str(exc.value).partition("no version")[2])
        index_tars(tmp_path / folder, on_error="skip", address=address, progress=False)
    assert errors[0] == errors[1]
    one, other = (
        {
            name: data
            for name, data in stored(Store(tmp_path / folder), "__dray__").items()
            if "/commits/" not in name and "/intents/" not in name
        }
        for folder in ("threads", "ray")
    )
    assert one == other
    assert len(one) == len(NAMES) + 2


def test_two_runs_at_once_make_one_version(tmp_path: Path) -> None:
    """Both adopt what the other stored, and both succeed."""
    put_tars(Store(tmp_path), NAMES)
    with ThreadPoolExecutor(4) as threads:
        reports = list(threads.map(lambda _: index_tars(tmp_path, progress=False), range(4)))
    assert {report.num_samples for report in reports} == {48}
    location = Location(Store(tmp_path), Layout("wdshards"))
    assert numbers_in(location.store, location.layout.commits) == [1]
    assert len(list((tmp_path / "__dray__/wdshards/index").iterdir())) == len(NAMES)


def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    """Law 2 and 3: nothing is visible before the commit, and the rerun reads only what was missing."""
    put_tars(Store(tmp_path), NAMES)
    program = (
        "import os; from dray.pipelines import index_tars\n"
        "from dray.pipelines.indexing import scan\n"
        "inner = scan.store_index\n"
        "def store_index(location, number, index):\n"
        f"    if number == 7: open({str(tmp_path / 'reached')!r}, 'w').close(); import time; time.sleep(600)\n"
        "    return inner(location, number, index)\n"
        "scan.store_index = store_index\n"
        f"index_tars({str(tmp_path)!r}, num_threads=1, progress=False)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while not (tmp_path / "reached").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    with pytest.raises(FileNotFoundError):
        Snapshot.open(tmp_path)
    report = index_tars(tmp_path, progress=False)
    assert (report.num_adopted, report.num_scanned, report.num_samples) == (7, 5, 48)
    location = Location(Store(tmp_path), Layout("wdshards"))
    assert numbers_in(location.store, location.layout.intents) == [1]
