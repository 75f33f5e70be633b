"""The user's function that makes samples of an input: how it is sent to workers, and what it may return."""

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from dray.pipelines.inputs.seeding import RNG, rng_of, takes_rng
from dray.pipelines.inputs.transform import pickled, unfit_node
from dray.shards.errors import DrayError, InputError

MakeSample = Callable[..., Mapping[str, Any] | Iterable[Mapping[str, Any]] | None]


class Maker:
    """Calls a function of the user with inputs. Other processes get it by cloudpickle, and load it at its first call.

    Args:
        function: Returns a sample or None for an input, or yields several; or a class whose instances do, of which each
            process makes one.
        seed: Seed of the random numbers that it gets as `rng`, if it has a parameter of that name.
    """

    def __init__(self, function: MakeSample, seed: int) -> None:
        self._function: MakeSample | None = function
        self.seed = seed
        self._is_seeded = takes_rng(function)
        self._pickled = b""

    def __getstate__(self) -> tuple[Any, int, bool]:
        if type(self._function).__module__.startswith("dray."):  # pickled with the rest, where a store is kept apart
            return self._function, self.seed, self._is_seeded
        advice = "keep locks, files and connections out of it, or run with num_workers=0 and address='none'"
        return self._pickled or pickled(self._function, "make_sample", advice), self.seed, self._is_seeded

    def __setstate__(self, state: tuple[Any, int, bool]) -> None:
        function, self.seed, self._is_seeded = state
        is_pickled = isinstance(function, bytes)
        self._function, self._pickled = (None, function) if is_pickled else (function, b"")

    def __call__(self, value: Any, key: str) -> Iterator[tuple[str, Any]]:
        """Yields (default key, sample) for each sample of an input.

        Raises:
            ClusterError: The function cannot be loaded here, or needs a module that is missing: the node is at fault.
            InputError: The function raised.
        """
        function = self._opened(key)
        try:
            returned = function(value, **({RNG: rng_of(self.seed, key)} if self._is_seeded else {}))
            if returned is None:
                return
            if isinstance(returned, Mapping):
                yield key, returned
            else:
                for number, sample in enumerate(returned):
                    yield f"{key}-{number}", sample
        except ImportError as exc:
            raise unfit_node("make_sample", key, exc) from exc
        except DrayError as exc:
            raise InputError(str(exc)) from exc
        except Exception as exc:
            raise InputError(f"make_sample failed: {type(exc).__name__}: {exc}{_where(exc)}") from exc

    def _opened(self, key: str) -> MakeSample:
        try:
            function: Any = self._function or cloudpickle.loads(self._pickled)
            if inspect.isclass(function):
                function = function()
        except Exception as exc:
            raise unfit_node("make_sample", key, exc) from exc
        self._function = function
        made: MakeSample = function
        return made


def _where(exc: Exception) -> str:
    """Returns where the user's code raised: file and line, without folders."""
    frames = traceback.extract_tb(exc.__traceback__)[1:]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
