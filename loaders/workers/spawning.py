"""Checks whether workers can be spawned: each imports the main script, which must be a file and not start workers.

multiprocessing fails in each worker with a long traceback; here a single error is raised before any worker starts.
"""

import ast
import multiprocessing
import sys
import threading
from multiprocessing import spawn
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType

from dray.loaders.compat import current_frames
from dray.shards.errors import CallError

_GUARDS = {"__name__", "current_process"}  # names by which a script recognizes that a worker imports it
_ADVICE = 'put the training code under `if __name__ == "__main__":`, or use num_workers=0'


def check_main(context: BaseContext | None) -> None:
    """Refuse to spawn workers that could not import the main script, or would start workers by importing it.

    Notebooks, interactive sessions and `python -c` have no such script.

    Args:
        context: multiprocessing context of the workers; None: the default one.

    Raises:
        CallError: The main script was read from standard input, or is not guarded by `if __name__ == "__main__":`.
    """
    if (context or multiprocessing).get_start_method() == "fork":
        return
    try:
        found = spawn.get_preparation_data("")
    except RuntimeError:  # a spawned process is importing the main script right now
        raise CallError(f"a spawned process that imports the main script cannot start workers: {_ADVICE}") from None
    name, path = found.get("init_main_from_name"), found.get("init_main_from_path")
    is_imported = Path(path).stem != "ipython" if path else name is not None and name.split(".")[-1] != "__main__"
    if not is_imported:
        return
    if path and not Path(path).is_file():
        raise CallError(
            f"spawned workers import the main script again, and {Path(path).name!r} is not a file: save the "
            "script as one, or use num_workers=0"
        )
    frame = _main_frame()
    if frame is not None and not _is_guarded(frame):
        raise CallError(
            f"spawned workers import {frame.f_code.co_filename} again, and its line {frame.f_lineno} would start "
            f"workers there too: {_ADVICE}"
        )


def _main_frame() -> FrameType | None:
    """Returns the main script's frame; None if it has ended or is not on the main thread's stack."""
    frame = current_frames().get(threading.main_thread().ident or 0)
    found = None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is vars(sys.modules["__main__"]):
            found = frame
        frame = frame.f_back
    return found


def _is_guarded(frame: FrameType) -> bool:
    """Returns whether a worker would not reach the main script's current line, or this is unknown."""
    try:
        tree = ast.parse(Path(frame.f_code.co_filename).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    return any(
        isinstance(node, ast.If) and node.lineno <= frame.f_lineno <= (node.end_lineno or 0) and _is_guard(node.test)
        for node in ast.walk(tree)
    )


def _is_guard(test: ast.expr) -> bool:
    return any(getattr(node, "id", getattr(node, "attr", None)) in _GUARDS for node in ast.walk(test))
