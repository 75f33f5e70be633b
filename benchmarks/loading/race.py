"""Runs the contestants one after the other, round by round, each in a process of its own that stays."""

import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loading.task import Task

HERE = Path(__file__).parent.parent
Rates = dict[str, list[float]]  # samples a second, by contestant, a number a round


@dataclass(frozen=True, slots=True)
class Contestant:
    """A name in the table.

    Attributes:
        name: As it is printed.
        opener: `module:function` below the package.
        needs: What must be installed for it.
        is_ours: Whether it is dray, or the yardstick.
        package: That of its runner and opener.
    """

    name: str
    opener: str
    needs: str
    is_ours: bool = False
    package: str = "loading"

    def interpreter(self, rivals: str | None) -> str | None:
        """This interpreter or that of the rivals, whichever has what it needs; None: neither has."""
        for python in filter(None, (sys.executable, rivals)):
            command = [python, "-c", f"import sys, importlib.util as u; sys.exit(u.find_spec('{self.needs}') is None)"]
            if subprocess.run(command, cwd=HERE, check=False).returncode == 0:
                return python
        return None


COPY = Contestant("copy", "copying:copied", "dray", is_ours=True)
BIONEMO = Contestant("bionemo", "bionemo:loaded", "webdataset")
LITDATA = Contestant("litdata", "lit:loaded", "litdata")
MODULE = Contestant("dray WebDataModule", "web_datamodule:loaded", "dray", is_ours=True)
PICKLED = Contestant("dray pickled", "shard_loader:pickled", "dray", is_ours=True)
TRANSCODED = Contestant("dray transcoded", "shard_loader:transcoded", "dray", is_ours=True)
CONTESTANTS = (
    COPY,
    BIONEMO,
    LITDATA,
    Contestant("MosaicML", "mosaic:loaded", "streaming"),
    Contestant("Ray Data", "ray_data:loaded", "ray"),
    MODULE,
    PICKLED,
    TRANSCODED,
)
Entries = Sequence[tuple[Contestant, str]]  # with the interpreter of each
WRITERS = {"shard_loader", "lit", "mosaic", "ray_data"}  # the modules that write a form of the samples


class Racer:
    """The process of one contestant; `with` ends it.

    Args:
        python: The interpreter that has what the contestant needs.
        opener: `module:function` below the package.
        log: Where what it prints is kept.
        package: That of its runner.
    """

    def __init__(self, python: str, opener: str, log: Path, package: str = "loading") -> None:
        self._opener, self._log = opener, log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [python, "-m", f"{package}.runner", opener],
                cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
            )  # fmt: skip

    def __enter__(self) -> "Racer":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its standard input, which ends it
            pass

    def ask(self, question: str, task: Task) -> dict[str, Any]:
        """The answer of its runner.

        Raises:
            RuntimeError: There is none; with the end of what it printed.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("started without pipes")
        with suppress(BrokenPipeError):  # the answer is missing then
            self._process.stdin.write(f"{question} {task.to_json()}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._opener}: no answer to {question!r}, {task}\n{self._log.read_text()[-4000:]}")
        return dict(json.loads(answer))


def find_entries(contestants: Iterable[Contestant], rivals: str | None) -> Entries:
    """The contestants that can run, each with its interpreter; says who is left out."""
    found = [(contestant, contestant.interpreter(rivals)) for contestant in contestants]
    for contestant, python in found:
        if python is None:
            print(f"{contestant.name} is left out: {contestant.needs!r} is not installed, see requirements.txt")
    return [(contestant, python) for contestant, python in found if python is not None]


def write(task: Task, entries: Entries) -> None:
    """The samples in the form of each contestant."""
    task.write_samples()
    interpreters = {contestant.opener.split(":")[0]: python for contestant, python in entries}
    for module in sorted(WRITERS & interpreters.keys()):
        with Racer(interpreters[module], f"{module}:write", task.path(f"{module} write.log")) as racer:
            racer.ask("open", task)


@contextmanager
def started(entries: Entries, folder: Path) -> Iterator[dict[str, Racer]]:
    """The process of each contestant, by its name; they end with the block."""
    with ExitStack() as stack:
        yield {
            contestant.name: stack.enter_context(
                Racer(python, contestant.opener, folder / f"{contestant.name}.log", contestant.package)
            )
            for contestant, python in entries
        }


def race(racers: Mapping[str, Racer], task: Task, rounds: int) -> Rates:
    """Samples a second, round by round, after one in which every number was looked at."""
    order, rates = random.Random(0), Rates()
    for name, racer in racers.items():
        racer.ask("check", task)
        rates[name] = []
    for _ in range(rounds):
        for name in order.sample(list(racers), len(racers)):
            answer = racers[name].ask("turn", task)
            rates[name].append(answer["samples"] / answer["seconds"])
    return rates
