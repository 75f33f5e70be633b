"""Everything that writes a dataset: sources, plan, pack, build. Ray is imported only where it is used."""

from dray.pipelines.pickles import pickles_to_tars
from dray.pipelines.report import BuildReport
from dray.pipelines.split import split_by_hash

__all__ = ["BuildReport", "pickles_to_tars", "split_by_hash"]
