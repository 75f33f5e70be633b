"""Loading from object storage: dray against raw ranged reads of the same bytes, and what dray asks of the store.

    python benchmarks/remote.py
    python benchmarks/remote.py --samples 1500 --short-samples 0 --latency 50 --rounds 5

SeaweedFS serves S3 on loopback, behind a proxy that counts requests and delays each. `raw` is obstore alone: as many
threads as dray uses fetch the runs of the same epoch, each run in one request, and do nothing with the bytes; where
they lie is known beforehand. dray fetches, checks and hands on every part, undecoded. Both run in each round, in
changing order; the ratio is taken inside a round, and the median of the rounds is shown. Server, proxy and loader share
this machine: at no latency they are what is measured.

Two datasets are read: of samples so large that each is a run of its own, and of shorter ones, many of which make a run.
Delivered are the bytes of the parts that the ranks got, without tar headers; fetched is what the proxy sent, indexes
included. At 4 kB a header of 512 bytes a part is an eighth already; 24 kB are a multiple of a tar's 512.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import ShardLoader
from dray.pipelines import pickles_to_tars
from dray.shards import Snapshot
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.ranged import REQUESTS_AT_ONCE
from dray.shards.storage.client import Access, open_client

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.chaos import Chaos

SUFFIX, SHORT_BYTES, RANKS, RESUME_AT = "bin", 24 << 10, 8, 0.9


def main() -> None:
    """Pack the datasets, then measure."""
    arguments = _arguments()
    with SeaweedServer() as server, Chaos(int(server.endpoint.rpartition(":")[2])) as chaos:
        options = server.storage_options | {"endpoint": chaos.endpoint}
        for samples, size in ((arguments.samples, arguments.size), (arguments.short_samples, SHORT_BYTES)):
            if samples:
                url = server.url(f"remote/{size}")
                _pack(url, server.storage_options, samples, size)
                print(f"\n{samples:,} samples of {size:,} bytes in one shard, batches of {arguments.batch}")
                _measure(chaos, url, options, arguments)


def _measure(chaos: Chaos, url: str, options: dict[str, Any], arguments: argparse.Namespace) -> None:
    """All that is measured of one dataset."""
    for shuffle in (False, True):
        loader = _open(url, options, arguments.batch, shuffle=shuffle)
        block = loader.state_dict()["block"] if shuffle else 1
        print(f"\n{'shuffled' if shuffle else 'in order'}, runs of {block}")
        for latency_ms in arguments.latency:
            chaos.clear()
            chaos.rule("latency", seconds=latency_ms / 1000)
            _compare(loader, _raw(loader, url, options), latency_ms, arguments.rounds)
        chaos.clear()
        for num_ranks, num_workers in ((1, 0), (RANKS, 0), (1, 4)):
            with _fresh_folder():
                _amplification(chaos, url, options, arguments.batch, num_ranks, num_workers, shuffle=shuffle)
        with _fresh_folder() as folder:
            _cached(chaos, _open(url, options, arguments.batch, shuffle=shuffle, cache_dir=folder))
        _first_batches(chaos, url, options, arguments.batch, shuffle=shuffle)


@contextmanager
def _fresh_folder() -> Iterator[str]:
    """An empty folder, which is the temporary one meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        yield folder
        tempfile.tempdir = before


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=100_000, help="bytes of one (default: %(default)s)")
    parser.add_argument("--short-samples", type=int, default=8000, help="of 24 kB; 0: none (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="samples of one (default: %(default)s)")
    parser.add_argument("--latency", type=int, nargs="+", default=[0, 50], help="ms a request (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    return parser.parse_args()


def _pack(url: str, options: dict[str, Any], samples: int, size: int) -> None:
    names = [f"s{number:07d}" for number in range(samples)]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            Path(folder, f"{name}.{SUFFIX}").write_bytes(os.urandom(size))
        pickles_to_tars(
            folder, names, SUFFIX, url, "wdshards", min_num_shards=1, storage_options=options, address="none",
            progress=False,
        )  # fmt: skip


def _open(url: str, options: dict[str, Any], batch: int, **kwargs: Any) -> ShardLoader:
    return ShardLoader(url, batch_size=batch, storage_options=options, remainder="keep", collate=_sizes, **kwargs)


def _sizes(rows: list[dict[str, bytes]]) -> int:
    return sum(len(row[SUFFIX]) for row in rows)


def _raw(loader: ShardLoader, url: str, options: dict[str, Any]) -> Callable[[], int]:
    """Fetches the runs of the loader's next epoch, neighbours of one step together, by obstore alone."""
    store = open_client(Access.of(url, options), timeout_s=60)
    catalog = Catalog(Snapshot.open(url, storage_options=options))
    columns, name = catalog.columns(0), catalog.snapshot.tars.name(catalog.shard(0))
    offsets, sizes = columns.offsets[SUFFIX].tolist(), columns.sizes[SUFFIX].tolist()

    def fetch(run: tuple[int, int]) -> int:
        first, last = run[0], run[0] + run[1] - 1
        end = offsets[last] + sizes[last]
        return len(obstore.get_range(store, name, start=offsets[first], end=end))

    def epoch() -> int:
        runs = dict.fromkeys(run for group in _runs(loader) for run in group)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            return sum(threads.map(fetch, runs))

    return epoch


def _runs(loader: ShardLoader) -> Iterator[list[tuple[int, int]]]:
    """Yields the runs of each step, adjacent ones joined, none beyond the end of the epoch."""
    position = loader.position.resumed()  # a copy: the loader stays where it is
    position.begin()
    epoch_pass = position.epochs.pass_from(position.start, position.rank)
    total = epoch_pass.start.num_samples
    for step in epoch_pass.steps():
        runs: list[tuple[int, int]] = []
        for first, count in dict.fromkeys(step.runs):
            inside = min(count, total - first)
            if runs and sum(runs[-1]) == first and not epoch_pass.start.shuffle:
                runs[-1] = runs[-1][0], runs[-1][1] + inside
            else:
                runs.append((first, inside))
            if inside < count:
                runs.append((0, count - inside))
        yield runs


def _compare(loader: ShardLoader, raw: Callable[[], int], latency_ms: int, rounds: int) -> None:
    rates: dict[str, list[float]] = {"dray": [], "raw": []}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(["dray", "raw"], 2):
            loader.set_epoch(0)
            started = time.perf_counter()
            num_bytes = sum(loader) if name == "dray" else raw()
            rates[name] += [num_bytes / (time.perf_counter() - started) / 1e6] if number else []
    ratio = statistics.median(a / b for a, b in zip(rates["dray"], rates["raw"], strict=True))
    dray, alone = (statistics.median(rates[name]) for name in ("dray", "raw"))
    print(f"    {latency_ms:3} ms a request: dray {dray:7.1f} MB/s, raw {alone:7.1f} MB/s, dray / raw {ratio:.2f}")


@contextmanager
def _counted(chaos: Chaos) -> Iterator[dict[str, int]]:
    """Requests and bytes of the block, known after it."""
    chaos.log.clear()
    counted: dict[str, int] = {}
    yield counted
    counted |= {"requests": len(chaos.log), "bytes": sum(asked.sent for asked in chaos.log)}


def _amplification(
    chaos: Chaos, url: str, options: dict[str, Any], batch: int, num_ranks: int, num_workers: int, *, shuffle: bool
) -> None:
    of_rank = max(1, batch // num_ranks)
    loaders = [
        _open(url, options, of_rank, shuffle=shuffle, rank=rank, num_ranks=num_ranks, num_workers=num_workers)
        for rank in range(num_ranks)
    ]
    with _counted(chaos) as counted:
        delivered = sum(sum(loader) for loader in loaders)
    print(
        f"    {num_ranks} ranks, {num_workers} workers: fetched / delivered {counted['bytes'] / delivered:.3f}, "
        f"{counted['requests']:,} requests"
    )


def _cached(chaos: Chaos, loader: ShardLoader) -> None:
    """Two epochs with a cache on disk."""
    for epoch in range(2):
        with _counted(chaos) as counted:
            started = time.perf_counter()
            delivered = sum(loader)
            seconds = time.perf_counter() - started
        print(
            f"    with a cache, epoch {epoch}: fetched / delivered {counted['bytes'] / delivered:.3f}, "
            f"{counted['requests']:,} requests, {delivered / seconds / 1e6:.1f} MB/s"
        )


def _first_batches(chaos: Chaos, url: str, options: dict[str, Any], batch: int, *, shuffle: bool) -> None:
    """What is asked for before the first batch is there; a loader goes on with the next one at once."""
    ended = _open(url, options, batch, shuffle=shuffle)
    state = ended.state_dict()
    steps = int(len(ended) * RESUME_AT)
    for name, resumed in (("cold", state), ("at 90 %", state | {"consumed": steps * batch, "steps": steps})):
        loader = _open(url, options, batch, shuffle=shuffle)
        loader.load_state_dict(resumed)
        with _counted(chaos) as counted:
            position = loader.position
            next(loader._maker.groups(position.epochs.pass_from(position.start, position.rank)))
        print(f"    first batch {name}: {counted['requests']} requests, {counted['bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
