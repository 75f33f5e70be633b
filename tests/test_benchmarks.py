"""The benchmarks run: a contestant that no longer fits the code would otherwise be found when figures are wanted."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_packing_is_measured_against_the_others(tmp_path: Path) -> None:
    """On few samples: every contestant packs the same members, and the ratios are printed; what they are is no test."""
    command = [sys.executable, BENCHMARKS / "pack.py", "--sizes", "4kB", "--samples", "40", "--rounds", "1"]
    done = subprocess.run([*command, "--dir", tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for line in ("dray pack", "dray call", "ShardWriter", "GNU tar", "time of ShardWriter / dray pack", "peak memory"):
        assert line in done.stdout
