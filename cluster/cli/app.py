"""The `dray` command.

Results go to standard output, progress and errors to standard error. What the caller can mend is one line and exit
code 1; a command line that cannot be read is exit code 2, Ctrl-C 130, SIGTERM 143. Ray and torch are imported by the
commands that need them, so that `dray --help` is quick.
"""

import importlib.metadata
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperOption

from dray.cluster.cli.group import Commands
from dray.cluster.cli.signals import orderly_end
from dray.pipelines.inputs.tolerance import OnError
from dray.shards.verify import Level

_COMPLETION = {"install_completion", "show_completion"}  # typer's own options: they work, and stay out of the help

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StorageOptionList = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help="Of the object store, such as [bold]endpoint=http://host:8333[/] or [bold]region=eu-west-1[/]; "
        "repeatable. Secrets belong in the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, GOOGLE_*, AZURE_*.",
    ),
]


class StoreKind(StrEnum):
    """Where the quickstart keeps its files."""

    disk = "disk"
    s3 = "s3"


def main() -> None:
    """Run the command line."""
    command = typer.main.get_command(app)
    for option in command.params:
        if isinstance(option, TyperOption) and option.name in _COMPLETION:
            option.hidden = True
    with orderly_end():
        command(prog_name="dray")


class MissingGroups(StrEnum):
    """What a split does with an earlier group that it does not name."""

    keep = "keep"
    drop = "drop"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dray {importlib.metadata.version('dray')}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[  # noqa: ARG001  its callback acts
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the whole traceback of an error, as DRAY_TRACEBACK=1 does.")
    ] = False,
) -> None:
    """Pack pickled samples into WebDataset shards with Ray; stream each GPU rank its share of them.

    New here? This packs real data and trains on it, in under a minute:

    [bold]dray quickstart[/]

    Completion of commands and options in your shell: [bold]dray --install-completion[/]
    """
    if traceback:
        os.environ["DRAY_TRACEBACK"] = "1"


Source = Annotated[str, typer.Argument(metavar="SRC", help="Where the files lie: a path or an s3:// URL.")]
Destination = Annotated[str, typer.Argument(metavar="DEST", help="Where the shards go: a path or an s3:// URL.")]
SuffixList = Annotated[
    list[str],
    typer.Option(metavar="SUFFIX", help="What follows a name's dot, such as tensor.pyd; repeat it for more parts."),
]
OptionalSuffixList = Annotated[
    list[str] | None,
    typer.Option("--optional-suffix", metavar="SUFFIX", help="The same for a part that samples may lack; repeatable."),
]
Prefix = Annotated[str, typer.Option(help="The dataset's prefix: shards are PREFIX-000000.tar and so on.")]
NumShards = Annotated[
    int | None,
    typer.Option(help="Exactly so many shards (of each group of a split).", show_default="by size, 256 MiB each"),
]
NamesFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The samples' names, one a line, in the order wanted; - is standard input.",
        show_default="all in SRC and its sub-folders, sorted",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="GROUPS",
        help="Deal the samples to groups by a hash of their names, such as train=0.9,val=0.05,test=0.05: each "
        "becomes a dataset of its own, DEST/train and so on.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the split: another seed deals otherwise.")]
ShuffleSeed = Annotated[
    int | None,
    typer.Option(
        help="Shuffle the samples over all shards, by a hash of their keys under this seed.", show_default="as listed"
    ),
]
EncodeList = Annotated[
    list[str] | None,
    typer.Option(
        "--encode",
        metavar="auto|SUFFIX=FORMAT",
        help="Store pickled parts as [bold]npy[/], [bold]safetensors[/] or [bold]json[/], such as tensor.pyd=npy; "
        "repeat it for more parts. [bold]auto[/]: every pickled part as what fits it, and a pickle where nothing does.",
        show_default="as they are",
    ),
]
AllowList = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NAME",
        help="A full name, such as pkg.module.Class, that pickles may use besides the safe list; repeatable.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Let pickles run any code while they are opened: for your own data only."),
]
Checksum = Annotated[
    bool,
    typer.Option("--checksum", help="Tell changed files by content, not by size and time (ETag): reads every file."),
]
OnErrorOption = Annotated[
    OnError,
    typer.Option(
        help="Of files that are missing, or cannot be read or encoded: [bold]fail[/] and name them; [bold]skip[/] them "
        "until they change; [bold]quarantine[/] them, and try them again in every build. [bold]dray ls --left-out[/] "
        "lists what is left out."
    ),
]
MaxBad = Annotated[
    str, typer.Option(metavar="N|P%", help="Leave out so many samples at most: a number, or per cent of them.")
]
Version = Annotated[
    str | None,
    typer.Option(
        help="This version: a number, or the name of a hold; the same as ?version=7 in the URL.",
        show_default="the last",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Of a running Ray cluster; [bold]local[/] starts one on this machine, [bold]none[/] packs in "
        "this process.",
        show_default="RAY_ADDRESS, which `ray job submit` sets; else none",
    ),
]
Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="The folder of a dataset, or of a split's: a path or an s3:// URL."),
]
DatasetPrefix = Annotated[
    str | None, typer.Option("--prefix", help="Only the dataset with this prefix.", show_default="any")
]
JsonList = Annotated[bool, typer.Option("--json", help="All of it as JSON: a list, one object a dataset.")]
AsJson = Annotated[bool, typer.Option("--json", help="All of it as JSON.")]
AllowRemoval = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT|NUMBER",
        help="Let a build of scanned samples remove so much of the last version: 25%, 100%, or a number of samples.",
        show_default="10%, or 50% of fewer than 20",
    ),
]
AllowChangedSource = Annotated[
    bool, typer.Option("--allow-changed-source", help="Let the input folder and the suffixes be others than before.")
]
MissingGroupsOption = Annotated[
    MissingGroups | None,
    typer.Option(
        help="What to do with a dataset in DEST that is no group of --split and holds samples of the groups: "
        "[bold]drop[/] makes its next version empty, [bold]keep[/] leaves it.",
        show_default="refuse to build",
    ),
]
Keep = Annotated[int, typer.Option(min=1, help="Keep the last so many versions; held ones stay too.")]
OlderThan = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Keep what was the last version less than so long ago, and what unfinished builds stored since then: "
        "30m, 36h, 7d, or 0.",
    ),
]


@app.command()
def build(
    source: Source,
    destination: Destination,
    *,
    suffix: SuffixList,
    optional_suffix: OptionalSuffixList = None,
    prefix: Prefix = "wdshards",
    shards: NumShards = None,
    shuffle_seed: ShuffleSeed = None,
    names: NamesFile = None,
    split: Split = None,
    seed: Seed = 0,
    encode: EncodeList = None,
    allow: AllowList = None,
    allow_pickle: AllowPickle = False,
    checksum: Checksum = False,
    on_error: OnErrorOption = OnError.FAIL,
    max_bad: MaxBad = "1%",
    allow_removal: AllowRemoval = None,
    allow_changed_source: AllowChangedSource = False,
    missing_groups: MissingGroupsOption = None,
    keep: Keep = 2,
    older_than: OlderThan = "1d",
    address: Address = None,
    storage_option: StorageOptionList = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the report.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The report as JSON: a list, one object a dataset that was made.")
    ] = False,
) -> None:
    r"""Pack files into shards; a rerun packs only what is missing.

    A sample is its name and one file a suffix: [bold]a7.image.pyd[/] and [bold]a7.label.cls[/] are the sample a7.

    [bold]Examples[/]

    Every *.tensor.pyd in a folder, on the cores of this machine:

    [cyan]dray build pickles/ shards/ --suffix tensor.pyd --address local[/]

    Two parts a sample, split three ways, from and to S3:

    [cyan]dray build s3://lab/raw s3://lab/digits --suffix image.pyd --suffix label.cls \
      --split train=0.9,val=0.05,test=0.05 --shards 8[/]

    Tensors as `.npy`, which no reader has to unpickle:

    [cyan]dray build pickles/ shards/ --suffix tensor.pyd --encode tensor.pyd=npy[/]

    The samples that another program lists:

    [cyan]list-samples | dray build pickles/ shards/ --suffix tensor.pyd --names -[/]

    As a job on a Ray cluster:

    [cyan]ray job submit --address http://head:8265 -- dray build s3://lab/raw s3://lab/digits --suffix tensor.pyd[/]
    """
    from dray.cluster.cli.build import (
        Wanted,
        build_datasets,
        cluster_address,
        parse_duration,
        parse_encode,
        parse_fractions,
        parse_storage_options,
        print_reports,
    )

    wanted = Wanted(
        source=source,
        destination=destination,
        prefix=prefix,
        suffixes=suffix,
        optional_suffixes=optional_suffix or (),
        num_shards=shards,
        shuffle_seed=shuffle_seed,
        names_file=names,
        fractions=parse_fractions(split) if split else None,
        split_seed=seed,
        encode=parse_encode(encode),
        allow=allow or (),
        allow_pickle=allow_pickle,
        checksum=checksum,
        on_error=on_error.value,
        max_bad=max_bad,
        allow_removal=allow_removal,
        allow_changed_source=allow_changed_source,
        missing_groups=missing_groups.value if missing_groups else None,
        storage_options=parse_storage_options(storage_option),
    )
    reports = build_datasets(
        wanted, keep=keep, grace_s=parse_duration(older_than), address=cluster_address(address), progress=not quiet
    )
    print_reports(reports, as_json=as_json)


@app.command()
def plan(
    source: Source,
    destination: Destination,
    *,
    suffix: SuffixList,
    optional_suffix: OptionalSuffixList = None,
    prefix: Prefix = "wdshards",
    shards: NumShards = None,
    shuffle_seed: ShuffleSeed = None,
    names: NamesFile = None,
    split: Split = None,
    seed: Seed = 0,
    encode: EncodeList = None,
    allow: AllowList = None,
    allow_pickle: AllowPickle = False,
    checksum: Checksum = False,
    on_error: OnErrorOption = OnError.FAIL,
    max_bad: MaxBad = "1%",
    allow_removal: AllowRemoval = None,
    allow_changed_source: AllowChangedSource = False,
    missing_groups: MissingGroupsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON: a list, one object a dataset.")] = False,
    storage_option: StorageOptionList = None,
) -> None:
    """Show what `dray build` with the same words would do, and why; nothing is written.

    [bold]Examples[/]

    [cyan]dray plan pickles/ shards/ --suffix tensor.pyd[/]

    [cyan]dray plan s3://lab/raw s3://lab/digits --suffix image.pyd --split train=0.9,val=0.1 --json[/]
    """
    from dray.cluster.cli.build import Wanted, parse_encode, parse_fractions, parse_storage_options, survey_datasets
    from dray.cluster.cli.plan import print_plans

    wanted = Wanted(
        source=source,
        destination=destination,
        prefix=prefix,
        suffixes=suffix,
        optional_suffixes=optional_suffix or (),
        num_shards=shards,
        shuffle_seed=shuffle_seed,
        names_file=names,
        fractions=parse_fractions(split) if split else None,
        split_seed=seed,
        encode=parse_encode(encode),
        allow=allow or (),
        allow_pickle=allow_pickle,
        checksum=checksum,
        on_error=on_error.value,
        max_bad=max_bad,
        allow_removal=allow_removal,
        allow_changed_source=allow_changed_source,
        missing_groups=missing_groups.value if missing_groups else None,
        storage_options=parse_storage_options(storage_option),
    )
    print_plans(survey_datasets(wanted), as_json=as_json)


@app.command()
def ls(
    url: Url,
    *,
    prefix: DatasetPrefix = None,
    version: Version = None,
    urls: Annotated[
        bool, typer.Option("--urls", help="Only the tars' URLs, one a line; as one pattern on stderr.")
    ] = False,
    as_json: JsonList = False,
    all_shards: Annotated[bool, typer.Option("--all", help="Every shard in the table, not the first 20.")] = False,
    left_out: Annotated[bool, typer.Option("--left-out", help="Only the inputs that are left out, and why.")] = False,
    storage_option: StorageOptionList = None,
) -> None:
    """Show the datasets in a folder: version, size, parts, shards.

    [bold]Examples[/]

    [cyan]dray ls dray-quickstart/shards/train[/]

    [cyan]dray ls s3://lab/digits/train --prefix wdshards --version 3 --all[/]

    The tars for another WebDataset reader:

    [cyan]dray ls s3://lab/digits/train --urls > tars.txt[/]

    Which inputs a build with --on-error skip left out:

    [cyan]dray ls s3://lab/digits/train --left-out[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.left_out import list_left_out
    from dray.cluster.cli.ls import list_datasets

    options = parse_storage_options(storage_option)
    if left_out:
        list_left_out(url, prefix=prefix, version=version, as_json=as_json, storage_options=options)
        return
    list_datasets(
        url,
        prefix=prefix,
        version=version,
        form="urls" if urls else "json" if as_json else "all" if all_shards else "table",
        storage_options=options,
    )


@app.command()
def verify(
    url: Url,
    *,
    prefix: DatasetPrefix = None,
    version: Version = None,
    level: Annotated[
        Level,
        typer.Option(
            help="[bold]quick[/]: is all there? [bold]index[/]: is every part where its index says? "
            "[bold]full[/]: every byte, by checksum."
        ),
    ] = Level.INDEX,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="If something is wrong, write the names of all samples there, in order, for `dray build --names`.",
        ),
    ] = None,
    as_json: JsonList = False,
    storage_option: StorageOptionList = None,
) -> None:
    r"""Prove that a dataset is whole, or name what is wrong and how to mend it; exit code 1 then.

    Nothing is written to the dataset. Shards that dray did not write are not looked at.

    [bold]Examples[/]

    [cyan]dray verify dray-quickstart/shards/train[/]

    Every byte of an older version:

    [cyan]dray verify s3://lab/digits/train --version 3 --level full[/]

    One group of a split, with what a rebuild of it needs:

    [cyan]dray verify shards/train --level full --names train.txt[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.verify import verify_datasets

    whole = verify_datasets(
        url,
        prefix=prefix,
        version=version,
        level=level.value,
        as_json=as_json,
        names_file=names,
        storage_options=parse_storage_options(storage_option),
    )
    if not whole:
        raise typer.Exit(1)


@app.command()
def show(
    url: Url,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The sample's name, its dots replaced by dashes.")],
    *,
    prefix: DatasetPrefix = None,
    version: Version = None,
    allow: AllowList = None,
    allow_pickle: AllowPickle = False,
    storage_option: StorageOptionList = None,
) -> None:
    """Show one sample: its shard, and where each part lies and what it holds.

    Parts are decoded safely: a pickle that names anything outside the safe list is refused, and the reason shown.

    [bold]Examples[/]

    [cyan]dray show dray-quickstart/shards/train digit-0042[/]

    As it was in version 3:

    [cyan]dray show s3://lab/digits/train a7 --version 3[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.show import show_sample

    show_sample(
        url,
        key,
        prefix=prefix,
        version=version,
        allow=allow or (),
        allow_pickle=allow_pickle,
        storage_options=parse_storage_options(storage_option),
    )


@app.command()
def log(
    url: Url,
    *,
    prefix: DatasetPrefix = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: a list, the newest first.")] = False,
    storage_option: StorageOptionList = None,
) -> None:
    """Show what was done to a dataset, the newest first, and what became of each version.

    A version is the [bold]last[/], [bold]kept[/], [bold]held as NAME[/], or [bold]dropped[/]. Holds, releases and gcs
    have numbers as well, and make no version.

    [bold]Examples[/]

    [cyan]dray log shards/train[/]

    [cyan]dray log s3://lab/digits/train --json[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.log import print_log

    print_log(url, prefix=prefix, as_json=as_json, storage_options=parse_storage_options(storage_option))


@app.command()
def diff(
    url: Url,
    a: Annotated[str, typer.Argument(metavar="A", help="A version: a number, or the name of a hold.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="Another one.", show_default="the last")] = None,
    *,
    prefix: DatasetPrefix = None,
    all_keys: Annotated[
        bool, typer.Option("--all", help="Every key and shard, not the first 20 of each kind.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as one JSON object.")] = False,
    storage_option: StorageOptionList = None,
) -> None:
    """Show what differs between two versions: samples, shards, recipe, sources.

    Samples are compared by the content of their files: + was added, - removed, ~ changed. No shard is read.

    [bold]Examples[/]

    What the versions since 3 changed:

    [cyan]dray diff shards/train 3[/]

    [cyan]dray diff s3://lab/digits/train paper 7 --all[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.diff import print_diff

    print_diff(
        url,
        a,
        b,
        prefix=prefix,
        all_keys=all_keys,
        as_json=as_json,
        storage_options=parse_storage_options(storage_option),
    )


@app.command()
def hold(
    url: Url,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A letter, then letters, digits, '_', '.' and '-'.")],
    *,
    prefix: DatasetPrefix = None,
    version: Annotated[
        str | None, typer.Option(help="This version: a number, or the name of another hold.", show_default="the last")
    ] = None,
    storage_option: StorageOptionList = None,
) -> None:
    """Keep a version under a name, whatever is built and cleaned up later.

    Wherever a version is asked for, the name serves as well as the number.

    [bold]Examples[/]

    [cyan]dray hold shards/train paper[/]

    [cyan]dray hold s3://lab/digits/train baseline --version 3[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.versions import hold_version

    hold_version(url, name, prefix=prefix, version=version, storage_options=parse_storage_options(storage_option))


@app.command()
def release(
    url: Url,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the hold; `dray log` shows them.")],
    *,
    prefix: DatasetPrefix = None,
    storage_option: StorageOptionList = None,
) -> None:
    """Give up a hold: its version is dropped where no rule keeps it, and the next gc deletes it.

    [bold]Examples[/]

    [cyan]dray release shards/train paper[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.versions import release_version

    release_version(url, name, prefix=prefix, storage_options=parse_storage_options(storage_option))


@app.command()
def rollback(
    url: Url,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A number, or the name of a hold.")],
    *,
    prefix: DatasetPrefix = None,
    storage_option: StorageOptionList = None,
) -> None:
    """Make a new version that is equal to an old one; nothing is copied and nothing deleted.

    The versions between stay what they are. The next build from the same sources redoes what the rollback undid.

    [bold]Examples[/]

    [cyan]dray rollback shards/train 3[/]

    [cyan]dray rollback s3://lab/digits/train paper[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.versions import roll_back

    roll_back(url, version, prefix=prefix, storage_options=parse_storage_options(storage_option))


@app.command()
def gc(
    url: Url,
    *,
    prefix: DatasetPrefix = None,
    keep: Keep = 2,
    older_than: OlderThan = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    as_json: JsonList = False,
    storage_option: StorageOptionList = None,
) -> None:
    """Drop old versions, and delete what no version that is kept names: every build does the same at its end.

    Never deleted: the last version, versions held by a name, files that dray did not write.

    [bold]Examples[/]

    [cyan]dray gc shards/train --dry-run[/]

    Keep the last version alone; no trainer reads an older one, and no build runs:

    [cyan]dray gc s3://lab/digits/train --keep 1 --older-than 0[/]
    """
    from dray.cluster.cli.build import parse_duration, parse_storage_options
    from dray.cluster.cli.versions import collect_garbage

    collect_garbage(
        url,
        prefix=prefix,
        keep=keep,
        grace_s=parse_duration(older_than),
        dry_run=dry_run,
        as_json=as_json,
        storage_options=parse_storage_options(storage_option),
    )


@app.command()
def compact(
    url: Url,
    *,
    prefix: DatasetPrefix = None,
    keep: Keep = 2,
    older_than: OlderThan = "1d",
    address: Address = None,
    storage_option: StorageOptionList = None,
) -> None:
    """Merge the small shards that many builds left: a new version of the same samples in fewer tars.

    No source is read. The samples of merged shards move to the place of the first of them.

    [bold]Examples[/]

    [cyan]dray compact shards/train[/]

    [cyan]dray compact s3://lab/digits/train --address local[/]
    """
    from dray.cluster.cli.build import cluster_address, parse_duration, parse_storage_options
    from dray.cluster.cli.versions import compact_shards

    compact_shards(
        url,
        prefix=prefix,
        keep=keep,
        grace_s=parse_duration(older_than),
        address=cluster_address(address),
        storage_options=parse_storage_options(storage_option),
    )


@app.command()
def loadtest(
    url: Url,
    *,
    prefix: DatasetPrefix = None,
    version: Version = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="SUFFIX", help="Read this part; repeat it for more.", show_default="all"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step of one rank.")] = 32,
    ranks: Annotated[int, typer.Option(min=1, help="Training processes to stand for.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps to take, at most an epoch.")] = 100,
    workers: Annotated[
        int, typer.Option(min=0, help="Loader processes of each rank; what these read is not counted.")
    ] = 0,
    shuffle: Annotated[bool, typer.Option(help="In a shuffled order, as for training.")] = True,
    stack: Annotated[bool, typer.Option(help="Stack each part to one tensor; else its values are listed.")] = True,
    allow: AllowList = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    storage_option: StorageOptionList = None,
) -> None:
    """Read a dataset as training would, without training: throughput, first batch, requests, shuffle quality.

    All ranks run in this process, one after the other in each step: it is what this machine's cores and network give.

    [bold]What it tells[/]

    [bold]throughput[/]: training that takes more samples a second than this will wait for its data.

    [bold]slowest step[/]: where it is far over the mean, the store or this machine stalls now and then.

    [bold]first batch[/]: what each start and each resume costs: opening the dataset, indexes, the first blocks.

    [bold]read[/]: bytes fetched from object storage for each byte wanted; over 1.1: small samples, or parts left out.

    [bold]shuffle[/]: shards in a global batch, beside what a draw at random gives; more samples a step bring more.

    [bold]Examples[/]

    [cyan]dray loadtest dray-quickstart/shards/train --batch-size 8 --ranks 4[/]

    [cyan]dray loadtest s3://lab/digits/train --batch-size 64 --ranks 8 --steps 200 --json[/]
    """
    from dray.cluster.cli.build import parse_storage_options
    from dray.cluster.cli.loadtest import load_test, print_result

    found = load_test(
        url,
        prefix=prefix,
        version=version,
        parts=part,
        batch_size=batch_size,
        num_ranks=ranks,
        num_steps=steps,
        num_workers=workers,
        shuffle=shuffle,
        stack=stack,
        allow=allow or (),
        allow_pickle=allow_pickle,
        storage_options=parse_storage_options(storage_option),
    )
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        print_result(found)


@app.command()
def quickstart(
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Made if missing; it stays until you remove it.")
    ] = Path("dray-quickstart"),
    store: Annotated[
        StoreKind, typer.Option(help="[bold]s3[/]: all files go to an S3 server that runs here meanwhile.")
    ] = StoreKind.disk,
) -> None:
    r"""Pack 1,797 handwritten digits, train on them, pack again: what dray does, in under a minute.

    Needs [bold]pip install 'dray\[quickstart]'[/], and nothing from the network.

    [bold]Examples[/]

    [cyan]dray quickstart[/]

    The same on object storage:

    [cyan]dray quickstart --dir /tmp/digits --store s3[/]
    """
    from dray.cluster.quickstart.quickstart import run_quickstart

    run_quickstart(directory, store.value)
