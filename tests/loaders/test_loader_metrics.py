"""Without Ray metrics cost nothing and record nothing; the heavy test of the dashboard scrapes a real node."""

import subprocess
import sys
from pathlib import Path

from tests.support.datasets import pack, tensor_of

WITHOUT_RAY = """
import sys
from dray.loaders import LoaderMetrics, ShardLoader
from dray.pipelines import export_metrics
from dray.pipelines.events import Advanced, Began, Ended, report
loader = ShardLoader(sys.argv[1], batch_size=4)
metrics = LoaderMetrics(loader, "here")
for batch in loader:
    metrics.record()
with export_metrics("here"):
    for event in (Began("packing", 2, "shards"), Advanced("packing", 1, 10), Ended("packing")):
        report(event)
print("ray" in sys.modules)
"""


def test_ray_is_never_imported(tmp_path: Path) -> None:
    """A loop that records metrics without Ray runs as before."""
    url = pack(tmp_path, 8, parts={"x.pyd": tensor_of(2)})
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY, url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
