"""Metrics of loaders in Ray's Prometheus endpoint, for training loops that ask for them."""

from time import perf_counter
from typing import Protocol

from dray.loaders.ranks import own_rank
from dray.pipelines.metrics import Metric, RayMetrics

_LABELS = ("dataset", "rank")
_WAITS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

LOADER_METRICS = (
    Metric("Counter", "dray_loader_samples", "Samples that the trainer got.", _LABELS),
    Metric("Counter", "dray_loader_bytes", "Bytes of the parts that were read.", _LABELS),
    Metric("Counter", "dray_loader_read_bytes", "Bytes requested from object storage.", _LABELS),
    Metric("Counter", "dray_loader_requests", "Requests to object storage.", _LABELS),
    Metric("Counter", "dray_loader_retries", "Requests that were repeated after a failure.", _LABELS),
    Metric("Counter", "dray_loader_cache_hits", "Samples that the cache of the node had.", _LABELS),
    Metric("Counter", "dray_loader_skipped_samples", "Unreadable samples that were replaced.", _LABELS),
    Metric("Counter", "dray_loader_wait_seconds", "Seconds that the trainer waited for batches.", _LABELS),
    Metric("Gauge", "dray_loader_wait_share", "Share of the last interval spent waiting, 0 to 1.", _LABELS),
    Metric(
        "Histogram", "dray_loader_interval_wait_seconds", "Seconds waited from record to record.", _LABELS, _WAITS_S
    ),
)
_COUNTS = {
    "samples": "dray_loader_samples",
    "bytes": "dray_loader_bytes",
    "bytes_read": "dray_loader_read_bytes",
    "requests": "dray_loader_requests",
    "retries": "dray_loader_retries",
    "cache_hits": "dray_loader_cache_hits",
    "skipped": "dray_loader_skipped_samples",
    "wait_s": "dray_loader_wait_seconds",
}
"""Name in `stats()` -> counter."""


class HasStats(Protocol):
    """A loader that counts: `ShardLoader`, those of the DataModules, and what `to_device` returns."""

    def stats(self) -> dict[str, float]:
        """Returns the counts since its start."""
        ...


class LoaderMetrics:
    """Exports the `stats()` of a loader of this rank through Ray, where Ray is initialised.

    Call `record()` after each step, or less often: counters then grow by all that happened in between, and the waits
    are those of several steps. Ray is not imported or started.

        metrics = LoaderMetrics(loader, "s3://bucket/proteins/train")
        for batch in loader:
            ...
            metrics.record()

    Args:
        loader: The loader.
        dataset: Value of the label `dataset`, such as the URL; it must hold no secret.
        rank: Value of the label `rank`. None: as `ShardLoader` finds it.
    """

    def __init__(self, loader: HasStats, dataset: str, *, rank: int | None = None) -> None:
        self._loader = loader
        labels = {"dataset": dataset, "rank": str(own_rank()[0] if rank is None else rank)}
        self._ray = RayMetrics(LOADER_METRICS, labels)
        self._last, self._since = loader.stats(), perf_counter()

    def record(self) -> None:
        """Record what has happened since the last call."""
        stats, now = self._loader.stats(), perf_counter()
        gained = {name: value - self._last.get(name, 0) for name, value in stats.items()}
        seconds, self._last, self._since = now - self._since, stats, now
        for name, counter in _COUNTS.items():
            self._ray.add(counter, gained.get(name, 0))
        if "wait_s" in gained:
            self._ray.set("dray_loader_wait_share", min(gained["wait_s"] / seconds, 1.0))
            self._ray.observe("dray_loader_interval_wait_seconds", gained["wait_s"])
