"""The samples that are read and written, and where they are."""

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import pickles_to_tars
from dray.shards import Snapshot, Store
from tests.support.chaos import Chaos

SUFFIX = "x.pyd"
SHARDS = 8


@dataclass(frozen=True, slots=True)
class Where:
    """A folder on a disk or a store.

    Attributes:
        name: For titles.
        url: Of the folder.
        options: What dray takes to write there.
        slow_options: What dray takes to reach it with the latency that is measured.
    """

    name: str
    url: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    slow_options: dict[str, Any] = field(default_factory=dict, repr=False)

    def folder(self, name: str) -> str:
        """URL of a folder in it."""
        return f"{self.url}/{name}"

    def arguments(self, url: str) -> tuple[str, dict[str, Any]]:
        """Path and further arguments with which Ray Data's own readers take a URL."""
        if not self.slow_options:
            return url, {}
        from pyarrow.fs import S3FileSystem

        filesystem = S3FileSystem(
            access_key=self.slow_options["access_key_id"],
            secret_key=self.slow_options["secret_access_key"],
            endpoint_override=self.slow_options["endpoint"].removeprefix("http://"),
            scheme="http",
            region="us-east-1",
        )
        return url.removeprefix("s3://"), {"filesystem": filesystem}


@contextmanager
def object_store(latency_ms: int) -> Iterator[Where]:
    """SeaweedFS, each request to which waits."""
    with SeaweedServer() as server, Chaos(int(server.endpoint.rpartition(":")[2])) as chaos:
        chaos.rule("latency", seconds=latency_ms / 1000)
        slow = server.storage_options | {"endpoint": chaos.endpoint}
        yield Where(f"S3 with {latency_ms} ms", server.url("ray-data"), server.storage_options, slow)


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one float32 tensor each, as pickles and as shards with `.npy` parts.

    Attributes:
        num: Their number.
        num_bytes: Of the elements of one.
        pickles: The folder of the pickles.
        shards: The dataset.
        tars: Its tars.
    """

    num: int
    num_bytes: int
    pickles: str
    shards: str
    tars: list[str]

    def __str__(self) -> str:
        return f"{self.num:,} x {self.num_bytes / 1000:g} kB"


def make_samples(where: Where, num_bytes: int, num: int) -> Samples:
    """Write the pickles and pack them."""
    pickles, shards = where.folder(f"pickles-{num_bytes}"), where.folder(f"shards-{num_bytes}")
    names = [f"s{number:07d}" for number in range(num)]
    generator = torch.Generator().manual_seed(0)
    store = Store(pickles, where.options)
    if store.local_root:
        Path(store.local_root).mkdir(parents=True)

    def write(name: str) -> None:
        data = pickle.dumps(torch.randn(num_bytes // 4, generator=generator))
        if store.local_root:
            Path(store.local_root, f"{name}.{SUFFIX}").write_bytes(data)  # without fsync
        else:
            store.put_new(f"{name}.{SUFFIX}", data)

    with ThreadPoolExecutor(1 if store.local_root else 16) as threads:
        list(threads.map(write, names))
    pickles_to_tars(
        pickles, names, SUFFIX, shards, "wdshards", min_num_shards=SHARDS, encode="auto", progress=False,
        storage_options=where.options, address="none",
    )  # fmt: skip
    return Samples(num, num_bytes, pickles, shards, Snapshot.open(shards, storage_options=where.options).urls())
