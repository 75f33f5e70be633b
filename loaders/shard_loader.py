"""`ShardLoader`: batches of a dataset's samples for one rank; exact, elastic and resumable."""

import os
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from copy import copy
from dataclasses import asdict
from functools import partial
from time import perf_counter
from typing import Any

from dray.loaders.agreement import open_snapshot
from dray.loaders.batching.batches import BatchMaker, Collate, SampleTransform
from dray.loaders.batching.collate import check_stack
from dray.loaders.batching.sample_source import SampleSource
from dray.loaders.batching.skipping import OnBad, Skipper
from dray.loaders.lightning.epoch_loader import EpochLoader
from dray.loaders.order.epochs import Epochs
from dray.loaders.order.passes import Pass
from dray.loaders.order.position import BatchPosition
from dray.loaders.order.shares import Remainder
from dray.loaders.ranks import own_rank
from dray.loaders.workers.forks import check_process, check_worker
from dray.loaders.workers.pool import WorkerPool
from dray.loaders.workers.portable import Portable
from dray.loaders.workers.prefetch_thread import Lookahead
from dray.shards.arguments import as_bool, as_int, as_seconds, as_seed
from dray.shards.codecs.decode import Decoder, Decoders
from dray.shards.errors import CallError
from dray.shards.reading.foreign_tars import open_catalog
from dray.shards.reading.node_cache import open_blocks
from dray.shards.reading.samples import Stats
from dray.shards.reading.suffixes import Missing, open_parts
from dray.shards.reading.tar_files import DataUrl
from dray.shards.snapshot import DEFAULT_PREFIX, Snapshot
from dray.shards.storage.client import StorageOptions

GROUPS_AHEAD = 3  # maximum number of prefetched groups of batches, the requested one included
BAD_SAMPLES = "dray-bad-samples.jsonl"


class ShardLoader(EpochLoader):
    """Iterates over the batches of one rank, epoch after epoch.

    All ranks take the same number of steps. With the remainder "keep" or "pad" each sample comes exactly once per epoch
    over all ranks, with "drop" at most once. The global batches depend only on the version, the seed, the epoch and the
    global batch size, not on the number of ranks or workers. `state_dict()` is equal on all ranks, and can be loaded
    with another number of ranks or workers or another batch size. A copy, by pickle or by the module `copy`, goes on
    where the loader is.

    Args:
        url: Directory of the dataset, a path or an object-storage URL; `?version=7` at its end names a version. Or tars
            that dray did not build: a folder of them, one, a pattern such as "train-{000..099}.tar" or "train-*.tar",
            or a list. On a local disk they are indexed in memory; on object storage they need `dray index` once.
        prefix: Prefix of the dataset, or of the names of tars without a dataset; "" for all tars.
        parts: Suffixes of the parts to read, such as "tensor.pyd", compared without case. An encoded part has several
            names: the suffix of its source, any of its present suffixes, and its name without the extension
            ("image.pyd", "image.npy" or "image"). None: all parts, encoded ones under the suffix of their source.
        missing: What happens if a sample lacks one of the parts: "error" raises an error that names it; "none" makes
            the value None, so that the part is a list in that batch.
        stack: Whether tensors, arrays and numbers of a batch are stacked to one tensor, which requires equal dtypes and
            shapes. A part with other values, such as text, dicts or None, is a list in that batch. False: every part is
            always a list. A set of names: only these parts are stacked.
        batch_size: Number of samples per step of this rank.
        shuffle: Whether the order is permuted, differently in each epoch. If not, samples come in the dataset's order.
        seed: Seed of the permutation; must be equal on all ranks.
        num_workers: Number of worker processes that read and decode. With 0, a thread of this process does.
        timeout_s: Timeout for a worker, in seconds, after which an error names it. None or 0: no timeout, but one
            warning after a minute.
        transform: Function from a sample, a dict of part -> value, to what `collate` gets.
        collate: Function from a list of transformed samples to a batch. None: parts are stacked as `stack` says.
        remainder: What happens to the last samples of an epoch if they do not fill a global batch: "drop" leaves them
            out; "pad" adds filler, and a mask `__valid__` (bool, false for filler) to every batch; "keep" shares them
            out evenly as a shorter last batch, which may be empty on some ranks.
        rank: Rank in the data-parallel group. None: from torch.distributed, else from the variable RANK, else 0.
        num_ranks: Size of the data-parallel group; give it together with `rank`.
        version: Number of a version, or name of a hold. None: the latest version; rank 0 chooses it for all ranks. With
            `rank` each rank chooses by itself, and a build that commits in between makes them read different versions,
            so give a version then.
        limit: Number of samples to read, from the beginning of the dataset; None: all.
        with_keys: Whether batches have the samples' keys as a list, `__key__`.
        on_error: What happens if a sample is damaged or refused, or its shard or index is missing: "fail" raises an
            error that names it; "skip" replaces it by another sample, counts it (`stats()["skipped"]`) and lists it in
            a file. If nothing can be read, as in a version that was deleted, an error is raised with "skip" as well.
        bad_samples: Path of that file, JSON lines; all ranks and workers append to it.
        cache_dir: Folder in which bytes from object storage are kept for later epochs and restarts, and for the other
            ranks, workers and jobs on the node. None: with workers or several ranks, a temporary folder for what more
            than one of them reads.
        cache_bytes: Largest size of the cache, in bytes; 0: no cache. Default: 64 GiB, or 4 GiB in the temporary
            folder.
        storage_options: See `dray.shards.Store`.
        data_url: Where the tars of an indexed dataset are, if they are outside its folder: they are read there only if
            you say so.
        data_storage_options: Options for the store of `data_url`, which gets none of `storage_options`.
        allow: Full names (`pkg.module.Class`) that pickled parts may use in addition to the safe list.
        allow_pickle: Whether pickled parts may run any code that they name.
        decoders: Functions by suffix, from the bytes of a part to its value, such as `{"wav": read_wav}`.

    Raises:
        CallError: An argument is invalid, no sample has one of the parts, or, with `parts=None`, some samples lack one.
        NotFoundError: The dataset or the version does not exist, and there are no tars; says what is there.
    """

    def __init__(
        self,
        url: DataUrl,
        *,
        prefix: str = DEFAULT_PREFIX,
        parts: str | Iterable[str] | None = None,
        missing: str = Missing.ERROR,
        stack: bool | Collection[str] = True,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        timeout_s: float | None = None,
        transform: SampleTransform | None = None,
        collate: Collate | None = None,
        remainder: str = Remainder.DROP,
        rank: int | None = None,
        num_ranks: int | None = None,
        version: int | str | None = None,
        limit: int | None = None,
        with_keys: bool = False,
        on_error: str = OnBad.FAIL,
        bad_samples: str | os.PathLike[str] = BAD_SAMPLES,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        storage_options: StorageOptions | None = None,
        data_url: str | os.PathLike[str] | None = None,
        data_storage_options: StorageOptions | None = None,
        allow: Collection[str] = (),
        allow_pickle: bool = False,
        decoders: Decoders | None = None,
    ) -> None:  # long: each argument is checked once
        if remainder not in list(Remainder):
            raise CallError(f"remainder {remainder!r}: expected one of {', '.join(Remainder)}")
        if on_error not in list(OnBad):
            raise CallError(f"on_error {on_error!r}: expected one of {', '.join(OnBad)}")
        self.rank, self.num_ranks = _checked_rank(rank, num_ranks)
        self._num_workers = as_int("num_workers", num_workers)
        self._timeout_s = 0.0 if timeout_s is None else as_seconds("timeout_s", timeout_s)
        shuffle, seed = as_bool("shuffle", shuffle), as_seed("seed", seed)
        batch = as_int("batch_size", batch_size, 1) * self.num_ranks
        self._snapshot = open_snapshot(
            url,
            prefix,
            agreed=rank is None,
            version=version,
            storage_options=storage_options,
            data_url=data_url,
            data_storage_options=data_storage_options,
        )
        blocks = open_blocks(cache_dir, cache_bytes, num_workers=self._num_workers, num_ranks=self.num_ranks)
        limit = None if limit is None else as_int("limit", limit, 1)
        catalog = partial(open_catalog, self._snapshot, limit=limit, blocks=blocks)
        samples = SampleSource(
            catalog,
            open_parts(catalog(), parts, missing),
            Decoder(allow=allow, allow_pickle=allow_pickle, decoders=decoders or {}),
            blocks=blocks,
            skipper=Skipper(os.path.abspath(bad_samples)) if on_error == OnBad.SKIP else None,
        )
        names = [part.name for part in samples.wanted.parts]
        self._maker = BatchMaker(
            samples=samples,
            stack=check_stack(stack, names if transform is None else None),
            transform=transform,
            collate=collate,
            with_keys=as_bool("with_keys", with_keys),
            marks_filler=remainder == Remainder.PAD,
        )
        epochs = Epochs(
            snapshot=self._snapshot,
            num_samples=len(samples.catalog),
            batch=batch,
            lanes=batch,
            num_ranks=self.num_ranks,
            remainder=Remainder(remainder),
            shuffle=shuffle,
            seed=seed,
        )
        self._position = BatchPosition(epochs, self.rank)
        self._batches: Generator[Any, None, None] | None = None  # batches of the last pass
        self._wait_s = 0.0
        self._lookahead: Lookahead[list[Any]] | None = None
        self._pool: WorkerPool | None = None
        self._process = os.getpid()  # process to which the threads belong

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy, which has threads and workers of its own and counts from 0."""
        fresh = {"_batches": None, "_lookahead": None, "_pool": None, "_wait_s": 0.0, "_keeper": None}
        own = {"_maker": Portable(copy(self._maker)), "_position": self._position.resumed()}
        return {**self.__dict__, **fresh, **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _maker=state["_maker"].value)

    @property
    def snapshot(self) -> Snapshot:
        """Version that is read."""
        return self._snapshot

    @property
    def position(self) -> BatchPosition:
        """Position of the loader in its epochs."""
        return self._position

    def __len__(self) -> int:
        """Returns the number of steps in the present epoch, or in the next one if none has begun."""
        return self._position.length()

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches of the next epoch, or of the one that `load_state_dict` or `set_epoch` named.

        After `sampler.set_epoch`, which a Trainer calls, each further `iter()` is another pass of that epoch in an
        order of its own. An epoch begins when its first batch is requested; an older iterator ends then.

        Raises:
            CallError: A newer iterator of this loader has begun, this one began before a fork, or this process is one
                of several workers of a torch DataLoader.
            RuntimeError: A worker died, or sent nothing for `timeout_s`. The next epoch has new workers.
        """
        check_worker(self._num_workers, "ShardLoader(num_workers=)")
        process, position = os.getpid(), self._position
        turn = position.begin()
        epoch_pass = position.epochs.pass_from(position.start, self.rank)
        self._end_batches()
        self._batches = batches = self._in_workers(epoch_pass) if self._num_workers else self._in_thread(epoch_pass)
        with closing(batches):
            for step in range(1, len(epoch_pass.rest) + 1):
                check_process(process)
                position.check(turn)
                asked = perf_counter()
                batch = next(batches)
                self._wait_s += perf_counter() - asked
                position.taken = step
                yield batch

    def close(self) -> None:
        """Stop worker processes and the running iterator. The next `iter()` starts new ones."""
        self._position.end()
        self._end_batches()
        if self._pool is not None:
            self._pool.close()

    def locate(self, epoch: int, step: int, rank: int | None = None) -> list[dict[str, Any]]:
        """Returns for each sample of a batch the URL of its shard, its key, and the offset of its first part in bytes.

        An epoch other than the present one is taken as a whole epoch at this batch size.

        Args:
            epoch: Number of the epoch, from 0.
            step: Number of the step in the epoch, from 0.
            rank: Rank that takes the batch; None: this one.

        Raises:
            CallError: The epoch has no such step, or the step was taken before the epoch was resumed.
        """
        epoch, step, position = as_int("epoch", epoch), as_int("step", step), self._position
        start = position.start if epoch == position.start.epoch else position.epochs.start(epoch)
        rest = position.epochs.rest(start)
        of_rank = self.rank if rank is None else as_int("rank", rank)
        if not (0 <= step - start.steps < len(rest) and 0 <= of_rank < self.num_ranks):
            raise CallError(
                f"step {step} of epoch {epoch} on rank {of_rank}: the epoch has {len(rest)} steps from step "
                f"{start.steps} on, and {self.num_ranks} ranks"
            )
        share = rest.share(step - start.steps, of_rank)
        catalog = self._maker.samples.catalog
        found = []
        for place, row in zip(*catalog.locate(start.order().at(share.positions)), strict=True):
            columns = catalog.columns(int(place))
            offsets = [int(columns.offsets[part][row]) for part in self._maker.samples.wanted.stored(columns)]
            first = min((offset for offset in offsets if offset), default=0)
            found.append({"shard": catalog.shard_url(int(place)), "key": columns.keys[row].as_py(), "offset": first})
        return found

    def stats(self) -> dict[str, float]:
        """Returns what this rank has read since the start, and how long the trainer waited for it.

        "samples" counts the samples that the trainer got, "wait_s" its waiting in seconds. The other values count what
        threads or workers have read, which is slightly ahead of the trainer: "bytes" of parts, "bytes_read", "requests"
        and "retries" of object storage, "cache_hits", and "skipped" samples.
        """
        stats = self._maker.stats if not self._num_workers else self._pool.stats if self._pool else Stats()
        return {**asdict(stats), "samples": self._position.num_samples, "wait_s": self._wait_s}

    def _in_thread(self, epoch_pass: Pass) -> Generator[Any, None, None]:
        if self._lookahead is None:
            self._lookahead = Lookahead(GROUPS_AHEAD, "dray-batches")
        with closing(self._lookahead.items(self._maker.groups(epoch_pass))) as groups:
            for group in groups:
                yield from group

    def _in_workers(self, epoch_pass: Pass) -> Generator[Any, None, None]:
        if self._pool is None:
            # a store's connections do not survive a fork
            context = "fork" if self._snapshot.is_local else "spawn"
            options = {"timeout": self._timeout_s, "multiprocessing_context": context}
            self._pool = WorkerPool(self._maker, self._num_workers, options)
        try:
            yield from self._pool.items(epoch_pass)
        except Exception as exc:
            exc.add_note(f"in epoch {epoch_pass.epoch}, at step {self._position.steps} of rank {self.rank}")
            raise

    def _end_batches(self) -> None:
        """Stop making batches of the last pass."""
        if self._process != os.getpid():  # threads belong to the parent of this fork
            self._process = os.getpid()
            self._batches = self._lookahead = None
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def _checked_rank(rank: int | None, num_ranks: int | None) -> tuple[int, int]:
    """Returns the given rank and number of ranks, or those of this process if they are None.

    Raises:
        CallError: Only one of them is given, or they are out of range.
    """
    if (rank is None) != (num_ranks is None):
        raise CallError(f"rank={rank!r} and num_ranks={num_ranks!r}: give both, or neither")
    given = own_rank() if rank is None else (rank, num_ranks)
    found = as_int("rank", given[0]), as_int("num_ranks", given[1], 1)
    if found[0] >= found[1]:
        raise CallError(f"rank={found[0]} and num_ranks={found[1]}: rank must be less than num_ranks")
    return found
