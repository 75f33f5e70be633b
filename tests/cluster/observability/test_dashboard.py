"""The dashboard and its page name the metrics that Ray really exports."""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from dray.loaders.loader_metrics import LOADER_METRICS
from dray.pipelines.metrics import BUILD_METRICS
from tests.support.datasets import pack, tensor_of

METRICS = (*BUILD_METRICS, *LOADER_METRICS)
DASHBOARD = json.loads(files("dray.cluster.observability").joinpath("grafana.json").read_text())
PAGE = (Path(__file__).parents[3] / "docs" / "observability.md").read_text()
WORK = """
import sys, time, urllib.request, ray
from dray.loaders import LoaderMetrics, ShardLoader
from dray.pipelines import export_metrics
from dray.pipelines.events import Advanced, Began, Ended, FoundBad, LostNode, Retried, report
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 << 20)
loader = ShardLoader(sys.argv[1], batch_size=4)
metrics = LoaderMetrics(loader, "here")
for batch in loader:
    metrics.record()
with export_metrics("here"):
    for event in (
        Began("packing", 2, "shards"), Advanced("packing", 1, 10), Retried("shard 1", "died"), LostNode("a"),
        FoundBad(2), Ended("packing"),
    ):
        report(event)
node, = ray.nodes()
for _ in range(12):
    time.sleep(5)
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    if "ray_dray_loader" in text and "ray_dray_build" in text:
        break
print(text)
"""


def names_in(text: str) -> set[str]:
    """Names of dray's metrics, without the suffixes of histograms."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bray_dray_\w+\w", text)}


def test_the_page_lists_every_metric_as_it_is() -> None:
    """Name, type, labels and meaning."""
    for metric in METRICS:
        row = f"| `{metric.exported}` | {metric.kind.lower()} | {', '.join(metric.labels)} | {metric.meaning} |"
        assert row in PAGE


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Every panel has queries of known metrics and labels, and every metric a panel."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all(panel["targets"] and panel["title"] for panel in panels)
    assert names_in(" ".join(queries)) == {metric.exported for metric in METRICS}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.heavy  # starts Ray, whose agent exports every few seconds
def test_a_node_of_ray_exports_the_names_of_the_dashboard(tmp_path: Path) -> None:
    """All but counters of what did not happen."""
    url = pack(tmp_path, 8, parts={"x.pyd": tensor_of(2)})
    done = subprocess.run([sys.executable, "-c", WORK, url], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    silent = {f"ray_dray_loader_{name}_total" for name in ("read_bytes", "requests", "retries", "cache_hits")}
    silent.add("ray_dray_loader_skipped_samples_total")
    found = names_in(" ".join(line for line in done.stdout.splitlines() if not line.startswith("#")))
    assert found | silent >= {metric.exported for metric in METRICS}
    for metric in METRICS:
        for labels in re.findall(rf"^{metric.exported}\w*{{(.*)}}", done.stdout, re.MULTILINE):
            assert all(f'{name}="' in labels for name in metric.labels)
