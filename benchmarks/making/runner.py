"""A contestant in a process of its own, in whatever environment it needs: it writes a dataset on request.

    python -m making.runner MODULE:FUNCTION

The protocol is that of `loading.runner`. `check` writes a dataset and reads it with the contestant's own loader: every
number of it is looked at. `turn` writes one and tells how long it took. Both delete what they wrote.
"""

import shutil
import time
from typing import Any

from loading import runner
from loading.task import Task

from making.contestants import Maker


def check(maker: Maker, task: Task) -> dict[str, Any]:
    """Nothing, if what was written holds every sample once, bit for bit.

    Raises:
        RuntimeError: It does not.
    """
    maker.write(task)
    runner.check(maker.loaded(task), task)
    shutil.rmtree(task.path(maker.folder))
    return {}


def turn(maker: Maker, task: Task) -> dict[str, Any]:
    """The number of samples written, and the seconds it took."""
    started = time.perf_counter()
    maker.write(task)
    seconds = time.perf_counter() - started
    shutil.rmtree(task.path(maker.folder))
    return {"samples": task.num_samples, "seconds": seconds}


if __name__ == "__main__":
    runner.serve("making", {"check": check, "turn": turn})
