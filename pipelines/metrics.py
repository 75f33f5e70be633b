"""Metrics of running work in Ray's Prometheus endpoint, only for those who ask.

Ray's agent on each node exports what its processes record: `ray_dray_...` in Prometheus, with Ray's own labels, such as
NodeAddress and WorkerId, beside those given here. A record costs 2 µs. Nothing here imports or starts Ray: without an
initialised Ray nothing is recorded.
"""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

from dray.pipelines.events import Advanced, Began, Ended, Event, FoundBad, LostNode, Retried, Waiting, observed_by
from dray.shards.storage.client import without_secrets


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        kind: Its class in `ray.util.metrics`.
        name: Its name; Prometheus shows `ray_` before it, and `_total` after the name of a counter.
        meaning: What it counts or measures, with its unit.
        labels: Names of its labels.
        boundaries: Upper limits of the buckets of a histogram.
    """

    kind: Literal["Counter", "Gauge", "Histogram"]
    name: str
    meaning: str
    labels: tuple[str, ...]
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """Name in Prometheus; a histogram has the suffixes `_bucket`, `_sum` and `_count` besides."""
        return f"ray_{self.name}_total" if self.kind == "Counter" else f"ray_{self.name}"


_STAGE = ("dataset", "stage")
_DATASET = ("dataset",)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

BUILD_METRICS = (
    Metric("Gauge", "dray_build_planned", "Units that the stage has to do in all; 0 if unknown.", _STAGE),
    Metric("Gauge", "dray_build_done", "Units of the stage that are done.", _STAGE),
    Metric("Gauge", "dray_build_running", "1 while the stage runs, else 0.", _STAGE),
    Metric("Gauge", "dray_build_waiting", "1 while nothing has been done for a while, else 0.", _DATASET),
    Metric("Counter", "dray_build_units", "Shards, samples or tars that were done.", _STAGE),
    Metric("Counter", "dray_build_bytes", "Bytes that were stored, or read where nothing is stored.", _STAGE),
    Metric("Counter", "dray_build_retries", "Tasks that failed and were sent again.", _DATASET),
    Metric("Counter", "dray_build_lost_nodes", "Nodes of the cluster that were lost.", _DATASET),
    Metric("Counter", "dray_build_bad_inputs", "Inputs that cannot be packed.", _DATASET),
    Metric("Histogram", "dray_build_interval_seconds", "Seconds between results in the driver.", _STAGE, _SECONDS),
)


class RayMetrics:
    """Records values of some metrics with the same labels, as long as this process is connected to Ray.

    Args:
        metrics: What may be recorded.
        labels: Values of labels that all records share.
    """

    def __init__(self, metrics: Sequence[Metric], labels: Mapping[str, str]) -> None:
        self._metrics = {metric.name: metric for metric in metrics}
        self._labels = {name: without_secrets(value, {}) for name, value in labels.items()}
        self._made: dict[str, Any] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter."""
        if value > 0:
            self._record(name, "inc", value, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._record(name, "set", value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        self._record(name, "observe", value, labels)

    def _record(self, name: str, verb: str, value: float, labels: dict[str, str]) -> None:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        if name not in self._made:
            self._made[name] = _made(self._metrics[name])
        getattr(self._made[name], verb)(value, {**self._labels, **labels})


def _made(metric: Metric) -> Any:
    from ray.util import metrics as ray_metrics

    more = {"boundaries": list(metric.boundaries)} if metric.boundaries else {}
    return getattr(ray_metrics, metric.kind)(metric.name, description=metric.meaning, tag_keys=metric.labels, **more)


@contextmanager
def export_metrics(dataset: str) -> Iterator[None]:
    """Builds, copies, indexing and checks in this context export metrics through Ray, where it is initialised.

    Args:
        dataset: Value of the label `dataset`, such as the URL of the folder; it must hold no secret.
    """
    with observed_by(BuildMetrics(dataset)):
        yield


class BuildMetrics:
    """Observer that records the events of running work.

    Args:
        dataset: Value of the label `dataset`.
    """

    def __init__(self, dataset: str) -> None:
        self._ray = RayMetrics(BUILD_METRICS, {"dataset": dataset})
        self._lock = threading.Lock()
        self._done: dict[str, tuple[int, float]] = {}  # stage -> units that are done, time of the last

    def __call__(self, event: Event) -> None:
        """Record an event."""
        with self._lock:
            self._record(event)
        if not isinstance(event, Retried | LostNode | FoundBad):
            self._ray.set("dray_build_waiting", float(isinstance(event, Waiting)))

    def _record(self, event: Event) -> None:
        match event:
            case Began(stage, total, _):
                self._done[stage] = (0, monotonic())
                self._ray.set("dray_build_planned", total or 0, stage=stage)
                self._ray.set("dray_build_done", 0, stage=stage)
                self._ray.set("dray_build_running", 1, stage=stage)
            case Advanced(stage, count, num_bytes):
                self._advance(stage, count, num_bytes)
            case Ended(stage):
                self._ray.set("dray_build_running", 0, stage=stage)
            case Retried():
                self._ray.add("dray_build_retries", 1)
            case LostNode():
                self._ray.add("dray_build_lost_nodes", 1)
            case FoundBad(count):
                self._ray.add("dray_build_bad_inputs", count)
            case Waiting():
                pass

    def _advance(self, stage: str, count: int, num_bytes: int) -> None:
        done, last = self._done[stage]
        self._done[stage] = (done + count, now := monotonic())
        self._ray.set("dray_build_done", done + count, stage=stage)
        self._ray.add("dray_build_units", count, stage=stage)
        self._ray.add("dray_build_bytes", num_bytes, stage=stage)
        self._ray.observe("dray_build_interval_seconds", now - last, stage=stage)
