"""Pack pickled samples into WebDataset shards with Ray; stream each GPU rank its share of them.

Import what you need from `dray.pipelines`, `dray.loaders` and `dray.shards`; this module holds only the version.
"""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("dray")
