"""A contestant in a process of its own, in whatever environment it needs: it loads an epoch on request.

    python -m loading.runner MODULE:FUNCTION

Each line of standard input is one of the questions below and a task, answered by a line of JSON; the function opens
the contestant for a task that is not the last one's. `open` does no more than that; `check` loads one epoch and looks
at every number of it; `turn` loads whole epochs for half a second or longer, and tells how long they took. To sum up
all that was loaded would take as long as loading it: so a turn keeps the first and the last number of every row, which
name the sample, and looks afterwards whether each came once an epoch.
"""

import gc
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from loading.task import BATCH, Epoch, Task

LEAST_S = 0.5


def serve(package: str, questions: Mapping[str, Callable[[Any, Task], dict[str, Any]]]) -> None:
    """Answer until standard input ends, with the function below `package` that the first argument names."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # torch sends each tensor of a worker by a descriptor
    module, function = sys.argv[1].split(":")
    opener = getattr(importlib.import_module(f"{package}.{module}"), function)
    task, opened = None, None
    for line in sys.stdin:
        question, fields = line.split(" ", 1)
        asked = Task.from_json(fields)
        if asked != task:
            opened = None
            gc.collect()  # ends the workers of the last one
            task, opened = asked, opener(asked)
        print(json.dumps(questions[question](opened, task)), file=replies, flush=True)


def check(epoch: Epoch, task: Task) -> dict[str, Any]:
    """Nothing, if one epoch gave batches of new memory with every sample once, bit for bit.

    Raises:
        RuntimeError: It did not.
    """
    samples, seen = task.samples(), []
    for batch in epoch():
        if batch.dtype != torch.float32 or batch.ndim != 2 or batch.shape[1] != task.num_floats or len(batch) > BATCH:
            raise RuntimeError(f"expected up to {BATCH} rows of {task.num_floats} float32, found {batch.shape}")
        numbers = batch[:, 0].long()
        if not np.array_equal(batch.numpy(), samples[numbers.numpy()]):
            raise RuntimeError(f"the samples {numbers.tolist()} are not what was written")
        seen.append(numbers)
    order = torch.cat(seen)
    if not torch.equal(order.sort().values, torch.arange(task.num_samples)):
        raise RuntimeError(f"expected each of {task.num_samples} samples once, found {len(order)} rows")
    if task.shuffle and torch.equal(order, torch.arange(task.num_samples)):
        raise RuntimeError("the order was to be another")
    return {}


def turn(epoch: Epoch, task: Task) -> dict[str, Any]:
    """The number of samples loaded, and the seconds it took.

    Raises:
        RuntimeError: A sample was missing in an epoch, or came twice.
    """
    marks, num_epochs, ends = [], 0, task.num_floats - 1
    started = time.perf_counter()
    while (seconds := time.perf_counter() - started) < LEAST_S:
        for batch in epoch():
            marks.append(batch.numpy()[:, ::ends].copy())
        num_epochs += 1
    numbers, ends_of = np.concatenate(marks).astype(np.int64).T
    counts = np.bincount(numbers, minlength=task.num_samples)
    if not np.array_equal(numbers, -ends_of) or not (counts == num_epochs).all() or len(counts) != task.num_samples:
        raise RuntimeError(f"{len(numbers)} rows in {num_epochs} epochs of {task.num_samples} samples, or wrong ones")
    return {"samples": len(numbers), "seconds": seconds}


if __name__ == "__main__":
    serve("loading", {"open": lambda *_: {}, "check": check, "turn": turn})
