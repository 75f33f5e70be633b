"""What one check found: is it good, and what to do if it is not."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self


class Level(StrEnum):
    """How good a finding is."""

    GOOD = "good"
    WARNING = "warning"  # dray works, but slower, or at a risk that the finding names
    BAD = "bad"  # a build or a training fails, or may lose data
    UNCHECKED = "unchecked"  # something before it failed


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: Name of the check, such as "open files".
        level: How good it is.
        found: What was found, without secrets.
        advice: What to do; "" if there is nothing to do.
        values: What was measured, by name; a name ends in its unit.
    """

    check: str
    level: Level
    found: str
    advice: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as `--json` prints them."""
        return {**asdict(self), "values": dict(self.values)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Returns the finding of another process.

        Raises:
            KeyError, TypeError, ValueError: The fields are not those of `as_json`.
        """
        return cls(**{**fields, "level": Level(fields["level"])})


def good(check: str, found: str, **values: float) -> Finding:
    """Returns a finding that asks for nothing."""
    return Finding(check, Level.GOOD, found, values=values)


def warning(check: str, found: str, advice: str, **values: float) -> Finding:
    """Returns a finding that somebody should look at."""
    return Finding(check, Level.WARNING, found, advice, values)


def bad(check: str, found: str, advice: str, **values: float) -> Finding:
    """Returns a finding of what stops dray, or endangers data."""
    return Finding(check, Level.BAD, found, advice, values)


def unchecked(check: str, reason: str) -> Finding:
    """Returns the finding of a check that could not be made."""
    return Finding(check, Level.UNCHECKED, reason)
