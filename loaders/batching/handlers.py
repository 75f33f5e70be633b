"""webdataset's exception handlers: what `handler` in `kwargs_wds` makes of a sample that cannot be read."""

from collections.abc import Callable
from dataclasses import dataclass

from webdataset.handlers import ignore_and_stop, reraise_exception, warn_and_stop

from dray.loaders.batching.skipping import Skipper
from dray.shards.errors import CallError

Handler = Callable[[Exception], bool]


@dataclass(frozen=True, slots=True)
class HandledSkipper(Skipper):
    """Replaces what cannot be read, where the user's handler says to go on.

    Attributes:
        handler: Gets the error; true: go on. Called in the process that reads.
    """

    handler: Handler = reraise_exception

    def _note(self, position: int, candidate: int, epoch: int, error: Exception) -> None:  # noqa: ARG002
        if not self.handler(error):
            raise CallError(f"handler {self.handler!r} stops at an error, and then ranks would not be even") from error


def skipper_of(handler: Handler | None) -> Skipper | None:
    """What replaces samples that cannot be read; None: nothing does.

    Raises:
        CallError: The handler ends a rank's epoch before the others'.
    """
    if handler in (ignore_and_stop, warn_and_stop):
        raise CallError(
            f"kwargs_wds: handler={handler!r} would end this rank's epoch before the others': take one that goes on"
        )
    return None if handler in (None, reraise_exception) else HandledSkipper("", handler)
