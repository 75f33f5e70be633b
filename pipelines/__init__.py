"""Everything that writes a dataset. Ray is imported only when it is used."""

from dray.pipelines.building.report import BuildReport
from dray.pipelines.hash_split import split_by_hash
from dray.pipelines.pack_pickles import pickles_to_tars

__all__ = ["BuildReport", "pickles_to_tars", "split_by_hash"]
