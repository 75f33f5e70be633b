"""Runs a command line of dray, or a script, as a job, and keeps its record: `python -m dray.cluster.jobs.entry`.

python -m dray.cluster.jobs.entry ID [--attempt N] [--record URL] -- build SRC DEST ...
python -m dray.cluster.jobs.entry ID [--attempt N] [--record URL] -- run script.py ARGUMENTS ...

The record is stored beside the dataset that the command makes or checks, or in the folder that --record names. The exit
code is that of the command.
"""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from dray.cluster.cli.exits import orderly_end
from dray.cluster.jobs.place import location_of
from dray.cluster.jobs.record import JobPlace
from dray.cluster.jobs.recorder import recorded
from dray.pipelines.progress import say
from dray.shards.errors import DrayError
from dray.shards.layout import Layout, Location
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.store import Store

SCRIPT = "run"  # the command of a script


@dataclass(frozen=True, slots=True)
class JobLine:
    """The command line of a job.

    Attributes:
        id: Submission id.
        attempt: Number of the attempt, from 1.
        record: Folder of the record; None: that of the command's dataset.
        words: The command and its arguments.
    """

    id: str
    attempt: int
    record: str | None
    words: tuple[str, ...]

    @classmethod
    def parse(cls, words: Sequence[str]) -> "JobLine":
        """Returns what the words after `python -m dray.cluster.jobs.entry` say; exits with 2 if they are wrong."""
        parser = argparse.ArgumentParser(prog="python -m dray.cluster.jobs.entry")
        parser.add_argument("id")
        parser.add_argument("--attempt", type=int, default=1)
        parser.add_argument("--record")
        end = words.index("--") if "--" in words else len(words)
        given, command = parser.parse_args(words[:end]), tuple(words[end + 1 :])
        if not command or command == (SCRIPT,):
            parser.error("expected a command after --, such as: -- build SRC DEST, or -- run script.py")
        return cls(given.id, given.attempt, given.record, command)

    @property
    def place(self) -> JobPlace | None:
        """Where the record is stored; None if there is none.

        Raises:
            CallError: A URL, prefix, storage option or the id is wrong.
        """
        if self.record is not None:
            return JobPlace(Location(Store(self.record), Layout(DEFAULT_PREFIX)), self.id)
        location = location_of(self.words)
        return None if location is None else JobPlace(location, self.id)


def main() -> None:
    """Run the job of this process's command line."""
    line = JobLine.parse(sys.argv[1:])
    try:
        place = line.place
    except DrayError as exc:  # the command itself says what is wrong
        say(f"this job has no record: {exc}")
        place = None
    with recorded(place, line.attempt, line.words[0]), orderly_end():
        run_words(line.words)


def run_words(words: Sequence[str]) -> None:
    """Run a command of dray, or a script as Python runs it."""
    if words[0] == SCRIPT:
        sys.argv = list(words[1:])
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[1])))
        runpy.run_path(words[1], run_name="__main__")
    else:
        from dray.cluster.cli.app import command_line

        command_line()(args=list(words), prog_name="dray")


if __name__ == "__main__":
    main()
