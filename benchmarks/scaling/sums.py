"""Requests, seconds and dollars of a build and an epoch: arithmetic on a case. Tests count those of real ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dray.pipelines.versions import gc
from dray.shards import verify
from dray.shards.reading.catalog import INDEX_BYTES
from dray.shards.reading.ranged import AHEAD_BYTES
from scaling.case import GCS, LIST_KEYS, S3, Case, Prices, Rates

Row = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Number of requests by kind; deleting is free on S3 and GCS.

    Attributes:
        puts: Objects created.
        gets: Objects or ranges read, and objects looked up.
        lists: Pages listed.
        deletes: Requests that delete; on S3 each deletes up to 1,000 objects.
    """

    puts: int = 0
    gets: int = 0
    lists: int = 0
    deletes: int = 0

    def dollars(self, prices: Prices) -> float:
        """Returns their price."""
        return (self.puts + self.lists) * prices.writes / 1000 + self.gets * prices.reads / 1000


def pages(num_objects: int) -> int:
    """Returns the number of pages of a listing; an empty one has a page."""
    return max(1, -(-num_objects // LIST_KEYS))


def first_build(case: Case) -> Requests:
    """Returns the requests of a first build of a scanned folder: each file is read once, each shard has an index."""
    return Requests(
        puts=2 * case.num_shards + case.num_chunks + 4,  # manifest, commit, and the intent, which is tried twice
        gets=case.num_samples + 2,  # the probe of the intent, and the intent
        lists=pages(case.num_samples) + 2 * pages(case.num_shards) + 11,
    )


def rerun(case: Case) -> Requests:
    """Returns the requests of a build that finds nothing to do."""
    return Requests(gets=3 + case.num_chunks, lists=pages(case.num_samples) + 2 * pages(case.num_shards) + 4)


OPENED = Requests(gets=2, lists=1)  # a rank that opens a version: commit and manifest


def epoch(case: Case) -> Requests:
    """Returns the requests of an epoch of all ranks, whose nodes have no indexes yet and keep those that they read."""
    num_ranks = case.num_nodes * case.ranks
    return Requests(
        gets=case.num_blocks + index_reads(case) + OPENED.gets * num_ranks,
        lists=OPENED.lists * num_ranks,
    )


def index_reads(case: Case) -> int:
    """Returns the number of indexes that are read: each block is in another shard, while a node has not read all."""
    return min(case.num_blocks, case.num_nodes * case.num_shards)


def collect(case: Case) -> Requests:
    """Returns the requests of a gc that deletes a version of as many shards and their indexes."""
    num_objects = 2 * case.num_shards + case.num_chunks + 1
    return Requests(
        puts=1,
        gets=case.num_shards + 13,  # the first block of each tar: only dray's are deleted
        lists=3 * pages(2 * case.num_shards) + 11,
        deletes=pages(num_objects),
    )


def verify_quick(case: Case) -> Requests:
    """Returns the requests of `dray verify --level quick`."""
    return Requests(gets=4 + case.num_chunks, lists=2 * pages(case.num_shards) + 3)


def storage_dollars(case: Case, prices: Prices) -> float:
    """Returns the price of a month of the shards."""
    total, done = 0.0, 0.0
    stored = float(case.num_samples * case.stored_bytes)
    for limit, price in prices.storage:
        some = max(0.0, min(stored, limit) - done)
        total, done = total + some / 2**30 * price, done + some
    return total


def request_rows(case: Case) -> Iterator[Row]:
    """Yields the table of requests and dollars."""
    yield "", "PUT", "GET", "LIST", "DELETE", "S3", "GCS"
    kinds = {
        "first build": first_build(case),
        "rerun, nothing to do": rerun(case),
        "one rank opens a version": OPENED,
        "epoch": epoch(case),
        "gc of one version": collect(case),
        "verify --level quick": verify_quick(case),
    }
    for what, found in kinds.items():
        counts = (found.puts, found.gets, found.lists, found.deletes)
        yield what, *(f"{count:,}" for count in counts), *(f"${found.dollars(prices):,.2f}" for prices in (S3, GCS))
    yield "storage, a month", "", "", "", "", *(f"${storage_dollars(case, prices):,.0f}" for prices in (S3, GCS))


def build_rows(case: Case, rates: Rates) -> Iterator[Row]:
    """Yields what a first build would take if each resource were the only limit, the slowest first."""
    yield "resource", "use", "limit", "time alone"
    requests, cluster_bytes_s = first_build(case), case.num_nodes * rates.node_bytes_s
    uses = [
        (pages(case.num_samples) * rates.page_s, "listing the inputs", f"{pages(case.num_samples):,} pages",
         f"{rates.page_s} s a page, one after another"),
        (requests.gets / rates.get_s, "GET of the inputs", f"{requests.gets:,}", f"{rates.get_s:,.0f}/s a prefix"),
        (requests.puts / rates.put_s, "PUT of shards and indexes", f"{requests.puts:,}",
         f"{rates.put_s:,.0f}/s a prefix"),
        (case.num_shards / rates.tasks_s, "Ray tasks", f"{case.num_shards:,}", f"{rates.tasks_s:,.0f}/s a driver"),
        *(
            (case.num_samples * seconds, what, "driver, one core", f"{seconds * 1e6:.1f} us a sample")
            for what, seconds in (
                ("scan", rates.scan_s),
                ("plan", rates.plan_s),
                ("table of sources", rates.table_s),
            )
        ),
        (2 * case.num_bytes / cluster_bytes_s, "network, in and out", f"{2 * case.num_bytes / 1e12:,.0f} TB",
         f"{cluster_bytes_s / 1e12:.2f} TB/s"),
        (case.num_samples * rates.pack_s / case.num_nodes / case.cores, "packing",
         f"{case.num_nodes * case.cores:,} cores", f"{rates.pack_s * 1e6:.0f} us a sample"),
    ]  # fmt: skip
    for seconds, *texts in sorted(uses, reverse=True):
        yield *texts, duration(seconds)


def epoch_rows(case: Case, rates: Rates) -> Iterator[Row]:
    """Yields what an epoch would take if each resource were the only limit, the slowest first."""
    yield "resource", "use", "limit", "time alone"
    cluster_bytes_s = case.num_nodes * rates.node_bytes_s
    tars, indexes = case.num_samples * case.stored_bytes, index_reads(case) * case.shard_samples * rates.index_bytes
    manifests = case.num_nodes * case.ranks * case.num_shards * rates.manifest_bytes
    uses = [
        (epoch(case).gets / rates.get_s, "GET of blocks and indexes", f"{epoch(case).gets:,}",
         f"{rates.get_s:,.0f}/s a prefix"),
        *(
            (num_bytes / cluster_bytes_s, what, f"{num_bytes / 1e12:,.1f} TB", f"{cluster_bytes_s / 1e12:.2f} TB/s")
            for what, num_bytes in (
                ("network, blocks", tars),
                ("network, indexes", indexes),
                ("network, manifests", manifests),
            )
        ),
    ]  # fmt: skip
    for seconds, *texts in sorted(uses, reverse=True):
        yield *texts, duration(seconds)


def driver_rows(rates: Rates) -> Iterator[Row]:
    """Yields time and memory of one driver by the number of samples, of one file each."""
    yield "samples", "listing", "scan, plan and table", "memory of a first build", "memory of a later build"
    for count in (10**6, 10**7, 10**8, 10**9):
        work_s = count * (rates.scan_s + rates.plan_s + rates.table_s)
        memories = (count * (rates.held_bytes + more) for more in (rates.first_bytes, rates.later_bytes))
        yield f"{count:,}", duration(pages(count) * rates.page_s), duration(work_s), *map(size, memories)


def memory_rows(case: Case, rates: Rates) -> Iterator[Row]:
    """Yields sizes of records and memory of processes."""
    yield "what", "size", "per"
    lanes = -(-case.global_batch // (case.num_nodes * case.ranks)) * case.block * case.stored_bytes
    for what, per_shard in (
        ("driver: records of packed shards", rates.record_bytes),
        ("intent", rates.intent_bytes),
        ("manifest", rates.manifest_bytes),
        ("each process of a rank: the version", rates.version_bytes),
    ):
        yield what, size(case.num_shards * per_shard), f"{per_shard:,.0f} bytes a shard"
    for what, per_sample in (("table of sources", rates.row_bytes), ("indexes of all shards", rates.index_bytes)):
        yield what, size(case.num_samples * per_sample), f"{per_sample:,.1f} bytes a sample"
    yield "each process of a rank: indexes", size(INDEX_BYTES), "at most"
    yield "each rank: blocks in use and ahead", size(lanes + AHEAD_BYTES), "at most"


def upkeep_rows(case: Case, rates: Rates) -> Iterator[Row]:
    """Yields how long one process takes for what is done with a version."""
    yield "what", "which takes", "time"
    manifest, tables = case.num_shards * rates.manifest_bytes, case.num_samples * rates.row_bytes
    found, tars = collect(case), case.num_samples * case.stored_bytes
    yield (
        "a rank opens the version",
        f"{size(manifest)} of manifest",
        duration(manifest / rates.stream_bytes_s + case.num_shards * rates.open_s),
    )
    yield (
        "gc of one version",
        f"{found.gets:,} small reads, {gc.READS_AT_ONCE} at a time",
        duration(found.gets * rates.request_s / gc.READS_AT_ONCE + found.lists * rates.page_s),
    )
    yield (
        "verify --level quick",
        f"{size(tables)} of tables",
        duration(tables / rates.stream_bytes_s + verify_quick(case).lists * rates.page_s),
    )
    streams = min(verify.SHARDS_AT_ONCE * rates.stream_bytes_s, rates.node_bytes_s)
    yield "verify --level index, full", f"{size(tars)} of tars", duration(tars / streams)


def price_lines() -> Iterator[str]:
    """Yields where the prices come from."""
    for prices in (S3, GCS):
        steps = "; ".join(
            f"${price:.4g} a GiB and month{'' if limit == float('inf') else f' up to {limit / 2**40:,.0f} TiB'}"
            for limit, price in prices.storage
        )
        yield (
            f"{prices.store}: PUT and LIST ${prices.writes} and GET ${prices.reads} a thousand, {steps} "
            f"({prices.source})."
        )


def table(rows: Iterator[Row]) -> str:
    """Returns rows as a Markdown table; the first is its head."""
    head, *others = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *others]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def duration(seconds: float) -> str:
    """Returns seconds in words."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def size(num_bytes: float) -> str:
    """Returns bytes in words."""
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= length:
            return f"{num_bytes / length:,.1f} {unit}"
    return f"{num_bytes / 1e6:,.0f} MB"
