"""The dataset of docs/scale.md, what the machines and stores do, and what they cost. Everything else is computed."""

from dataclasses import dataclass

from dray.loaders.order.permutation import choose_block
from dray.pipelines.planning.recipe import DEFAULT_SHARD_BYTES
from dray.shards.manifest import CHUNK_ROWS
from dray.shards.tar import BLOCK, END

LIST_KEYS = 1000  # objects on a page of a listing


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A dataset, built from one file a sample and read by a cluster.

    Attributes:
        num_samples: Number of samples.
        sample_bytes: Size of each file.
        num_nodes: Number of nodes that build, and that train.
        cores: CPU cores of a node.
        ranks: Training processes of a node.
        global_batch: Samples of a step over all ranks.
        shard_bytes: Maximum size of a shard.
    """

    num_samples: int = 1_000_000_000
    sample_bytes: int = 100_000
    num_nodes: int = 1_000
    cores: int = 16
    ranks: int = 8
    global_batch: int = 16_000
    shard_bytes: int = DEFAULT_SHARD_BYTES

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return self.num_samples * self.sample_bytes

    @property
    def stored_bytes(self) -> int:
        """Size of a sample in a tar: header, data and padding."""
        return BLOCK + -(-self.sample_bytes // BLOCK) * BLOCK

    @property
    def shard_samples(self) -> int:
        """Number of samples in a shard."""
        return max(1, (self.shard_bytes - len(END)) // self.stored_bytes)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_samples // self.shard_samples)

    @property
    def num_chunks(self) -> int:
        """Number of files of the table of sources."""
        return -(-self.num_samples // CHUNK_ROWS)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of an epoch; a loader reads a block with one request."""
        return -(-self.num_samples // self.block)

    @property
    def block(self) -> int:
        """Number of samples in a block."""
        return choose_block(self.num_samples, self.global_batch, self.stored_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Speeds and sizes: assumed or documented ones, then those that the other sections measured on one core.

    Attributes:
        node_bytes_s: Network of a node, bytes a second (10 Gbit/s); assumed.
        page_s: Seconds for a page of a listing; pages follow each other. Assumed.
        request_s: Seconds to the answer of a small request; assumed.
        stream_bytes_s: Bytes a second of one connection; documented for S3.
        put_s: PUT requests a second that S3 takes under one prefix before it splits it; documented.
        get_s: GET requests a second that S3 takes under one prefix before it splits it; documented.
        tasks_s: Tasks a second of one driver on a large cluster; Ray's release test `many_tasks`.
        pack_s: Seconds to pack a sample of 100 kB on a local disk.
        scan_s: Seconds of the driver to scan a sample and to take its fingerprint, without waiting for pages.
        plan_s: Seconds of the driver to check the name of a sample and plan it.
        table_s: Seconds of the driver for a row of the table of sources, sorted and compressed.
        open_s: Seconds to read and check the manifest for a shard.
        held_bytes: Memory for a sample that a build keeps of the scan: names, fingerprints, and the listing.
        first_bytes: Peak memory of a first build for a sample, beside that.
        later_bytes: Peak memory of planning upon another version for a sample, beside that.
        record_bytes: Memory that the driver keeps of a packed shard.
        manifest_bytes: Bytes of the manifest for a shard.
        intent_bytes: Bytes of the intent for a shard.
        version_bytes: Memory of an open version for a shard.
        index_bytes: Bytes of an index for a sample.
        row_bytes: Bytes of the table of sources for a sample.
    """

    node_bytes_s: float = 1.25e9
    page_s: float = 0.1
    request_s: float = 0.03
    stream_bytes_s: float = 85e6
    put_s: float = 3500
    get_s: float = 5500
    tasks_s: float = 570
    pack_s: float = 75e-6
    scan_s: float = 6.7e-6
    plan_s: float = 0.7e-6
    table_s: float = 0.9e-6
    open_s: float = 4.7e-6
    held_bytes: float = 447
    first_bytes: float = 294 - 105
    later_bytes: float = 419 - 105
    record_bytes: float = 1_052
    manifest_bytes: float = 184
    intent_bytes: float = 48
    version_bytes: float = 863
    index_bytes: float = 49.5
    row_bytes: float = 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """List prices of a store in US dollars.

    Attributes:
        store: Its name and region.
        source: Where the prices were read, and when.
        writes: Price of 1,000 PUT or LIST requests.
        reads: Price of 1,000 GET or HEAD requests.
        storage: Price of a month for each step: (up to this number of bytes, price of 2^30 bytes).
    """

    store: str
    source: str
    writes: float
    reads: float
    storage: tuple[tuple[float, float], ...]


S3 = Prices(
    store="S3 Standard, us-east-1",
    source="first step of storage as quoted by cloudburn.io on 13 March 2026, the other prices as quoted since 2022; "
    "check aws.amazon.com/s3/pricing",
    writes=0.005,
    reads=0.0004,
    storage=((50 << 40, 0.023), (500 << 40, 0.022), (float("inf"), 0.021)),
)
GCS = Prices(
    store="GCS Standard, us-central1",
    source="storage as transcribed by api-evangelist/gcp-cloud-storage on 20 September 2026, requests from older "
    "quotes; check cloud.google.com/storage/pricing",
    writes=0.005,
    reads=0.0004,
    storage=((float("inf"), 0.020),),
)
