"""Decides whether an input that a worker could not read is bad, or the worker's node is unfit.

A folder may be mounted on some nodes only; a node may have an old copy or lack credentials. An input that the driver
can read is good, and no build leaves it out.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.inputs.sources import BadInput, Sources, try_files
from dray.shards.errors import ClusterError, InputError
from dray.shards.storage.store import Store


def unhashed(sources: Sources, hashes: NDArray[np.uint64]) -> list[BadInput]:
    """Returns the samples with a file that exists but could not be read, so that its hash is 0."""
    rows = np.flatnonzero(((hashes == 0) & (sources.sizes >= 0)).any(axis=1)).tolist()
    names = [sources.names[row] for row in rows]
    return [BadInput(name=name, file="", stage="read", error=f"cannot read the files of {name!r}") for name in names]


def check_unread(inputs: Store, sources: Sources, unread: Sequence[BadInput], node: str) -> None:
    """Read the samples that a worker could not read, to see whether this process can.

    Raises:
        ClusterError: This process can read one: names node and sample, and says what to do.
    """
    errors = {entry.name: entry.error for entry in unread}
    rows = np.array([row for row, name in enumerate(sources.names) if name in errors], np.int64)
    suspects = sources.take(rows)
    files = try_files(inputs, suspects)
    for name in suspects.names:
        parts = list(islice(files, len(suspects.suffixes)))
        if not any(isinstance(data, InputError) for data in parts):
            raise ClusterError(
                f"node {node} cannot read sample {name!r} of {inputs.url}, which this process reads: {errors[name]}; "
                f"{_advice(inputs, node)}. No sample was left out for it; shards already stored are kept"
            )


def _advice(inputs: Store, node: str) -> str:
    if inputs.local_root is None:
        return credentials_hint(node)
    return (
        f"a local directory must be on a disk that all nodes share, under the same path ({inputs.local_root}): mount "
        "it there, or use object storage"
    )


def credentials_hint(node: str) -> str:
    """Returns what to do when a worker is denied access that this process has."""
    return (
        f"workers on {node} do not have the credentials of the shell that started the build: give the nodes an "
        "instance role, or put the keys on every node into a file (~/.aws/credentials) or into the environment in "
        "which Ray starts, or pass them by storage_options"
    )
