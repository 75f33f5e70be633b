"""What becomes of each keyword in `kwargs_wds` and `kwargs_wld`: the one table, told in docs/data-modules.md.

The keywords are those of `webdataset.WebDataset` and of torch's `DataLoader`, which these dictionaries were made for.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from dray.shards.arguments import as_int, as_seconds, as_seed
from dray.shards.errors import CallError


class Fate(StrEnum):
    """What becomes of a keyword."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Keyword:
    """One keyword: its fate, and how or why."""

    fate: Fate
    note: str


_H, _I, _R = Fate.HONOURED, Fate.IGNORED, Fate.REFUSED

KWARGS_WDS: Mapping[str, Keyword] = {
    "shardshuffle": Keyword(_H, "anything true: each epoch has an order of its own over all samples, not shards alone"),
    "seed": Keyword(_H, "an integer, of that order, the same on every rank; 0 by default"),
    "handler": Keyword(
        _H,
        "`reraise_exception` (the default), or one that goes on (`ignore_and_continue`, `warn_and_continue`, your "
        "own): a sample that cannot be read is replaced by a later one of the epoch, the same on any number of ranks",
    ),
    "cache_dir": Keyword(
        _H,
        "a folder that keeps what is read from object storage for later epochs; files of a local disk need none, tars "
        "that are streamed cannot have one",
    ),
    "cache_size": Keyword(_H, "bytes in it at the most, 64 GiB by default; 0: no cache"),
    "nodesplitter": Keyword(_I, "the order shares the samples of each step out by ranks"),
    "workersplitter": Keyword(_I, "the workers of a rank take its chunks in turn"),
    "detshuffle": Keyword(_I, "the order follows from `seed` and the epoch"),
    "repeat": Keyword(_I, "`global_batch_size` says how long an epoch is; a pass follows the other"),
    "empty_check": Keyword(_I, "a worker without samples is no error"),
    "url_to_name": Keyword(_I, "what is cached is named by its content"),
    "verbose": Keyword(_I, "there is nothing to say"),
    "resampled": Keyword(_R, "samples drawn with replacement make no epoch; leave it out"),
    "mode": Keyword(_R, "as `resampled`"),
    "select_files": Keyword(_R, "`suffix_keys_wds` says which parts are read"),
    "rename_files": Keyword(_R, "parts are found under the names that they were packed by"),
}

KWARGS_WLD: Mapping[str, Keyword] = {
    "num_workers": Keyword(_H, "any number; the stream is the same for all"),
    "persistent_workers": Keyword(_H, "true by default: workers live on and take the next epoch"),
    "prefetch_factor": Keyword(_H, "messages that a worker is ahead, each of one chunk or several small ones; 2"),
    "timeout": Keyword(_H, "seconds to wait for a worker, then an error names it; without, a long wait is warned of"),
    "worker_init_fn": Keyword(_H, "called in each worker when it starts; a lambda will do"),
    "multiprocessing_context": Keyword(_H, "`fork` over a local disk, `spawn` over object storage by default"),
    "generator": Keyword(_H, "of the workers' seeds"),
    "pin_memory": Keyword(_H, "where there is a GPU: what the workers give is copied to page-locked memory"),
    "batch_size": Keyword(_H, "outputs of `pipeline_wds` that a worker makes one; None by default"),
    "collate_fn": Keyword(_H, "makes that batch, or without `batch_size` converts each output; as torch does"),
    "drop_last": Keyword(_H, "with `batch_size`: leave out a worker's last, shorter batch of a pass"),
    "pin_memory_device": Keyword(_I, "torch pins for the current device"),
    "in_order": Keyword(_I, "chunks come in order"),
    "shuffle": Keyword(_R, "`kwargs_wds` has `shardshuffle`"),
    "sampler": Keyword(_R, "the order says which samples come"),
    "batch_sampler": Keyword(_R, "the order says which samples come"),
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
    """Refuse keywords that are unknown or mean what no epoch can keep; warn once of those that change nothing.

    Args:
        name: Of the argument, for messages.
        by_split: Split -> keywords.
        table: Of those that there are.

    Raises:
        CallError: Names the keyword, and why it is refused or what its value should be.
    """
    ignored = dict[str, str]()
    for keyword, value in (item for options in (by_split or {}).values() for item in (options or {}).items()):
        if keyword not in table:
            raise CallError(f"{name}: {keyword!r} is not known; known are {', '.join(table)}")
        if value is not None and keyword in _KINDS:
            _KINDS[keyword](f"{name}: {keyword}", value)
        if value is None or value == _DEFAULTS.get(keyword, False):
            continue
        if table[keyword].fate == Fate.REFUSED:
            raise CallError(f"{name}: {keyword}={value!r} is refused: {table[keyword].note}")
        if table[keyword].fate == Fate.IGNORED:
            ignored[keyword] = table[keyword].note
    if ignored:
        notes = "; ".join(f"{keyword} ({note})" for keyword, note in ignored.items())
        warnings.warn(f"{name}: not needed here and ignored: {notes}", stacklevel=3)
