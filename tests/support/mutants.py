"""Shows which small faults the tests would notice: applies one change at a time, runs tests, reports.

    python tests/support/mutants.py [LIST.toml] [--only WORD] [--all]

A list holds `[[mutant]]` tables: `file`; `old`, a text that occurs in the file once; `new`, what replaces it; `tests`,
arguments of pytest. A mutant is killed if these tests fail or crash, and survives if they pass; without it they must
pass. With `--all`, survivors meet the whole plain suite as well. `equivalent`, a reason, marks a change that cannot
alter what the program does: it is not run. Run this in a clean checkout that is installed in editable mode, as
files are changed in place and restored.
"""

import argparse
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_suffix(".toml")
TIMEOUT_S = 900.0
PASSED, FAILED, NOT_COLLECTED = 0, 1, 2  # pytest's exit codes
FAILURES = {FAILED, NOT_COLLECTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: Path in the checkout.
        old: Text that occurs in the file exactly once.
        new: What replaces it.
        tests: Arguments of pytest.
        equivalent: Why no test can notice it; empty where one should.
    """

    file: str
    old: str
    new: str
    tests: Sequence[str]
    equivalent: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {_short(self.old)} -> {_short(self.new)}"


def read_mutants(path: Path, only: str) -> list[Mutant]:
    """The mutants of a list whose description contains a word.

    Raises:
        ValueError: A text does not occur exactly once in its file, so the list is out of date.
    """
    mutants = [Mutant(**entry) for entry in tomllib.loads(path.read_text())["mutant"]]
    for mutant in mutants:
        if (count := (ROOT / mutant.file).read_text().count(mutant.old)) != 1:
            raise ValueError(f"{mutant}: the old text occurs {count} times; expected once")
    return [mutant for mutant in mutants if only in str(mutant)]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The checkout with the change in it."""
    path = ROOT / mutant.file
    original = path.read_text()
    try:
        path.write_text(original.replace(mutant.old, mutant.new))
        _compile_if_c(path)
        yield
    finally:
        path.write_text(original)
        _compile_if_c(path)


def outcome(mutant: Mutant, *, with_all: bool) -> str:
    """Returns "killed", "survived", or "invalid" where the tests could not run."""
    with applied(mutant):
        if mutant.file.endswith(".py"):
            compile((ROOT / mutant.file).read_text(), mutant.file, "exec")
        code = _run_tests(mutant.tests)
        if code == PASSED and with_all:
            code = _run_tests(["tests"])
    return "killed" if code in FAILURES or code < 0 else "survived" if code == PASSED else "invalid"


def main() -> int:
    """Run a list; the exit code is 1 where a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", nargs="?", type=Path, default=LIST)
    parser.add_argument("--only", default="", help="run the mutants whose description contains this")
    parser.add_argument("--all", action="store_true", help="run the whole plain suite on survivors")
    options = parser.parse_args()
    if subprocess.run(["git", "diff", "--quiet"], cwd=ROOT, check=False).returncode:
        parser.error("the checkout has changes that are not committed")
    mutants = read_mutants(options.list, options.only)
    for tests in dict.fromkeys(tuple(mutant.tests) for mutant in mutants):
        if _run_tests(tests) != PASSED:
            parser.error(f"these tests do not pass without a change: {' '.join(tests)}")
    counts: Counter[str] = Counter()
    for mutant in mutants:
        started = monotonic()
        found = "equivalent" if mutant.equivalent else outcome(mutant, with_all=options.all)
        counts[found] += 1
        print(f"{found:10} {monotonic() - started:4.0f} s  {mutant}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    return 1 if counts["survived"] or counts["invalid"] else 0


def _run_tests(arguments: Sequence[str]) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--numprocesses=0", *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=TIMEOUT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        return FAILED  # it hangs, so whoever runs the tests notices


def _compile_if_c(path: Path) -> None:
    if path.suffix in (".c", ".h"):
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
        subprocess.run(command, check=True, capture_output=True)


def _short(text: str) -> str:
    return repr(" ".join(text.split()))[:70]


if __name__ == "__main__":
    sys.exit(main())
