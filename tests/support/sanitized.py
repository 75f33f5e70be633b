"""The compiled modules under AddressSanitizer and UndefinedBehaviorSanitizer, over whole, cut and damaged pickles.

Run as `python -m tests.support.sanitized FOLDER`, where `build` has compiled the modules into FOLDER, with libasan
preloaded; tests/repo/test_compiled.py does.
"""

import importlib.util
import os
import random
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SOURCES = {
    module["name"]: module["sources"]
    for module in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
}
NUM_DAMAGED = 50_000
COMPILER = os.environ.get("CC", "cc")
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1", "-shared", "-fPIC"]


def build(folder: Path) -> None:
    """Compile both modules; CalledProcessError with the compiler's words if it cannot."""
    for name, sources in SOURCES.items():
        command = [COMPILER, *FLAGS, "-I", sysconfig.get_path("include"), *sources, "-o", folder / f"{name}.so"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)


def environment() -> dict[str, str]:
    """What Python needs to load them: libasan comes first, and every object is an allocation of its own."""
    found = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "PYTHONMALLOC": "malloc"}
    return {**os.environ, "LD_PRELOAD": found.stdout.strip(), **options}


def load(folder: Path) -> None:
    """Import the modules in `folder` under the names of the installed ones."""
    for name in SOURCES:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.so")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


def main() -> None:
    """Print the number of inputs; the first error of a sanitizer ends the process."""
    load(Path(sys.argv[1]))
    from tests.shards.codecs.pickles.test_fuzz_pickles import damaged, pool
    from tests.support.guarded import gather_everywhere, scan, scan_everywhere

    rng, samples = random.Random(7), pool()
    for _ in range(NUM_DAMAGED):
        scan(np.frombuffer(damaged(rng, samples), np.uint8).copy().data)  # in an allocation of just its size
    print(gather_everywhere(), scan_everywhere(), NUM_DAMAGED)


if __name__ == "__main__":
    main()
