"""Opens the reader that suits where the tars of a version are."""

from dray.shards.reading.catalog import Catalog
from dray.shards.reading.mapped import MappedReader
from dray.shards.reading.node_cache import BlockStore
from dray.shards.reading.ranged import RangeReader
from dray.shards.reading.samples import Reader
from dray.shards.reading.suffixes import WantedParts


def open_reader(catalog: Catalog, wanted: WantedParts, blocks: BlockStore | None = None) -> Reader:
    """Returns a reader for samples on this node's disks or on object storage."""
    return MappedReader(catalog, wanted) if catalog.snapshot.is_local else RangeReader(catalog, wanted, blocks)
