"""Fresh processes for tests that need several: they share nothing with the test's own but the files.

They are forked from a server that has imported dray and used none of it: a child of a process that used obstore would
deadlock, and a spawned one imports for seconds.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pytest", "dray.pipelines", "dray.loaders.lightning.datamodule", "dray.cluster.quickstart.seaweed"]
)
_MEET_S = 60

_barrier: Barrier


def start(function: Callable[..., object], *args: Any) -> ForkServerProcess:
    """Call a module's function in a process of its own."""
    process = _CONTEXT.Process(target=function, args=args)
    process.start()
    return process


def call_at_once(count: int, function: Callable[..., Result], *args: Any) -> list[Result]:
    """Call a module's function in this number of processes at the same time; return what each returned."""
    barrier = _CONTEXT.Barrier(count)
    with ProcessPoolExecutor(count, _CONTEXT, _share, (barrier,)) as pool:
        return [future.result() for future in [pool.submit(_meet_and_call, function, *args) for _ in range(count)]]


def meet() -> int:
    """Wait until all processes of `call_at_once` have come here; a number of each, from 0."""
    return _barrier.wait(_MEET_S)


def _share(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _meet_and_call(function: Callable[..., Result], *args: Any) -> Result:
    meet()
    return function(*args)
