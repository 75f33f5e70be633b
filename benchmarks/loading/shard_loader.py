"""dray's own loader, over tars with pickled and with transcoded parts."""

import io
import pickle
from collections.abc import Mapping

import numpy as np

from dray.loaders import ShardLoader
from dray.pipelines import pickles_to_tars
from loading.task import BATCH, PICKLED, TRANSCODED, Epoch, Task


def write(task: Task) -> None:
    """Both datasets; the tars of the first are what bionemo reads as well."""
    inputs, names = task.path("pickles"), [f"s{number:07d}" for number in range(task.num_samples)]
    inputs.mkdir()
    for number, name in enumerate(names):
        (inputs / f"{name}.{PICKLED}").write_bytes(pickle.dumps(task.tensor(number)))
    for suffix, function in ((PICKLED, None), (TRANSCODED, to_npy)):
        pickles_to_tars(
            inputs, names, PICKLED, task.path(suffix), "wdshards", func_output_data=function, min_num_shards=8,
            transform_version=None if function is None else "1", progress=False,
        )  # fmt: skip


def to_npy(_: str, parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """The sample with its tensor as .npy."""
    file = io.BytesIO()
    np.save(file, pickle.loads(parts[PICKLED]).numpy())
    return {TRANSCODED: file.getvalue()}


def pickled(task: Task) -> Epoch:
    """Over the tars with pickled tensors."""
    return _epochs(task, PICKLED)


def transcoded(task: Task) -> Epoch:
    """Over the tars with .npy parts."""
    return _epochs(task, TRANSCODED)


def _epochs(task: Task, suffix: str) -> Epoch:
    loader = ShardLoader(
        task.path(suffix), batch_size=BATCH, shuffle=task.shuffle, num_workers=task.num_workers, remainder="keep"
    )
    return lambda: (batch[suffix] for batch in loader)
