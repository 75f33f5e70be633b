"""`--log-format` and `--ray-metrics`: options of every command; `dray submit` passes them to the command of the job."""

import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any

import typer

from dray.cluster.observability.json_lines import JsonLog
from dray.cluster.observability.json_log import VARIABLE
from dray.pipelines.metrics import export_metrics
from dray.shards.storage.client import without_secrets
from dray.shards.storage.urls import split_version


class LogFormat(StrEnum):
    """Form of the lines on standard error."""

    text = "text"
    json = "json"


_LogFormat = Annotated[
    LogFormat,
    typer.Option(
        envvar=VARIABLE,
        help="Format of progress, warnings and errors on standard error: lines of text, or one JSON object per line.",
    ),
]
_RayMetrics = Annotated[
    bool,
    typer.Option(
        "--ray-metrics",
        envvar="DRAY_RAY_METRICS",
        help="Export Prometheus metrics through Ray while the command works on a Ray cluster.",
    ),
]
_DATASET = ("destination", "url")  # parameters that name the dataset that a command works on


def with_reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command with two more options; `json_log` reads the first one before the command line is parsed."""

    @wraps(command)
    def call(*, log_format: LogFormat, ray_metrics: bool, **values: Any) -> None:  # noqa: ARG001
        given = next((split_version(values[name])[0] for name in _DATASET if values.get(name)), "")
        dataset = without_secrets(given, {})  # a URL that is refused may hold one
        if isinstance(sys.stderr, JsonLog) and dataset:
            sys.stderr.fields["dataset"] = dataset
        with export_metrics(dataset) if ray_metrics else nullcontext():
            command(**values)

    own = inspect.signature(command).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter("log_format", kind, default=LogFormat.text, annotation=_LogFormat),
        inspect.Parameter("ray_metrics", kind, default=False, annotation=_RayMetrics),
    ]
    call.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *more)}
    return call
