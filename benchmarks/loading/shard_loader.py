"""dray's own loader, over tars with pickled and with transcoded parts."""

import pickle

from dray.loaders import ShardLoader
from dray.pipelines import pickles_to_tars
from loading.task import BATCH, PICKLED, TRANSCODED, Epoch, Task


def write(task: Task) -> None:
    """Both datasets; the tars of the first are what bionemo reads as well."""
    inputs, names = task.path("pickles"), [f"s{number:07d}" for number in range(task.num_samples)]
    inputs.mkdir()
    for number, name in enumerate(names):
        (inputs / f"{name}.{PICKLED}").write_bytes(pickle.dumps(task.tensor(number)))
    for suffix, encode in ((PICKLED, None), (TRANSCODED, {PICKLED: "npy"})):
        pickles_to_tars(
            inputs, names, PICKLED, task.path(suffix), "wdshards", encode=encode, min_num_shards=8, progress=False
        )


def pickled(task: Task) -> Epoch:
    """Over the tars with pickled tensors."""
    return _epochs(task, PICKLED)


def transcoded(task: Task) -> Epoch:
    """Over the tars with .npy parts."""
    return _epochs(task, TRANSCODED)


def _epochs(task: Task, suffix: str) -> Epoch:
    loader = ShardLoader(
        task.path(suffix),
        parts=suffix,
        batch_size=BATCH,
        shuffle=task.shuffle,
        num_workers=task.num_workers,
        remainder="keep",
    )
    return lambda: (batch[suffix] for batch in loader)
