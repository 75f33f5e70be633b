"""Scripts whose workers cannot be spawned raise a one-sentence error; notebooks and guarded scripts are accepted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards import Store
from tests.support.datasets import pack

PRELUDE = """
import multiprocessing, sys, threading
from dray.loaders.workers.spawning import check_main

def check(method="spawn"):
    try:
        check_main(multiprocessing.get_context(method))
        print("fine")
    except ValueError as exc:
        print(exc)
"""
SCRIPT = f"""{PRELUDE}
def main():
    check()

check("fork")  # fine
check()  # refused
check("forkserver")  # refused
main()  # refused
if True:
    main()  # refused
if multiprocessing.parent_process() is None:  # it is None while a worker imports the script
    main()  # refused
try:
    check()  # refused
finally:
    pass
ready = threading.Event()
thread = threading.Thread(target=lambda: (ready.wait(), main()))
thread.start()
ready.set() or thread.join()  # refused
if __name__ == "__main__":
    main()  # fine
check()  # refused
if sys.argv and __name__ == "__main__":
    if True:
        main()  # fine
if "__main__" != __name__:
    pass
else:
    check("forkserver")  # fine
if multiprocessing.current_process().name == "MainProcess":
    main()  # fine
"""


def run(*command: str, stdin: str = "", folder: Path | None = None) -> str:
    """Returns what a program prints."""
    done = subprocess.run(
        [sys.executable, *command], input=stdin, capture_output=True, text=True, timeout=120, check=True, cwd=folder
    )
    return done.stdout


@pytest.mark.parametrize("as_module", [False, True])
def test_a_script_without_a_guard_gets_an_error_with_its_line(tmp_path: Path, as_module: bool) -> None:
    """Every call that a worker would reach by importing the script is refused, for any place and form of guard."""
    (tmp_path / "train.py").write_text(SCRIPT)
    lines_out = run(*(("-m", "train") if as_module else (str(tmp_path / "train.py"),)), folder=tmp_path).splitlines()
    expected = re.findall(r"# (fine|refused)$", SCRIPT, re.MULTILINE)
    lines = [number for number, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith(("# fine", "# refused"))]
    assert len(lines_out) == len(expected) == 13
    for found, outcome, line in zip(lines_out, expected, lines, strict=True):
        refusal = (
            f"spawned workers import {tmp_path}/train.py again, and its line {line} would start workers there too: put "
            'the training code under `if __name__ == "__main__":`, or use num_workers=0'
        )
        assert found == ("fine" if outcome == "fine" else refusal)


def test_what_is_not_imported_again_needs_no_guard(tmp_path: Path) -> None:
    """Commands, sessions and notebooks have no main file; a package that is run needs no guard either."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(f"{PRELUDE}\ncheck()\n")
    assert run("-c", f"{PRELUDE}\ncheck()\n") == run("-m", "package", folder=tmp_path) == "fine\n"
    assert run("-i", stdin=f"{PRELUDE}\n\ncheck()\n") == "fine\n"


def test_a_script_from_standard_input_is_refused() -> None:
    """A worker cannot read it again, with or without a guard. Forked workers need not."""
    refusal = (
        "spawned workers import the main script again, and '<stdin>' is not a file: save the script as one, or use "
        "num_workers=0"
    )
    text = f"{PRELUDE}\ncheck('fork')\ncheck()\nif __name__ == '__main__':\n    check('forkserver')\n"
    assert run("-", stdin=text).splitlines() == ["fine", refusal, refusal]


def test_a_process_that_is_being_spawned_gets_the_error_too(tmp_path: Path) -> None:
    """The script that spawned it has no guard."""
    start = "multiprocessing.get_context('spawn').Process(target=str).start()"
    is_first = "if multiprocessing.current_process().name == 'MainProcess':"
    (tmp_path / "train.py").write_text(f"{PRELUDE}\n{is_first}\n    {start}\nelse:\n    check()\n")
    assert "a spawned process that imports the main script cannot start workers: put" in run(str(tmp_path / "train.py"))


LOADERS = """
import sys, warnings
from dray.loaders import ShardLoader, Split, WebDataModule
from dray.shards.errors import CallError
warnings.simplefilter("ignore")
url, tars, endpoint, key, secret = sys.argv[1:]
options = {"endpoint": endpoint, "access_key_id": key, "secret_access_key": secret, "region": "us-east-1"}

def module(url):
    data = WebDataModule(None, "cls", dict.fromkeys((Split.train, Split.val), url), None,
                         kwargs_wld={Split.train: {"num_workers": 1}}, storage_options=options)
    data.setup("fit")
    return data.train_dataloader()

for loader in (ShardLoader(url, batch_size=4, num_workers=1, storage_options=options), module(url), module(tars)):
    try:
        next(iter(loader))
    except CallError as exc:
        print(exc)
"""


def test_every_loader_says_it(tmp_path: Path, s3: SeaweedServer) -> None:
    """Workers for object storage are spawned: all loaders refuse before any worker is started."""
    options = s3.storage_options
    url, tars = s3.url("spawning"), s3.url("spawning-tars")
    pack(tmp_path, 12, 2, url, storage_options=options)
    store = Store(url, options)
    for info in store.list_folder():
        Store(tars, options).put_new(info.name, store.get(info.name))
    secrets = [options[name] for name in ("endpoint", "access_key_id", "secret_access_key")]
    lines_out = run("-", url, tars, *secrets, stdin=LOADERS).splitlines()
    assert ["'<stdin>' is not a file" in line for line in lines_out] == [True] * 3
