"""The command that copies datasets into other shards."""

import json
from pathlib import Path

import pytest

from dray.pipelines import write_samples
from dray.shards import Snapshot
from tests.conftest import Dray


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 samples, every second of which has a text, in 4 shards."""
    given = ({"__key__": f"s{n:02d}", "bin": bytes(n * 100), "txt": None if n % 2 else f"{n}"} for n in range(40))
    write_samples(given, tmp_path / "in", samples_per_shard=10, progress=False)
    return tmp_path / "in"


def keys_of(folder: Path) -> list[str]:
    version = Snapshot.open(folder)
    return [key for shard in version.shards for key in version.index(shard).keys]


def test_reshard_copies_and_a_rerun_does_nothing(dray: Dray, source: Path, tmp_path: Path) -> None:
    """A dry run shows the plan before and after."""
    words = ["reshard", source, tmp_path / "out", "--samples-per-shard", "16", "--shuffle-seed", "5"]
    plan = dray(*words, "--dry-run")
    assert plan.code == 0
    assert "40 samples in 3 shards; 0 stay, 3 to make of at most 0.1 MB" in plan.out
    assert not (tmp_path / "out").exists()
    done = dray(*words)
    assert "version 1: 40 samples in 3 shards" in done.out
    assert sorted(keys_of(tmp_path / "out")) == keys_of(source)
    assert keys_of(tmp_path / "out") != keys_of(source)
    (report,) = json.loads(dray(*words, "--json").out)
    assert (report["is_new"], report["num_reused"]) == (False, 3)
    (facts,) = json.loads(dray(*words, "--dry-run", "--json").out)
    assert facts["has_work"] is False
    assert [shard["samples"] for shard in facts["shards"]] == [16, 16, 8]


def test_reshard_takes_a_choice_of_samples(dray: Dray, source: Path, tmp_path: Path) -> None:
    """By a file of keys, a pattern, and the sizes of parts."""
    (tmp_path / "keys").write_text("s07\n\ns03\ns21\n")
    assert dray("reshard", source, tmp_path / "a", "--keys", tmp_path / "keys", "-q").code == 0
    assert keys_of(tmp_path / "a") == ["s03", "s07", "s21"]
    words = ["--key-glob", "s[12]*", "--min-bytes", "bin=1.2k", "--max-bytes", "bin=2500", "--has", "txt"]
    assert dray("reshard", source, tmp_path / "b", *words, "--part", "txt", "-q").code == 0
    assert keys_of(tmp_path / "b") == ["s12", "s14", "s16", "s18", "s20", "s22", "s24"]
    assert Snapshot.open(tmp_path / "b").read("s12") == {"txt": b"12"}
    where = Snapshot.open(tmp_path / "b").manifest.recipe["where"]
    assert where == "key s[12]*, has txt, bin >= 1200, bin <= 2500"


def test_reshard_names_options_in_its_errors(dray: Dray, source: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("s07\nnone\n")
    out = tmp_path / "out"
    for words, error in {
        ("--shards", "2", "--shard-bytes", "1Mi"): "--shards 2 with --samples-per-shard or --shard-bytes",
        ("--shard-bytes", "much"): "--shard-bytes 'much': expected a number of bytes, such as 4096, 10k",
        ("--min-bytes", "10k"): "--min-bytes 10k: expected SUFFIX=SIZE such as jpg=10k",
        ("--has", "jpg"): "no sample has a part 'jpg'; their parts are bin, txt",
        ("--keys", str(tmp_path / "keys")): "--keys names keys that no sample of the source has: 'none'",
        ("--part", "txt"): "20 samples have none of the parts txt",
        ("--key-glob", "x*"): "no sample is left to copy",
    }.items():
        failed = dray("reshard", source, out, *words)
        assert failed.code == (1 if "keys names" in error or "have none" in error else 2)
        assert error in failed.err
    assert not out.exists()
