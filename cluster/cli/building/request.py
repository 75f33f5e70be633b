"""What `dray build` and `dray plan` are asked for: each field of `BuildRequest` is an argument or option of both."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dray.cluster.cli.options import AllowList, AllowPickle, StorageOptionList, parse_storage_options
from dray.pipelines.inputs.encoder import Encode, Encoder
from dray.pipelines.inputs.tolerance import OnError, Tolerance
from dray.pipelines.planning.recipe import Recipe
from dray.shards.errors import CallError
from dray.shards.layout import check_suffixes
from dray.shards.parts import AUTO

_GROUP_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # the name becomes a folder


class MissingGroups(StrEnum):
    """What a split does with a dataset of an earlier split that it does not name."""

    keep = "keep"
    drop = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """The arguments of a build, as given on the command line."""

    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder of the input files: a path or a URL such as s3://bucket/raw.")
    ]
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="Folder for the shards: a path or a URL such as s3://bucket/shards.")
    ]
    suffix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUFFIX",
            help="Suffix of the files to pack, such as tensor.pyd; repeat the option for samples of several parts.",
        ),
    ] = None
    from_parquet: Annotated[
        bool,
        typer.Option(
            "--from-parquet",
            help="SRC is a Parquet file, or a folder of them: each row becomes a sample, each column a part.",
        ),
    ] = False
    key_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="With --from-parquet: column of the keys.",
            show_default="__key__, or file and number of the row",
        ),
    ] = None
    optional_suffix: Annotated[
        list[str] | None,
        typer.Option("--optional-suffix", metavar="SUFFIX", help="Suffix of a part that samples may lack; repeatable."),
    ] = None
    prefix: Annotated[
        str, typer.Option(help="Prefix of the dataset; shards are named PREFIX-000000.tar and so on.")
    ] = "wdshards"
    shards: Annotated[
        int | None,
        typer.Option(help="Number of shards; with --split, of each group.", show_default="one per 256 MiB"),
    ] = None
    shuffle_seed: Annotated[
        int | None,
        typer.Option(
            help="Shuffle the samples across all shards, by a hash of this seed and their keys.",
            show_default="order of the names",
        ),
    ] = None
    names: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File with the names of the samples, one per line, in the order to pack them; - is standard input.",
            show_default="all in SRC and its sub-folders, sorted",
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            metavar="GROUPS",
            help="Assign samples to groups by a hash of their names, such as train=0.9,val=0.05,test=0.05. Each group "
            "becomes a dataset: DEST/train and so on.",
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the split: another seed assigns the samples differently.")] = 0
    encode: Annotated[
        list[str] | None,
        typer.Option(
            "--encode",
            metavar="auto|SUFFIX=FORMAT",
            help="Store pickled parts as [bold]npy[/], [bold]safetensors[/] or [bold]json[/], such as tensor.pyd=npy; "
            "repeatable. [bold]auto[/] picks the format by the value of each pickle, and keeps pickles that none fits.",
            show_default="store files as they are",
        ),
    ] = None
    allow: AllowList = None
    allow_pickle: AllowPickle = False
    checksum: Annotated[
        bool,
        typer.Option(
            "--checksum", help="Detect changed files by content instead of size and time (ETag); reads every file."
        ),
    ] = False
    on_error: Annotated[
        OnError,
        typer.Option(
            help="If files are missing, unreadable or cannot be encoded: [bold]fail[/] and name them; [bold]skip[/] "
            "their samples until the files change; [bold]quarantine[/] their samples, and retry them in every build. "
            "[bold]dray ls --left-out[/] lists what is left out."
        ),
    ] = OnError.FAIL
    max_bad: Annotated[
        str, typer.Option(metavar="N|P%", help="Maximum number, or percentage, of samples to leave out.")
    ] = "1%"
    allow_removal: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT|NUMBER",
            help="Maximum percentage, or number, of the last version's samples that the build removes; not checked "
            "with --names.",
            show_default="10%, or 50% of fewer than 20",
        ),
    ] = None
    allow_changed_source: Annotated[
        bool,
        typer.Option(
            "--allow-changed-source", help="Accept an input folder or suffixes that differ from the last version's."
        ),
    ] = False
    missing_groups: Annotated[
        MissingGroups | None,
        typer.Option(
            help="What to do with a dataset in DEST that --split does not name and that shares samples with the "
            "groups: [bold]drop[/] makes its next version empty, [bold]keep[/] leaves it unchanged.",
            show_default="refuse to build",
        ),
    ] = None
    storage_option: StorageOptionList = None

    @property
    def storage_options(self) -> dict[str, str]:
        """Options for `Store`."""
        return parse_storage_options(self.storage_option)

    @property
    def fractions(self) -> dict[str, float] | None:
        """Group -> its fraction of the samples; None without a split."""
        return parse_fractions(self.split) if self.split else None

    @property
    def tolerance(self) -> Tolerance:
        """How the build treats inputs that cannot be packed."""
        return Tolerance(on_error=self.on_error, max_bad=self.max_bad)

    def check_not_given(self, names: Iterable[str], option: str) -> None:
        """Check that options that do not go with `option` are not given.

        Raises:
            CallError: Some are; names them.
        """
        defaults = {field.name: field.default for field in fields(self)}
        if given := [name for name in names if getattr(self, name) != defaults[name]]:
            raise CallError(f"{option} does not go with {option_names(given)}")

    def recipe(self) -> Recipe:
        """Returns what decides the bytes of the shards.

        Raises:
            CallError: No suffix was given, or one is invalid.
        """
        if not self.suffix:
            raise CallError(
                "give --suffix for the files to pack, such as --suffix tensor.pyd; or dray build SRC DEST "
                "--from-parquet for the rows of Parquet files"
            )
        suffixes = check_suffixes((*check_suffixes(self.suffix), *(self.optional_suffix or ())))
        return Recipe(
            suffixes=suffixes,
            num_shards=self.shards,
            shuffle_seed=self.shuffle_seed,
            encoder=Encoder.of(
                parse_encode(self.encode), suffixes, allow=self.allow or (), allow_pickle=self.allow_pickle
            ),
            leaves_out_bad=self.tolerance.leaves_out,
            recursive=self.names is None,
        )


def option_names(names: Iterable[str]) -> str:
    """Returns the options of some fields, such as `--shuffle-seed, --split`."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def read_names(names_file: str, option: str = "--names") -> list[str]:
    """Returns the names in a file, one per line, without blank lines and a byte order mark; `-` is standard input.

    Raises:
        CallError: The file of the option cannot be read, or is not UTF-8 text.
    """
    try:
        text = sys.stdin.read() if names_file == "-" else Path(names_file).read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise CallError(f"{option} {names_file}: expected UTF-8 text, one name per line ({exc})") from exc
    except OSError as exc:
        raise CallError(f"{option} {names_file}: the file cannot be read ({exc.strerror})") from exc
    lines = (line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))
    return [line for line in lines if line.strip()]


def parse_fractions(text: str) -> dict[str, float]:
    """Returns {"train": 0.9, "val": 0.1} for `train=0.9,val=0.1`.

    Raises:
        CallError: The text has another form, or the name of a group cannot be a folder.
    """
    groups: dict[str, float] = {}
    for pair in text.split(","):
        name, _, share = pair.strip().partition("=")
        if not _GROUP_NAME.fullmatch(name) or not re.fullmatch(r"\d*\.?\d+", share) or name in groups:
            raise CallError(f"--split {text}: expected train=0.9,val=0.1 with each group once, found {pair.strip()!r}")
        groups[name] = float(share)
    return groups


def parse_encode(words: list[str] | None) -> Encode | None:
    """Returns {"tensor.pyd": "npy"} for ["tensor.pyd=npy"], and "auto" for ["auto"].

    Raises:
        CallError: A word has another form, or names a suffix for the second time.
    """
    if not words or words == [AUTO]:
        return AUTO if words else None
    targets: dict[str, str] = {}
    for word in words:
        suffix, equals, target = word.partition("=")
        if not equals or suffix in targets:
            raise CallError(f"--encode {word}: expected auto alone, or SUFFIX=FORMAT such as tensor.pyd=npy, each once")
        targets[suffix] = target
    return targets
