"""`dray build --from-parquet`: a dataset of the rows of Parquet files."""

from collections.abc import Iterator
from dataclasses import fields

from dray.cluster.cli.building.request import BuildRequest
from dray.pipelines import BuildReport, write_samples
from dray.pipelines.making.parquet import ParquetRows, key_of_file, open_parquet
from dray.pipelines.versions.retention import Retention

_TAKEN = ("source", "destination", "from_parquet", "key_column", "prefix", "on_error", "max_bad", "allow_removal")


def build_from_parquet(
    request: BuildRequest, retention: Retention, address: str | None, *, progress: bool
) -> Iterator[BuildReport]:
    """Yields the report of the dataset once it is committed. A rerun reads only new and changed files.

    Raises:
        CallError: An option was given that is about other inputs.
    """
    others = [field.name for field in fields(request) if field.name not in (*_TAKEN, "storage_option")]
    request.check_not_given(others, "--from-parquet")
    store, files = open_parquet(request.source, request.storage_options)
    rows = ParquetRows(store, request.key_column)
    yield write_samples(
        rows,
        request.destination,
        inputs=files,
        key=key_of_file,
        fingerprint=list,
        transform_version=rows.version,
        address=address,
        on_error=request.on_error,
        max_bad=request.max_bad,
        allow_removal=request.allow_removal,
        prefix=request.prefix,
        storage_options=request.storage_options,
        keep=retention.keep,
        grace_s=retention.grace_s,
        progress=progress,
    )
