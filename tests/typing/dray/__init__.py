"""Pack pickled samples into WebDataset shards with Ray; stream each GPU rank its share of them.

Import what you need from `dray.pipelines`, `dray.loaders` and `dray.shards`; this module holds only the version.
"""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["UNKNOWN_VERSION", "__version__"]

UNKNOWN_VERSION = "of unknown version"

try:
    __version__ = version("dray")
except PackageNotFoundError:  # the folder alone was shipped, as Ray's py_modules does
    __version__ = UNKNOWN_VERSION
