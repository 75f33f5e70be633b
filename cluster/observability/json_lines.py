"""A standard error of JSON objects, one per line.

Whatever is printed there becomes an object: dray's own messages, warnings and errors, and lines that Ray forwards from
its workers. What a C library writes past Python stays as it is.
"""

import io
import json
import re
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from dray.pipelines.events import Advanced, Began, Event, FoundBad, LostNode, Retried

_OWN = re.compile(r"dray: (?:(error|warning): )?")
_FORWARDED = re.compile(r"\x1b\[\d+m\((?P<who>[^()]*pid=\d+[^()]*)\)\x1b\[0m |\((?P<plain>[^()]*pid=\d+[^()]*)\) ")
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_BOX = "╭╮╰╯─│ "
_SHARD = re.compile(r"\bshard (\d+)")


class JsonLog(io.TextIOBase):
    """A text stream that writes each line as a JSON object to another stream.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._begun = ""  # a line without its end
        self._stages: dict[str, dict[str, Any]] = {}  # title -> what is known of a stage
        self._tries: dict[str, int] = {}  # task -> number of its attempt
        self.fields: dict[str, Any] = {}
        """Fields of every object, such as the dataset."""

    def writable(self) -> bool:
        """Returns True."""
        return True

    def fileno(self) -> int:
        """Returns the descriptor of standard error, for libraries that write past Python."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write the lines that end in a text."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                self._write_line(line)
        return len(text)

    def flush(self) -> None:
        """Flush the stream. A line without its end waits for it."""
        self._stream.flush()

    def record(self, level: str, message: str, **fields: Any) -> None:
        """Write one object."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        found = {"time": now, "level": level, "message": message, **self.fields, **fields}
        with self._lock:
            self._stream.write(json.dumps(found, ensure_ascii=False, default=str) + "\n")
            self._stream.flush()

    def observe(self, event: Event) -> None:
        """Write an object for what no message says, and note what progress lines are about."""
        with self._lock:
            match event:
                case Began(stage, total, unit):
                    self._stages[stage] = {"stage": stage, "done": 0, "total": total, "unit": unit, "bytes": 0}
                case Advanced(stage, count, num_bytes):
                    self._stages[stage]["done"] += count
                    self._stages[stage]["bytes"] += num_bytes
                case Retried(task, problem):
                    self._tries[task] = attempt = self._tries.get(task, 1) + 1
                    self.record("warning", f"{task} is tried again: {problem}", attempt=attempt, **_shard_of(task))
                case LostNode(node):
                    self.record("warning", f"node {node} was lost", node=node)
                case FoundBad(count):
                    self.record("warning", f"inputs that cannot be packed: {count}", count=count)
                case _:
                    pass

    def _write_line(self, line: str) -> None:
        """Write a line of text as an object; a line that is one stays as it is, and an empty one is left out."""
        fields: dict[str, Any] = {}
        if forwarded := _FORWARDED.match(line):
            fields["node"] = forwarded["who"] or forwarded["plain"]
            line = line[forwarded.end() :]
        text = _STYLE.sub("", line).rstrip().strip(_BOX if line[:1] in _BOX else " ")
        own = _OWN.match(text)
        message = text[own.end() :] if own else text
        if not message:
            return
        level = (own and own[1]) or "info"
        stage = next((found for title, found in self._stages.items() if message.startswith(f"{title}: ")), {})
        self.record(level, message, **stage, **_shard_of(message), **fields)


def _shard_of(text: str) -> dict[str, int]:
    found = _SHARD.search(text)
    return {"shard": int(found[1])} if found else {}
