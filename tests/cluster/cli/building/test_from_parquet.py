"""`dray build --from-parquet`."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dray.shards import Snapshot
from tests.conftest import Dray


def write(path: Path, start: int, stop: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = list(range(start, stop))
    pq.write_table(pa.table({"id": [f"r{n}" for n in numbers], "cls": numbers}), path, row_group_size=3)


def test_rows_become_samples_and_a_rerun_reads_only_changed_files(dray: Dray, tmp_path: Path) -> None:
    """All files of a folder and its sub-folders."""
    source, out = tmp_path / "tables", tmp_path / "out"
    write(source / "a.parquet", 0, 7)
    write(source / "deep" / "b.parquet", 7, 10)
    command = ("build", str(source), str(out), "--from-parquet", "--key-column", "id", "--address", "none")
    assert "10 samples in" in dray(*command).out
    assert Snapshot.open(out).read("r8") == {"cls": b"8"}
    assert "nothing to do" in dray(*command).out
    write(source / "deep" / "b.parquet", 7, 12)
    os.utime(source / "deep" / "b.parquet", (1, 1))
    assert "2 added, 0 changed, 0 removed" in dray(*command).out


def test_one_file_without_keys_has_numbered_rows(dray: Dray, tmp_path: Path) -> None:
    """Under the name of the file."""
    write(tmp_path / "a.parquet", 0, 3)
    dray("build", str(tmp_path / "a.parquet"), str(tmp_path / "out"), "--from-parquet")
    assert Snapshot.open(tmp_path / "out").samples()["key"].to_pylist() == ["a-0", "a-1", "a-2"]


def test_what_does_not_go_together_is_refused(dray: Dray, tmp_path: Path) -> None:
    """Each error names the options."""
    write(tmp_path / "in" / "a.parquet", 0, 3)
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    for command, problem in {
        (
            "build",
            source,
            out,
            "--from-parquet",
            "--suffix",
            "cls",
            "--shards",
            3,
        ): "does not go with --suffix, --shards",
        ("build", source, out): "give --suffix",
        ("build", source, out, "--from-parquet", "--key-column", "no"): "--key-column no: the table has the columns id",
        ("plan", source, out, "--from-parquet"): "only dray build",
        ("build", out, out, "--from-parquet"): "no file *.parquet, *.pq in",
    }.items():
        outcome = dray(*command)
        assert outcome.code == (1 if "no file" in problem or "table" in problem else 2)
        assert problem in " ".join(outcome.err.split())
