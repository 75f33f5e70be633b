"""The user's function that makes the parts of a sample: how it is sent to workers, and what it may return."""

from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle

from dray.pipelines.inputs.values import encode_value
from dray.pipelines.running.node import node_name
from dray.shards.errors import CallError, ClusterError, InputError
from dray.shards.layout import check_suffixes, key_of

Function = Callable[[str, dict[str, bytes]], Mapping[str, Any] | None]


class Transform:
    """A function `f(key, {suffix: bytes}) -> {suffix: value}`, or None for a sample to leave out.

    In process it is called directly. Other processes get it by cloudpickle and load it at its first call, so that a
    worker that cannot load it can name the sample.
    """

    def __init__(self, function: Function) -> None:
        self._function: Function | None = function
        self._pickled = b""

    def __getstate__(self) -> bytes:
        advice = "keep locks, files and connections out of it, or build with address='none'"
        return self._pickled or pickled(self._function, "func_output_data", advice)

    def __setstate__(self, state: bytes) -> None:
        self._function, self._pickled = None, state

    def __call__(self, name: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes] | None:
        """Returns the parts of one sample, checked; None where the function leaves the sample out.

        Raises:
            ClusterError: The function cannot be loaded here, or needs a module that is missing: the node is at fault.
            InputError: The function raised, or returned a value that cannot be stored.
        """
        key, function = key_of(name), self._opened(name)
        try:
            returned = function(key, suffix_to_data)
        except ImportError as exc:
            raise unfit_node("func_output_data", name, exc) from exc
        except Exception as exc:
            raise InputError(f"func_output_data failed: {type(exc).__name__}: {exc}") from exc
        return None if returned is None else _as_parts(key, returned)

    def _opened(self, name: str) -> Function:
        try:
            function: Function = self._function or cloudpickle.loads(self._pickled)
        except Exception as exc:
            raise unfit_node("func_output_data", name, exc) from exc
        self._function = function
        return function


def pickled(function: Any, name: str, advice: str) -> bytes:
    """Returns a function of the user for other processes, by cloudpickle.

    Raises:
        CallError: It cannot be sent; gives its name and the advice.
    """
    try:
        body: bytes = cloudpickle.dumps(function)
    except Exception as exc:
        raise CallError(f"{name} cannot be sent to other processes ({type(exc).__name__}: {exc}): {advice}") from exc
    return body


def unfit_node(function: str, name: str, exc: Exception) -> ClusterError:
    """Returns the error of a node that cannot run a function of the user, first for the sample `name`."""
    return ClusterError(
        f"node {node_name()} cannot run {function}, first for sample {name!r}: {type(exc).__name__}: {exc}; "
        "install what it needs there, or ship it with Ray's runtime_env. No sample was left out for it"
    )


def _as_parts(key: str, returned: Any) -> dict[str, bytes]:
    """Returns suffix -> bytes of what a function returned for a sample.

    Raises:
        InputError: It is not a dict, has no part, changes the key, or holds a value that its suffix cannot store.
    """
    try:
        sample = dict(returned)
        if sample.pop("__key__", key) != key:
            raise CallError(f"it may not change the key to {returned['__key__']!r}")
        if not sample:
            raise CallError("it has no part; return None to leave the sample out")
        return {suffix: encode_value(suffix, sample[suffix]) for suffix in check_suffixes(sample)}
    except (TypeError, ValueError) as exc:
        raise InputError(
            f"func_output_data returned what cannot be stored for key {key!r} ({type(returned).__name__}): {exc}"
        ) from exc
