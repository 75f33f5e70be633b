"""Options that several commands share, each defined once.

Options that belong together are the fields of a dataclass, and a command takes them as one parameter:
`def log(dataset: DatasetOptions)` has the argument URL and the options --prefix and --storage-option.
"""

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from dray.cluster.cli.datasets import find_dataset, find_datasets, without_version
from dray.pipelines.running.ray_session import check_address
from dray.pipelines.versions.retention import Retention
from dray.shards.errors import CallError
from dray.shards.layout import DataPlace, Location
from dray.shards.snapshot import Snapshot
from dray.shards.storage.urls import split_version
from dray.shards.versions import read_version

if TYPE_CHECKING:
    from dray.cluster.jobs.client import JobClient

AllowList = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NAME",
        help="Full name that pickles may use in addition to the safe list, such as pkg.module.Class; repeatable.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Unpickle everything, which runs any code in the pickles: only for data that you trust."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Address of a running Ray cluster; [bold]local[/] starts Ray on this machine, [bold]none[/] packs in this "
        "process.",
        show_default="RAY_ADDRESS, which Ray sets in a job; else none",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the report, no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: a list with one object per dataset.")]
StorageOptionList = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help="Option of the object store, such as [bold]endpoint=http://host:8333[/] or [bold]region=eu-west-1[/]; "
        "repeatable. Put secrets into the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, GOOGLE_*, AZURE_*.",
    ),
]

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """The datasets that a command is about."""

    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Folder of a dataset, or the parent folder of a split's datasets: a path or a URL such as "
            "s3://bucket/shards.",
        ),
    ]
    prefix: Annotated[
        str | None, typer.Option(help="Only the dataset with this prefix.", show_default="all datasets")
    ] = None
    storage_option: StorageOptionList = None

    @property
    def directory(self) -> str:
        """The URL; raises CallError if it names a version."""
        return without_version(self.url)

    @property
    def storage_options(self) -> dict[str, str]:
        """Options for `Store`."""
        return parse_storage_options(self.storage_option)

    def find_all(self) -> list[Location]:
        """Returns the datasets, at least one; see `find_datasets`."""
        return find_datasets(self.directory, self.prefix, self.storage_options)

    def find_one(self, *words: str) -> Location:
        """Returns the only dataset; an error about several names the command line `words` for each of them."""
        return find_dataset(self.directory, self.prefix, self.storage_options, words)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionOptions(DatasetOptions):
    """One version of the datasets that a command is about."""

    version: Annotated[
        str | None,
        typer.Option(
            help="Version to read: a number, or the name of a hold; the same as ?version=7 in the URL.",
            show_default="the last",
        ),
    ] = None

    @property
    def directory(self) -> str:
        """The URL without its version."""
        return split_version(self.url, self.version)[0]

    @property
    def pinned(self) -> int | str | None:
        """The version asked for; None for the last."""
        return split_version(self.url, self.version)[1]

    def snapshots(self, data: "DataOptions | None" = None) -> list[Snapshot]:
        """Returns that version of each dataset, with permission to read its tars where `data` says."""
        found = [data.at(location) if data else location for location in self.find_all()]
        return [Snapshot.load(location, read_version(location, self.pinned)) for location in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Where the tars of an indexed dataset may be read outside its folder."""

    data_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the tars of an indexed dataset are, if they are outside its folder: they are read there only "
            "if you say so.",
            show_default=False,
        ),
    ] = None
    data_storage_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of the object store of --data-url, as --storage-option, none of which is used there; "
            "repeatable.",
        ),
    ] = None

    def at(self, location: Location) -> Location:
        """Returns the location with permission to read its tars there."""
        return location._replace(data=DataPlace.of(self.data_url, self.storage_options))

    @property
    def storage_options(self) -> dict[str, str]:
        """Options for the store of the tars."""
        return parse_storage_options(self.data_storage_option, "--data-storage-option")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionOptions:
    """Which versions a command keeps."""

    keep: Annotated[
        int, typer.Option(min=1, help="Number of recent versions to keep; versions under a hold are kept as well.")
    ] = 2
    older_than: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Drop only versions that were replaced longer ago than this, and delete shards of unfinished builds "
            "only if they are older: 30m, 36h, 7d, or 0.",
        ),
    ] = "1d"

    def rule(self) -> Retention:
        """Returns the rule that builds and gc apply."""
        return Retention(keep=self.keep, grace_s=parse_duration(self.older_than))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """The Ray cluster whose jobs a command is about."""

    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Dashboard of the cluster, such as http://head:8265. Its token is taken from RAY_AUTH_TOKEN, "
            "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, with RAY_AUTH_MODE=token.",
            show_default="RAY_API_SERVER_ADDRESS or RAY_ADDRESS",
        ),
    ] = None
    allow_no_token: Annotated[
        bool,
        typer.Option(
            "--allow-no-token",
            help="Accept a cluster on another machine that asks for no token: whoever reaches it can run code there.",
        ),
    ] = False

    def client(self) -> "JobClient":
        """Returns a client of its jobs."""
        from dray.cluster.jobs.client import job_client  # loads Ray

        return job_client(self.address, allow_no_token=self.allow_no_token)


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that takes the fields of its dataclasses as parameters of its own, as typer reads them."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint) and isinstance(hint, type)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        group = groups.get(parameter.name)
        parameters += map(_parameter_of, fields(group)) if group else [parameter]
    parameters.sort(key=lambda parameter: parameter.name == "storage_option")  # the longest help text comes last

    @wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameter_of(field: Field[Any]) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)


def parse_duration(text: str, option: str = "--older-than") -> float:
    """Returns the seconds of `36h`.

    Raises:
        CallError: The text has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])|0", text.strip())
    if found is None:
        raise CallError(f"{option} {text!r}: expected a time such as 90s, 30m, 36h, 7d or 2w")
    return float(found[1]) * _SECONDS[found[2]] if found[1] else 0.0


def parse_size(option: str, text: str) -> int:
    """Returns the bytes of `10k`, `1.5G` or `512Mi`.

    Raises:
        CallError: The text has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]|[KMG]i)?B?", text.strip())
    if found is None:
        raise CallError(f"{option} {text!r}: expected a number of bytes, such as 4096, 10k, 512Mi or 1.5G")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def parse_storage_options(
    pairs: list[str] | None, option: str = "--storage-option", example: str = "region=eu-west-1"
) -> dict[str, str]:
    """Returns {"region": "eu-west-1"} for ["region=eu-west-1"].

    Raises:
        CallError: A pair has no `=`; the message does not quote it, as it may hold a secret.
    """
    options: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, options[name] = pair.partition("=")
        if not name or not equals:
            raise CallError(f"{option}: expected KEY=VALUE, such as {example}")
    return options


def cluster_address(address: str | None) -> str | None:
    """Returns the given address once it answers; else RAY_ADDRESS, which `ray job submit` sets for its job.

    Raises:
        CallError: The address is a dashboard's.
        ClusterError: Nothing answers there.
    """
    if address is not None:
        check_address(address)
        return address
    found = os.environ.get("RAY_ADDRESS", "")
    return None if found.startswith("http") else found or None  # a dashboard's address is meant for `ray job submit`
