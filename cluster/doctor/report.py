"""All findings of one run, by what they are about, and the exit code."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dray.cluster.cli.exits import ExitCode
from dray.cluster.doctor.finding import Finding, Level


class Subject(StrEnum):
    """What a finding is about."""

    MACHINE = "machine"
    STORE = "store"
    CLUSTER = "cluster"


EXIT_CODES = {
    Subject.MACHINE: ExitCode.STORE,
    Subject.STORE: ExitCode.STORE,
    Subject.CLUSTER: ExitCode.CLUSTER,
}
"""Subject of the first bad finding -> exit code, as other commands end with for a failure of that kind."""


@dataclass(slots=True)
class Report:
    """The findings of one run.

    Attributes:
        findings: In the order in which they were made.
        is_stuck: Whether a check did not end; its thread may keep the process alive.
    """

    findings: list[tuple[Subject, Finding]] = field(default_factory=list)
    is_stuck: bool = False

    @property
    def exit_code(self) -> int:
        """0 if nothing is bad; warnings are not."""
        bad = (subject for subject, finding in self.findings if finding.level is Level.BAD)
        return next((EXIT_CODES[subject] for subject in bad), ExitCode.DONE)

    def count(self, level: Level) -> int:
        """Returns the number of findings of a level."""
        return sum(finding.level is level for _, finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Returns what `--json` prints."""
        findings: Sequence[dict[str, Any]] = [
            {"subject": subject, **finding.as_json()} for subject, finding in self.findings
        ]
        return {"is_good": self.exit_code == 0, "exit_code": int(self.exit_code), "findings": findings}
