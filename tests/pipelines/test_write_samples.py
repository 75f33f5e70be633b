"""`write_samples` with an iterable of samples."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dray.loaders import Dataset
from dray.pipelines import write_samples
from dray.shards import CallError, InputError, Snapshot
from tests.conftest import Place


def stored(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).rglob("*") if path.suffix in (".tar", ".arrow"))


def test_what_a_generator_gives_is_read_back(place: Place) -> None:
    """Bytes as they are, other values in the format of their suffix or type; keys are numbers in order."""
    values: list[dict[str, Any]] = [
        {
            "bin": b"\xff\xd8" + bytes([n]),
            "cls": n,
            "x": np.full((2, 3), n, np.float32),
            "t.pyd": torch.arange(n),
            "about": {"n": n, "tags": ["a"]},
            "txt": f"no. {n}",
        }
        for n in range(7)
    ]
    report = write_samples(
        (dict(value) for value in values), place.url, samples_per_shard=3, storage_options=place.storage_options
    )
    assert (report.version, report.num_samples, report.num_shards) == (1, 7, 3)
    assert report.renamed == {"x": "x.npy", "t.pyd": "t.npy", "about": "about.json"}
    samples = Dataset(place.url, storage_options=place.storage_options)
    version = Snapshot.open(place.url, storage_options=place.storage_options)
    assert version.samples()["key"].to_pylist() == [f"{n:09d}" for n in range(7)]
    found = samples[5]
    assert (found["cls"], found["about.json"], found["txt"]) == (5, values[5]["about"], "no. 5")
    assert np.array_equal(found["x.npy"], values[5]["x"])
    assert torch.equal(torch.as_tensor(found["t.npy"]), torch.arange(5))
    assert version.read("000000005")["bin"] == b"\xff\xd8\x05"


def test_a_later_call_makes_the_next_version(tmp_path: Path) -> None:
    """Of just its samples."""
    write_samples([{"__key__": "a.b", "txt": "1"}, {"__key__": "c/d.e", "txt": "2"}], tmp_path)
    report = write_samples([{"__key__": "a.b", "txt": "3", "__url__": "x.tar"}], tmp_path)
    assert (report.version, report.num_changed, report.num_removed) == (2, 1, 1)
    assert Snapshot.open(tmp_path).read("a-b") == {"txt": b"3"}


def test_values_are_pickled_only_if_asked(tmp_path: Path) -> None:
    """With encode=None, and only under a name that says so."""
    write_samples([{"x.pyd": {1, 2}}], tmp_path, encode=None)
    assert [part.name for part in Snapshot.open(tmp_path).manifest.parts] == ["x.pyd"]
    with pytest.raises(InputError, match=r"key '000000000'.*'x\.json' is builtins\.set"):
        write_samples([{"x.pyd": {1, 2}}], tmp_path)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"txt": "keyless"}, "sample 6 has none, but those before have a __key__"),
        ({"__key__": "k0", "txt": "again"}, "share a key: 'k0'"),
        ({"__key__": "../up", "txt": ""}, r"sample 6: its __key__ is '../up'"),
        ({"__key__": 6, "txt": ""}, "its __key__ is 6: expected text"),
        ({"__key__": "k6"}, "key 'k6'.*at least one"),
        ({"__key__": "k6", "cls": object()}, "key 'k6'.*object"),
        (["k6", b""], "sample 6: a sample is a dict.*found list"),
    ],
)
def test_a_bad_sample_is_named_and_leaves_nothing(tmp_path: Path, bad: Any, problem: str) -> None:
    """No version, and no shard."""
    given = [*({"__key__": f"k{n}", "txt": str(n)} for n in range(6)), bad]
    with pytest.raises(InputError, match=problem):
        write_samples(given, tmp_path, samples_per_shard=2)
    assert stored(tmp_path) == []


def test_a_generator_that_raises_leaves_the_last_version(tmp_path: Path) -> None:
    """Its own error is raised."""

    def failing() -> Iterator[dict[str, Any]]:
        yield from ({"txt": str(n)} for n in range(5))
        raise LookupError("the end of the source")

    write_samples([{"txt": "first"}], tmp_path)
    before = stored(tmp_path)
    with pytest.raises(LookupError, match="the end of the source"):
        write_samples(failing(), tmp_path, samples_per_shard=2)
    assert stored(tmp_path) == before
    assert Snapshot.open(tmp_path).version == 1


def test_no_sample_is_an_error(tmp_path: Path) -> None:
    """As are arguments that are no iterable of dicts."""
    with pytest.raises(InputError, match="no sample was given"):
        write_samples([], tmp_path)
    for samples in ({"txt": "1"}, "text", None):
        with pytest.raises(CallError, match="expected an iterable of dicts"):
            write_samples(samples, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="encode='npy'"):
        write_samples([], tmp_path, encode="npy")


def test_a_run_with_a_name_happens_once(tmp_path: Path) -> None:
    """A rerun does not even start the generator."""

    def given() -> Iterator[dict[str, Any]]:
        starts.append(1)
        yield {"txt": "1"}

    starts: list[int] = []
    assert write_samples(given(), tmp_path, build_id="once").is_new
    assert not write_samples(given(), tmp_path, build_id="once").is_new
    assert starts == [1]


PROGRAM = """
import signal, sys, time
from dray.pipelines import write_samples
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
def given():
    for n in range(10):
        yield {"txt": str(n)}
        if n == 6 and sys.argv[2] == "wait":
            print("waiting", flush=True)
            time.sleep(600)
print(write_samples(given(), sys.argv[1], samples_per_shard=2, build_id="nightly"))
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_deletes_and_a_kill_leaves_shards_to_adopt(tmp_path: Path, signal_number: signal.Signals) -> None:
    """Neither makes a version; a rerun under the same name does."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen([*command, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        while "000001.arrow" not in stored(tmp_path):
            time.sleep(0.01)
        process.send_signal(signal_number)
        process.communicate(timeout=60)
        assert process.returncode
    tars = [name for name in stored(tmp_path) if name.endswith(".tar")]
    assert len(tars) >= 2 if signal_number == signal.SIGKILL else not tars
    done = subprocess.run([*command, "go"], capture_output=True, text=True, check=True)
    assert "version 1: 10 samples in 5 shards" in done.stdout
    assert f"{5 - len(tars)} packed, {len(tars)} reused" in done.stdout


def test_rows_of_an_array_in_a_file_are_arrays(tmp_path: Path) -> None:
    """As `np.load` with `mmap_mode` gives them."""
    np.save(tmp_path / "all.npy", np.arange(6.0).reshape(3, 2))
    rows = np.load(tmp_path / "all.npy", mmap_mode="r")
    write_samples(({"x": row} for row in rows), tmp_path / "out")
    stored_rows = [Snapshot.open(tmp_path / "out").read(f"{number:09d}")["x.npy"] for number in range(3)]
    assert [np.load(io.BytesIO(row)).tolist() for row in stored_rows] == rows.tolist()
