"""Where and how dray runs: the command line, the quickstart and its S3 server."""

from dray.cluster.quickstart.seaweed import SeaweedServer

__all__ = ["SeaweedServer"]
