"""Where and how dray runs: the command line, and the quickstart with its S3 server."""

import typing

if typing.TYPE_CHECKING:
    from dray.cluster.quickstart.seaweed import SeaweedServer

__all__ = ["SeaweedServer"]


def __getattr__(name: str) -> typing.Any:
    """Imports SeaweedServer on first use: its client would double the start-up time of `dray --help`."""
    if name != "SeaweedServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dray.cluster.quickstart.seaweed import SeaweedServer

    globals()[name] = SeaweedServer
    return SeaweedServer
