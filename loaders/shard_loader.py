"""`ShardLoader`: batches of a dataset's samples for one rank; exact, elastic and resumable."""

import os
import traceback
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from time import perf_counter
from typing import Any

from dray.loaders.batching.batches import BatchMaker, Collate, Transform
from dray.loaders.batching.collate import check_stack
from dray.loaders.batching.skipping import OnBad, Skipper
from dray.loaders.lightning.epoch_loader import EpochLoader
from dray.loaders.order.epochs import Epochs
from dray.loaders.order.passes import Pass
from dray.loaders.order.position import BatchPosition
from dray.loaders.order.shares import Remainder
from dray.loaders.ranks import check_has_samples, open_agreed, own_rank
from dray.loaders.workers.forks import check_process, check_worker
from dray.loaders.workers.pool import WorkerPool
from dray.loaders.workers.prefetch_thread import Lookahead
from dray.shards.arguments import as_bool, as_int, as_seconds, as_seed
from dray.shards.codecs.decode import Decoder, Decoders
from dray.shards.errors import CallError
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.node_cache import open_blocks
from dray.shards.reading.samples import Stats
from dray.shards.reading.suffixes import Missing, open_parts
from dray.shards.snapshot import DEFAULT_PREFIX, Snapshot
from dray.shards.storage.client import StorageOptions

PREFETCH = 3  # groups of batches, the one that is asked for included
BAD_SAMPLES = "dray-bad-samples.jsonl"


class ShardLoader(EpochLoader):
    """Iterates over one epoch of one rank after another.

    Every rank takes the same number of steps, in `keep` and `pad` each sample exactly once over all ranks, in `drop` at
    most once. The batches depend on the seed, the epoch and the global batch size alone: not on the number of ranks
    that share one, nor on workers. `state_dict()` is the same on every rank, and may be loaded with another number of
    ranks, workers or samples a batch. A copy, pickled or by the module `copy`, goes on from where the loader is.

    Args:
        url: The dataset's directory, a path or an object-storage URL; `?version=7` at its end names a version.
        prefix: The dataset's prefix.
        parts: The suffixes that are read, such as "tensor.pyd", compared without case. An encoded part may be asked for
            by the suffix of its source, by any that it has now, or by its name without the extension ("image.pyd",
            "image.npy" or "image"). None: all parts, encoded ones under the suffix of their source.
        batch_size: Samples a step of this rank.
        shuffle: Whether the order is permuted; else samples come in the dataset's order.
        seed: Of the permutation: the same on every rank.
        num_workers: Processes that read and decode; 0: a thread of this one.
        timeout_s: How long a worker is waited for, in seconds; then an error names it. None or 0: for ever, with one
            warning after a minute.
        missing: What happens to a sample that lacks one of these parts: "error" names it; "none" makes its value None,
            and so the part a list in that batch.
        stack: Whether tensors, arrays and numbers are stacked to one tensor a batch: then their dtypes and shapes must
            be equal. A part is a list in a batch that has other values, such as text, dicts or None. False: every part
            is always a list. A set of names: only these parts are stacked.
        transform: From a sample, a dict of part -> value, to what batches are made of.
        collate: From a list of these to a batch; None: parts are stacked as `stack` says (see `batching.collate`).
        remainder: What becomes of the last samples, fewer than a global batch: "drop" them, "pad" them with filler
            (a batch then has `__valid__`, false for filler), or "keep" a last batch that is shared out evenly.
        rank: Of the data-parallel group; None: as torch.distributed or RANK tell, else 0.
        num_ranks: The same of its size.
        version: A number or the name of a hold; None: the last, which rank 0 finds out for all. With `rank` each rank
            finds it out by itself, as nobody knows who is in its group: name a version then, or ranks between which a
            build commits read different ones (a state of the one is refused by the other).
        limit: Only the first so many samples of the dataset.
        with_keys: Whether batches have `__key__`, a list.
        on_error: What becomes of a sample that is damaged or refused, or whose shard or index is missing: "fail" raises
            an error that names it; "skip" replaces it, counts it (`stats()["skipped"]`) and lists it in a file. Where
            nothing can be read, as of a version that was dropped, that is an error all the same.
        bad_samples: That file, JSON lines, added to by all ranks and workers.
        cache_dir: A folder in which what is read from object storage is kept for later epochs and restarts, and for the
            other ranks, workers and jobs of the node. None: with workers or several ranks, a temporary folder in which
            they share what more than one of them reads.
        cache_bytes: At most so much lies there, 64 GiB unless told (4 GiB in the temporary folder); 0: no cache.
        storage_options: See `dray.shards.Store`.
        allow: Full names (`pkg.module.Class`) that pickled parts may use besides the safe list.
        allow_pickle: Let pickled parts run any code that they name.
        decoders: Functions of your own by suffix, from a part's bytes to its value: `{"wav": read_wav}`.

    Raises:
        CallError: An argument is wrong; or no sample has a part, or with `parts=None` some samples lack one.
        NotFoundError: There is no such dataset or version.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
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
        transform: Transform | None = None,
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
        allow: Collection[str] = (),
        allow_pickle: bool = False,
        decoders: Decoders | None = None,
    ) -> None:
        if remainder not in list(Remainder):
            raise CallError(f"remainder {remainder!r}: expected one of {', '.join(Remainder)}")
        if on_error not in list(OnBad):
            raise CallError(f"on_error {on_error!r}: expected one of {', '.join(OnBad)}")
        self.rank, self.num_ranks = _checked_rank(rank, num_ranks)
        self._num_workers = as_int("num_workers", num_workers)
        self._timeout_s = 0.0 if timeout_s is None else as_seconds("timeout_s", timeout_s)
        shuffle, seed = as_bool("shuffle", shuffle), as_seed("seed", seed)
        batch = as_int("batch_size", batch_size, 1) * self.num_ranks
        open_version = open_agreed if rank is None else Snapshot.open
        self._snapshot = open_version(url, prefix, version=version, storage_options=storage_options)
        check_has_samples(self._snapshot)
        blocks = open_blocks(cache_dir, cache_bytes, num_workers=self._num_workers, num_ranks=self.num_ranks)
        limit = None if limit is None else as_int("limit", limit, 1)
        wanted = open_parts(Catalog(self._snapshot, limit=limit, blocks=blocks), parts, missing)
        self._maker = BatchMaker(
            snapshot=self._snapshot,
            wanted=wanted,
            stack=check_stack(stack, [part.name for part in wanted.parts] if transform is None else None),
            limit=limit,
            decoder=Decoder(allow=allow, allow_pickle=allow_pickle, decoders=decoders or {}),
            transform=transform,
            collate=collate,
            with_keys=as_bool("with_keys", with_keys),
            marks_filler=remainder == Remainder.PAD,
            skipper=Skipper(os.path.abspath(bad_samples)) if on_error == OnBad.SKIP else None,
            blocks=blocks,
        )
        epochs = Epochs(
            snapshot=self._snapshot,
            num_samples=len(self._maker.catalog),
            batch=batch,
            lanes=batch,
            num_ranks=self.num_ranks,
            remainder=Remainder(remainder),
            shuffle=shuffle,
            seed=seed,
        )
        self._position = BatchPosition(epochs, self.rank)
        self._batches: Generator[Any, None, None] | None = None  # of the pass that began last
        self._wait_s = 0.0
        self._lookahead: Lookahead[list[Any]] | None = None
        self._pool: WorkerPool | None = None
        self._ended: list[Stats] = []  # of workers that are no more
        self._process = os.getpid()  # whose threads and workers these are

    def __getstate__(self) -> dict[str, Any]:
        """For a copy, here or in another process: it has threads and workers of its own, and counts anew."""
        fresh = {"_batches": None, "_lookahead": None, "_pool": None, "_wait_s": 0.0, "_ended": list[Stats]()}
        own = {"_maker": replace(self._maker), "_position": self._position.resumed(), "_keeper": None}
        return {**self.__dict__, **fresh, **own}

    @property
    def snapshot(self) -> Snapshot:
        """The version that is read."""
        return self._snapshot

    @property
    def position(self) -> BatchPosition:
        """Where the loader is in its epochs."""
        return self._position

    def __len__(self) -> int:
        """Steps of the epoch that the next `iter()` goes through, or that is being gone through."""
        return self._position.length()

    def __iter__(self) -> Iterator[Any]:
        """The next epoch; after `load_state_dict` or `set_epoch`, what these name.

        After `sampler.set_epoch`, as a Trainer calls it, each further `iter()` is another pass of that epoch, in an
        order of its own. An epoch counts as begun when its first batch is asked for; an iterator that was left ends
        then.

        Raises:
            CallError: A newer iterator of this loader began, this one was begun before a fork, or this process is one
                of several workers of a torch DataLoader.
            RuntimeError: A worker died, or gave nothing for `timeout_s`. The next epoch has others.
        """
        check_worker(self._num_workers, "ShardLoader(num_workers=)")
        process, position = os.getpid(), self._position
        turn = position.begin()
        way = position.epochs.pass_from(position.start, self.rank)
        self._end_batches()
        self._batches = batches = self._in_workers(way) if self._num_workers else self._in_thread(way)
        with closing(batches):
            for step in range(1, len(way.rest) + 1):
                check_process(process)
                position.check(turn)
                asked = perf_counter()
                batch = next(batches)
                self._wait_s += perf_counter() - asked
                position.taken = step
                yield batch

    def close(self) -> None:
        """End worker processes and the iterator that runs. The next `iter()` starts others."""
        self._position.end()
        self._end_batches()
        self._end_workers()

    def locate(self, epoch: int, step: int, rank: int | None = None) -> list[dict[str, Any]]:
        """Where the samples of a batch lie: shard (its URL), key and offset (of the first part) of each.

        Any other epoch than the present one is taken as one that starts anew at this batch size.

        Args:
            epoch: From 0.
            step: From 0, of the epoch.
            rank: None: this one.

        Raises:
            CallError: The epoch has no such step, or took it before it was resumed here.
        """
        epoch, step, position = as_int("epoch", epoch), as_int("step", step), self._position
        start = position.start if epoch == position.start.epoch else position.epochs.start(epoch)
        rest = position.epochs.rest(start)
        of_rank = self.rank if rank is None else as_int("rank", rank)
        if not (0 <= step - start.steps < len(rest) and 0 <= of_rank < self.num_ranks):
            raise CallError(
                f"step {step} of epoch {epoch} on rank {of_rank}: here it has {len(rest)} steps from step "
                f"{start.steps} on, and {self.num_ranks} ranks"
            )
        share = rest.share(step - start.steps, of_rank)
        catalog = self._maker.catalog
        found = []
        for place, row in zip(*catalog.locate(start.order().at(share.positions)), strict=True):
            columns = catalog.columns(int(place))
            offsets = [int(columns.offsets[part][row]) for part in self._maker.wanted.stored(columns)]
            first = min((offset for offset in offsets if offset), default=0)
            found.append({"shard": catalog.shard_url(int(place)), "key": columns.keys[row].as_py(), "offset": first})
        return found

    def stats(self) -> dict[str, float]:
        """What this rank got and read since the start, and how long it waited for batches.

        samples, that the trainer got; of what threads or workers read for it, a little ahead: bytes of parts,
        bytes_read, requests and retries of object storage, cache_hits, skipped; wait_s.
        """
        told = [*self._ended, *(self._pool.stats.values() if self._pool else ())]
        all_stats = told if self._num_workers else [self._maker.stats]
        total = {field.name: sum(getattr(stats, field.name) for stats in all_stats) for field in fields(Stats)}
        return {**total, "samples": self._position.num_samples, "wait_s": self._wait_s}

    def _in_thread(self, way: Pass) -> Generator[Any, None, None]:
        if self._lookahead is None:
            self._lookahead = Lookahead(PREFETCH, "dray-batches")
        with closing(self._lookahead.items(self._maker.groups(way))) as groups:
            for group in groups:
                yield from group

    def _in_workers(self, way: Pass) -> Generator[Any, None, None]:
        if self._pool is not None and not self._pool.lives_on:  # a worker died while none was waited for
            self._end_workers()
        if self._pool is None:
            self._pool = WorkerPool(self._maker, self._num_workers, self._timeout_s)
        try:
            yield from self._pool.batches(way)
        except Exception as exc:  # one may be dead: the next pass starts others
            exc.add_note(f"in epoch {way.epoch}, at step {self._position.steps} of rank {self.rank}")
            traceback.clear_frames(exc.__traceback__)  # they hold torch's iterator, which would wait long for its end
            self._end_workers()
            raise

    def _end_batches(self) -> None:
        """End what makes the batches of the last pass."""
        if self._process != os.getpid():  # what runs belongs to the process that this one was forked from
            self._process = os.getpid()
            self._batches = self._lookahead = self._pool = None
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _end_workers(self) -> None:
        if self._pool is not None:
            self._ended += self._pool.stats.values()
            self._pool.close()
            self._pool = None


def _checked_rank(rank: int | None, num_ranks: int | None) -> tuple[int, int]:
    """Returns the rank and the number of ranks that were given, or those of this process.

    Raises:
        CallError: Only one of them was given, or they are out of range.
    """
    if (rank is None) != (num_ranks is None):
        raise CallError(f"rank={rank!r} and num_ranks={num_ranks!r}: give both, or neither")
    given = own_rank() if rank is None else (rank, num_ranks)
    found = as_int("rank", given[0]), as_int("num_ranks", given[1], 1)
    if found[0] >= found[1]:
        raise CallError(f"rank {found[0]} of {found[1]}: ranks count from 0")
    return found
