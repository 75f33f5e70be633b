"""Which job a command line is: the same command with the same arguments is the same job, in numbered attempts. Pure.

The id of a job holds no clock and nothing random, so that whoever submits the same command again finds the job, also
from another machine.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NOT_IDENTITY = ("address", "as_json", "log_format", "quiet", "ray_metrics", "traceback")
"""Parameters that change only what is printed or exported, or where."""

_PASSWORD = re.compile(r"://[^/\s@]*@")  # also a user's name alone: tokens are given so
_GIVEN = re.compile(r"(?:^-*|(?<=[=?&,;\s]))([A-Za-z][\w.-]*)=")  # NAME=VALUE, also in a query
_SECRET = {"secret", "token", "password", "passwd", "passphrase", "pwd", "credential", "credentials", "apikey"}
_SECRET |= {"sas", "sig", "signature"}


@dataclass(frozen=True, slots=True)
class JobName:
    """The name that all attempts of a job share, such as dray-build-0f3a9c21b7d4."""

    text: str

    @classmethod
    def of(cls, command: str, params: Mapping[str, Any], content: bytes = b"") -> "JobName":
        """Returns the name of a command with these parameters.

        Args:
            command: Such as `build`.
            params: Parameter of the command -> its value; defaults, and the order of options, make no difference.
            content: What else decides the job: the bytes of a script.
        """
        given = {name: value for name, value in params.items() if name not in NOT_IDENTITY and value is not None}
        text = json.dumps([command, given], sort_keys=True, default=str).encode()
        return cls(f"dray-{command}-{hashlib.sha256(text + content).hexdigest()[:12]}")

    def attempt(self, number: int) -> str:
        """Returns the submission id of an attempt, which counts from 1."""
        return f"{self.text}-{number}"

    def number_of(self, submission_id: str | None) -> int | None:
        """Returns the number of an attempt; None if the id is another job's."""
        name, _, number = (submission_id or "").rpartition("-")
        return int(number) if name == self.text and number.isdecimal() else None


def secrets_in(words: Iterable[str]) -> list[str]:
    """Returns why words of a command line may hold secrets, without quoting any.

    Ray's job list shows the command line of a job to everybody who can reach the cluster.
    """
    found = []
    for number, word in enumerate(words, 1):
        if _PASSWORD.search(word):
            found.append(f"word {number} is a URL with a user or password")
        names = _GIVEN.findall(word)
        if word.startswith("--") and not names:
            names = [word.removeprefix("--")]
        found += [f"word {number} gives {name}" for name in names if _is_secret(name)]
    return found


def _is_secret(name: str) -> bool:
    """Whether a value of that name is one that nobody may see: access_key and api-token, but not key-column."""
    parts = re.split(r"[-_.]", name.lower())
    return parts[-1] == "key" or parts[-2:] == ["key", "id"] or not _SECRET.isdisjoint(parts)
