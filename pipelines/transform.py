"""The user's function that makes the parts of a sample: how it reaches the workers, and what it may give."""

from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle

from dray.pipelines.node import node_name
from dray.shards.errors import CallError, ClusterError, InputError
from dray.shards.layout import check_suffixes, key_of

Function = Callable[[str, dict[str, bytes]], Mapping[str, Any]]


class Transform:
    """A function `f(key, {suffix: bytes}) -> {suffix: bytes}`.

    In process it is called as it is. To other processes it travels by cloudpickle and is opened at its first call, so
    that a worker that cannot open it can say so with the sample's name.
    """

    def __init__(self, function: Function) -> None:
        self._function: Function | None = function
        self._pickled = b""

    def __getstate__(self) -> bytes:
        try:
            return self._pickled or cloudpickle.dumps(self._function)
        except Exception as exc:
            raise CallError(
                f"func_output_data cannot be sent to other processes ({type(exc).__name__}: {exc}): "
                "keep locks, files and connections out of it, or build with address='none'"
            ) from exc

    def __setstate__(self, state: bytes) -> None:
        self._function, self._pickled = None, state

    def __call__(self, name: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes]:
        """The parts of one sample, checked.

        Raises:
            ClusterError: The function cannot be opened here, or needs a module that is missing: it is not the sample's
                fault.
            InputError: The function raised, or gave what cannot be stored.
        """
        key, function = key_of(name), self._opened(name)
        try:
            sample = dict(function(key, suffix_to_data))
            if sample.pop("__key__", key) != key:
                raise CallError(f"func_output_data may not change the key {key!r}")
            for suffix in check_suffixes(sample):
                sample[suffix] = _encoded(suffix, sample[suffix])
        except ImportError as exc:
            raise _unfit_node(name, exc) from exc
        except Exception as exc:
            raise InputError(f"func_output_data failed: {type(exc).__name__}: {exc}") from exc
        return sample

    def _opened(self, name: str) -> Function:
        try:
            function: Function = self._function or cloudpickle.loads(self._pickled)
        except Exception as exc:
            raise _unfit_node(name, exc) from exc
        self._function = function
        return function


def _unfit_node(name: str, exc: Exception) -> ClusterError:
    return ClusterError(
        f"node {node_name()} cannot run func_output_data, first for sample {name!r}: {type(exc).__name__}: {exc}; "
        "install what it needs there, or ship it with Ray's runtime_env. No sample was left out for it"
    )


def _encoded(suffix: str, value: Any) -> bytes:
    """Bytes as they are; other values as webdataset's writer stores them under that suffix."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    from webdataset.writer import default_handlers, encode_based_on_extension1  # slow to import, rarely needed

    return bytes(encode_based_on_extension1(value, suffix, default_handlers))
