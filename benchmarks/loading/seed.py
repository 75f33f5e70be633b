"""The documented example of bionemo-webdatamodule, for its DataModule and for dray's.

Splits, pipelines and keywords are the example's: with shuffling the loader is that of its split `train`, with a shuffle
in the workers and one more in the training process; without that of `val`. Both batch in the training process.
"""

import random
from typing import Any

import torch
import webdataset as wds
from webdataset import batched, shuffle

from loading.task import BATCH, PICKLED, Epoch, Task

SEED = 27193781


def example(task: Task, module: Any, splits: Any) -> Epoch:
    """Epochs of the DataModule class `module`, whose enumeration of splits is `splits`."""
    n_samples = {splits.train: task.num_samples, splits.val: task.num_samples}
    untuple = lambda source: (sample for (sample,) in source)  # noqa: E731
    batch = batched(BATCH, collation_fn=lambda list_samples: torch.vstack(list_samples))
    mix_worker, mix = (shuffle(task.num_samples, rng=random.Random(SEED)) for _ in range(2))
    data = module(
        n_samples,
        PICKLED,
        dict.fromkeys(n_samples, str(task.path(PICKLED))),
        BATCH,
        prefix_tars_wds="wdshards",
        pipeline_wds={splits.train: [untuple, mix_worker], splits.val: untuple},
        pipeline_prebatch_wld={splits.train: [mix, batch], splits.val: batch},
        kwargs_wds={
            split: {
                "shardshuffle": 100 if split == splits.train else False,  # what True stands for
                "nodesplitter": wds.split_by_node,
                "seed": SEED,
            }
            for split in n_samples
        },
        kwargs_wld={split: {"num_workers": task.num_workers} for split in n_samples},
    )
    data.setup("fit")
    return data.train_dataloader if task.shuffle else data.val_dataloader
