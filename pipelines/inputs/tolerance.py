"""The policy of a build for inputs that cannot be packed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dray.pipelines.inputs.sources import BadInput
from dray.shards.arguments import as_int
from dray.shards.errors import CallError, InputError, MissingInputError
from dray.shards.messages import counted

NAMED = 20  # maximum number of bad inputs that an error names


class OnError(StrEnum):
    """How a build treats inputs that cannot be packed."""

    FAIL = "fail"
    SKIP = "skip"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How a build treats bad inputs, and how many it accepts.

    Attributes:
        on_error: "fail" makes no version, and names them. "skip" leaves them out until their files change.
            "quarantine" leaves them out and tries them again in every build.
        max_bad: Maximum number of inputs to leave out, or a percentage of the inputs such as "1%" (at least one).

    Raises:
        CallError: `on_error` or `max_bad` is invalid.
    """

    on_error: str = OnError.FAIL
    max_bad: int | str = "1%"

    def __post_init__(self) -> None:
        if self.on_error not in list(OnError):
            raise CallError(f"on_error={self.on_error!r}: expected one of {', '.join(OnError)}")
        if not isinstance(self.max_bad, str):
            object.__setattr__(self, "max_bad", as_int("max_bad", self.max_bad))
        elif not re.fullmatch(r"\d+(\.\d+)?%|\d+", self.max_bad):
            raise CallError(f"max_bad={self.max_bad!r}: expected a number such as 100, or per cent such as 0.5%")

    @property
    def leaves_out(self) -> bool:
        """Whether a version may lack inputs."""
        return self.on_error != OnError.FAIL

    @property
    def fate(self) -> str:
        """How the tables call inputs that are left out."""
        return "skipped" if self.on_error == OnError.SKIP else "quarantined"

    def most(self, num_inputs: int) -> int:
        """Returns the maximum number of inputs that may be left out."""
        if not self.leaves_out:
            return 0
        text = str(self.max_bad)
        return max(1, int(float(text[:-1]) / 100 * num_inputs)) if text.endswith("%") else int(text)

    def check(self, bad: Sequence[BadInput], num_inputs: int, where: str) -> None:
        """Check that no more inputs are bad than are accepted.

        Raises:
            MissingInputError: Too many are bad, and all of them because files are missing.
            InputError: Too many are bad; names the first 20.
        """
        bad = [entry for entry in bad if not entry.is_empty]
        if len(bad) <= self.most(num_inputs):
            return
        kind = MissingInputError if all(entry.stage == "find" for entry in bad) else InputError
        most = self.most(num_inputs)
        limit = f", more than the {most} that on_error={str(self.on_error)!r} accepts" if self.leaves_out else ""
        if len(bad) == 1:
            raise kind(f"sample {bad[0].name!r} of {where}: {bad[0].error}{limit}")
        raise kind(f"{len(bad)} of {counted(num_inputs, 'sample')} of {where} cannot be packed{limit}: {named(bad)}")


def named(bad: Sequence[BadInput]) -> str:
    """Returns the first 20 bad inputs for a message, names with the same error together."""
    names: dict[str, list[str]] = {}
    for entry in bad[:NAMED]:
        names.setdefault(entry.error, []).append(repr(entry.name))
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return "; ".join(f"{', '.join(same)}: {error}" for error, same in names.items()) + more
