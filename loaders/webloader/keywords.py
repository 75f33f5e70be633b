"""Treatment of each keyword in `kwargs_wds` and `kwargs_wld`, as listed in docs/data-modules.md.

The keywords are those of `webdataset.WebDataset` and of torch's `DataLoader`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from dray.shards.arguments import as_int, as_seconds, as_seed
from dray.shards.errors import CallError


class Treatment(StrEnum):
    """How a keyword is treated."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Keyword:
    """A keyword's treatment, and its effect or the reason why it has none."""

    treatment: Treatment
    note: str


_H, _I, _R = Treatment.HONOURED, Treatment.IGNORED, Treatment.REFUSED

KWARGS_WDS: Mapping[str, Keyword] = {
    "shardshuffle": Keyword(_H, "any true value: each epoch has its own order of all samples, not only of shards"),
    "seed": Keyword(_H, "seed of that order, an integer; must be equal on all ranks; 0 by default"),
    "handler": Keyword(
        _H,
        "`reraise_exception` (the default), or one that continues (`ignore_and_continue`, `warn_and_continue`, your "
        "own): a sample that cannot be read is replaced by a later one of the epoch, the same for any number of ranks",
    ),
    "cache_dir": Keyword(
        _H,
        "folder that keeps what is read from object storage for later epochs; local files need none, streamed tars "
        "cannot have one",
    ),
    "cache_size": Keyword(_H, "maximum size of the cache in bytes, 64 GiB by default; 0: no cache"),
    "nodesplitter": Keyword(_I, "the order divides the samples of each step among the ranks"),
    "workersplitter": Keyword(_I, "the workers of a rank take its chunks in turn"),
    "detshuffle": Keyword(_I, "the order follows from `seed` and the epoch"),
    "repeat": Keyword(_I, "`global_batch_size` sets the length of an epoch; one pass follows another"),
    "empty_check": Keyword(_I, "a worker without samples is no error"),
    "url_to_name": Keyword(_I, "cached bytes are named by their content"),
    "verbose": Keyword(_I, "there is nothing to print"),
    "resampled": Keyword(_R, "samples drawn with replacement do not form an epoch; leave it out"),
    "mode": Keyword(_R, "as `resampled`"),
    "select_files": Keyword(_R, "`suffix_keys_wds` decides which parts are read"),
    "rename_files": Keyword(_R, "parts are found under the names with which they were packed"),
}

KWARGS_WLD: Mapping[str, Keyword] = {
    "num_workers": Keyword(_H, "any number; the stream is the same for all"),
    "persistent_workers": Keyword(_H, "true by default: workers stay alive for the next epoch"),
    "prefetch_factor": Keyword(
        _H, "messages that a worker prepares ahead, each with one chunk or several small ones; 2 by default"
    ),
    "timeout": Keyword(
        _H, "seconds to wait for a worker before an error names it; without it, a long wait causes a warning"
    ),
    "worker_init_fn": Keyword(_H, "called in each worker when it starts; may be a lambda"),
    "multiprocessing_context": Keyword(_H, "`fork` over a local disk, `spawn` over object storage by default"),
    "generator": Keyword(_H, "source of the workers' seeds"),
    "pin_memory": Keyword(_H, "if there is a GPU: outputs of the workers are copied to page-locked memory"),
    "batch_size": Keyword(_H, "number of outputs of `pipeline_wds` that a worker collates into one; None by default"),
    "collate_fn": Keyword(_H, "collates them, or without `batch_size` converts each output, as in torch"),
    "drop_last": Keyword(_H, "with `batch_size`: leaves out a worker's last, shorter batch of a pass"),
    "pin_memory_device": Keyword(_I, "torch pins for the current device"),
    "in_order": Keyword(_I, "chunks come in order"),
    "shuffle": Keyword(_R, "`kwargs_wds` has `shardshuffle`"),
    "sampler": Keyword(_R, "the order decides which samples come"),
    "batch_sampler": Keyword(_R, "the order decides which samples come"),
}

_KINDS: Mapping[str, Callable[[str, Any], object]] = {
    "seed": as_seed,
    "cache_size": as_seed,  # webdataset's default is -1
    "num_workers": as_int,
    "prefetch_factor": partial(as_int, least=1),
    "batch_size": partial(as_int, least=1),
    "timeout": as_seconds,
}
_DEFAULTS = {"empty_check": True, "in_order": True, "pin_memory_device": ""}


def check(name: str, by_split: Mapping[Any, Mapping[str, Any] | None] | None, table: Mapping[str, Keyword]) -> None:
    """Refuse unknown keywords and those that rule out exact epochs; warn once about those without effect.

    Args:
        name: Name of the argument, for messages.
        by_split: Split -> keywords.
        table: The known keywords.

    Raises:
        CallError: A keyword is unknown or refused, or its value is invalid.
    """
    ignored = dict[str, str]()
    for keyword, value in (item for options in (by_split or {}).values() for item in (options or {}).items()):
        if keyword not in table:
            raise CallError(f"{name}: {keyword!r} is not known; known are {', '.join(table)}")
        if value is not None and keyword in _KINDS:
            _KINDS[keyword](f"{name}: {keyword}", value)
        if value is None or value == _DEFAULTS.get(keyword, False):
            continue
        if table[keyword].treatment == Treatment.REFUSED:
            raise CallError(f"{name}: {keyword}={value!r} is refused: {table[keyword].note}")
        if table[keyword].treatment == Treatment.IGNORED:
            ignored[keyword] = table[keyword].note
    if ignored:
        notes = "; ".join(f"{keyword} ({note})" for keyword, note in ignored.items())
        warnings.warn(f"{name}: not needed here and ignored: {notes}", stacklevel=3)
