"""The Dockerfile of dray's image, for all nodes of a Ray cluster."""

import sys
from importlib.resources import files

_HEADER = """\
# dray's image: slim, without root, for CPUs. Rendered by `dray deploy docker`; the last argument is a checkout of dray.
#
#   docker build --file FILE --tag REGISTRY/dray:0.1.0 CHECKOUT
#
# For GPUs, another base and another build of torch:
#
#   docker build --file FILE --tag REGISTRY/dray:0.1.0-cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \\
#     --build-arg TORCH=cu128 CHECKOUT
#
# Your own code and its packages: a Dockerfile that begins with FROM REGISTRY/dray:0.1.0.
"""


def render_docker() -> str:
    """Returns the Dockerfile, with the Python of this process: pickled functions cross only between equal Pythons."""
    python = ".".join(map(str, sys.version_info[:2]))
    arguments = f"ARG BASE=debian:bookworm-slim\nARG PYTHON={python}\nARG TORCH=cpu\n\n"
    return _HEADER + arguments + files("dray.cluster.deploy").joinpath("Dockerfile").read_text(encoding="utf-8")
