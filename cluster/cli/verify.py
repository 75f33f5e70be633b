"""`dray verify`: print the damage of a version and how to repair it.

A build packs what is missing and never overwrites. So a damaged shard and its index are deleted by hand before a build
repairs the dataset. Tars that dray did not write are never among what is to be deleted: they may be the only copy.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from dray.cluster.cli.exits import ExitCode
from dray.cluster.cli.ls import parts_of
from dray.cluster.cli.options import AsJson, DataOptions, VersionOptions
from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.progress import shard_progress
from dray.shards import CallError, Snapshot
from dray.shards.layout import Location
from dray.shards.manifest import Kind
from dray.shards.messages import counted
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import local_path
from dray.shards.verify import Finding, Level, open_whole
from dray.shards.verify import verify as findings_of
from dray.shards.versions import read_version

MAX_FINDINGS = 5  # printed per object
_SHOWN_OPTIONS = ("endpoint", "region")  # of the storage options, in a printed command: the others may be secret


def verify(
    dataset: VersionOptions,
    data: DataOptions,
    *,
    level: Annotated[
        Level,
        typer.Option(
            help="[bold]quick[/]: all objects exist. [bold]index[/]: every part is where its index says. "
            "[bold]full[/]: every byte matches its checksum."
        ),
    ] = Level.INDEX,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="If there is damage, write the names of all samples, in order, for `dray build --names`.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    r"""Check that a dataset is intact; report all damage and how to repair it.

    The exit code is 1 if there is damage. The dataset is only read.

    [bold]Examples[/]

    [cyan]dray verify dray-quickstart/shards/train[/]

    Every byte of an older version:

    [cyan]dray verify s3://lab/digits/train --version 3 --level full[/]

    One group of a split, with the file of names that its rebuild needs:

    [cyan]dray verify shards/train --level full --names train.txt[/]
    """
    if names is None:
        found = dataset.find_all()
    else:
        found = [dataset.find_one("verify", "--level", level, "--names", str(names))]
    reports: list[Report] = []
    for one in found:
        reports.append(_verify(data.at(one), dataset, level, names))
        if not as_json:
            _print_report(reports[-1])
    if as_json:
        typer.echo(json.dumps([_facts(report) for report in reports], indent=1))
    if any(report.findings for report in reports):
        raise typer.Exit(ExitCode.BAD_DATA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The damage of one version, and how to repair it.

    Attributes:
        dataset: The dataset.
        pinned: The version asked for; None for the last.
        level: How thorough the check was.
        findings: All damage.
        snapshot: The version; None if its own records are damaged.
        delete: Paths or URLs to delete before that: damaged tars that dray wrote, and indexes, as far as they exist.
        rebuild: Command line to run after that; None if the dataset was made by a program.
    """

    dataset: Location
    pinned: int | str | None
    level: str
    findings: Sequence[Finding]
    snapshot: Snapshot | None = None
    delete: Sequence[str] = ()
    rebuild: str | None = None

    @property
    def version(self) -> int | str:
        """Number of the version; what was asked for if its records are damaged."""
        return self.snapshot.version if self.snapshot else self.pinned or "the last"

    @property
    def is_last(self) -> bool:
        """Whether this is the last version."""
        return self.pinned is None or self.version == read_version(self.dataset).version


def _verify(found: Location, options: VersionOptions, level: str, names_file: Path | None) -> Report:
    """Returns the report on one version; writes the names of its samples to the file if a build needs them."""
    opened = open_whole(found, options.pinned)
    if isinstance(opened, Finding):
        return Report(dataset=found, pinned=options.pinned, level=level, findings=[opened])
    findings = _findings(opened, level)
    report = Report(dataset=found, pinned=options.pinned, level=level, findings=findings, snapshot=opened)
    if not findings:
        return report
    if names_file and _is_repairable(findings):
        names_file.write_text("".join(f"{name}\n" for name in names_in_order(opened)), encoding="utf-8")
    rebuild = rebuild_command(opened, findings, names_file, options.storage_options)
    return replace(report, delete=names_to_delete(opened, findings), rebuild=rebuild)


def _findings(snapshot: Snapshot, level: str) -> list[Finding]:
    title, num_shards = f"verifying {snapshot.layout.prefix}", len(snapshot.shards)
    with shard_progress(title, num_shards=num_shards, show=level != Level.QUICK) as advance:
        return list(findings_of(snapshot, level, on_shard=advance))


# ---- how to repair ----


def _is_repairable(findings: Sequence[Finding]) -> bool:
    """Whether a build can pack only what is damaged: it starts from the records of the last version."""
    return all(finding.shard is not None for finding in findings)


def names_to_delete(snapshot: Snapshot, findings: Sequence[Finding]) -> list[str]:
    """Returns the paths or URLs of what is damaged and made again once it is gone, as far as it exists.

    A build makes shards and their indexes, an index only indexes; what a program wrote is not made again.
    """
    if snapshot.manifest.kind == Kind.WRITTEN or not _is_repairable(findings):
        return []
    store, layout = snapshot.store, snapshot.layout
    numbers = sorted({finding.shard for finding in findings if finding.shard is not None})
    if snapshot.tars.is_foreign:
        damaged = {finding.url for finding in findings}
        names = [name for name in map(layout.index, numbers) if store.url_of(name) in damaged]
    else:
        names = [name for number in numbers for name in (layout.shard(number), layout.index(number))]
    urls = [store.url_of(name) for name in names if store.head(name)]
    return [local_path(url) or url for url in urls]


def names_in_order(snapshot: Snapshot) -> list[str]:
    """Returns the names of all samples in the order of packing, which makes a rebuild equal."""
    if snapshot.manifest.kind != Kind.BUILD or snapshot.manifest.samples is not None:
        raise CallError(f"names=: {snapshot.name} was not packed from one source a sample, so it has no list of names")
    table = snapshot.sources()
    shard_positions = {shard.number: position for position, shard in enumerate(snapshot.shards)}
    shards, rows = (table[column].to_pylist() for column in ("shard", "row"))
    order = sorted(range(len(table)), key=lambda entry: (shard_positions[shards[entry]], rows[entry]))
    names = table["name"].to_pylist()
    return [names[entry] for entry in order]


def rebuild_command(
    snapshot: Snapshot, findings: Sequence[Finding], names_file: Path | None, storage_options: StorageOptions
) -> str | None:
    """Returns the command line that repairs the dataset; None if it was made by a program."""
    if snapshot.tars.is_foreign:
        damaged = "" if _is_repairable(findings) else "repaired-"
        return snapshot.tars.index_command(f"{damaged}{snapshot.layout.prefix}")
    recipe, prefix, counts = snapshot.manifest.recipe, snapshot.layout.prefix, snapshot.manifest.accounting
    if snapshot.manifest.kind != Kind.BUILD or recipe["transform"] is not None:
        return None
    words = ["dray", "build", snapshot.manifest.source_url, snapshot.store.url]
    words += ["--prefix", prefix if _is_repairable(findings) else f"repaired-{prefix}"]
    words += _suffix_words(snapshot)
    if recipe["num_shards"] is not None:
        words += ["--shards", str(recipe["num_shards"])]
    if recipe["shuffle_seed"] is not None:
        words += ["--shuffle-seed", str(recipe["shuffle_seed"])]
    words += _encode_words(recipe)
    if names_file is not None and _is_repairable(findings):
        words += ["--names", str(names_file)]
    elif counts.inputs > counts.packed:  # a file of names lists only packed samples
        on_error = "skip" if counts.skipped else "quarantine"
        words += ["--on-error", on_error, "--max-bad", str(counts.inputs - counts.packed)]
    for name in _SHOWN_OPTIONS:
        if name in storage_options and "@" not in storage_options[name]:
            words += ["--storage-option", f"{name}={storage_options[name]}"]
    return shlex.join(words)


def _suffix_words(snapshot: Snapshot) -> list[str]:
    """Returns the options for the suffixes, in order; from the first that a sample lacks, all are optional."""
    recipe, parts = snapshot.manifest.recipe, parts_of(snapshot)
    encoder = Encoder.from_json(recipe)
    words, option = [], "--suffix"
    for suffix in recipe["suffixes"]:
        outputs = encoder.outputs(suffix) if encoder else (suffix,)
        if sum(parts.get(name, 0) for name in outputs) < snapshot.num_samples:
            option = "--optional-suffix"
        words += [option, suffix]
    return words


def _encode_words(recipe: Mapping[str, Any]) -> list[str]:
    """Returns the options for the encoding of the parts."""
    encode = recipe.get("encode", {})
    values = [encode] if isinstance(encode, str) else [f"{suffix}={target}" for suffix, target in encode.items()]
    words = [word for value in values for word in ("--encode", value)]
    words += [word for name in recipe.get("allow", ()) for word in ("--allow", name)]
    return [*words, "--allow-pickle"] if recipe.get("allow_pickle") else words


# ---- what is printed ----


def _facts(report: Report) -> dict[str, Any]:
    return {
        "url": report.dataset.store.url,
        "prefix": report.dataset.layout.prefix,
        "version": report.version,
        "level": report.level,
        "findings": [asdict(finding) for finding in report.findings],
        "delete": list(report.delete),
        "rebuild": report.rebuild,
    }


def _print_report(report: Report) -> None:
    _print_findings(report.findings)
    typer.echo(_summary(report))
    for line in _advice(report):
        typer.echo(line)


def _print_findings(findings: Iterable[Finding]) -> None:
    """Print the first few findings per object: one damaged header may affect a thousand samples."""
    for url, group in groupby(findings, lambda finding: finding.url):
        found = list(group)
        for finding in found[:MAX_FINDINGS]:
            typer.echo(str(finding))
        if (more := len(found) - MAX_FINDINGS) > 0:
            typer.echo(f"{url}: {more:,} more like these")


def _summary(report: Report) -> str:
    text, snapshot, findings = f"{report.dataset} version {report.version}", report.snapshot, report.findings
    if snapshot is not None:
        text += f": {counted(snapshot.num_samples, 'sample')} in {counted(len(snapshot.shards), 'shard')}"
    if not findings:
        return f"{text}, no damage found at level {report.level}"
    damaged = len({finding.shard for finding in findings if finding.shard is not None})
    return f"{text}, {counted(len(findings), 'finding')} in {counted(damaged, 'shard')} at level {report.level}"


def _advice(report: Report) -> Iterator[str]:
    """Yields the lines that say what to do."""
    if not report.findings:
        return
    yield ""
    snapshot = report.snapshot
    if snapshot is None:
        yield "The version's own record is damaged, and no build can start from it. Build again under another prefix:"
        yield "dray build SRC DEST --prefix OTHER --suffix SUFFIX"
        yield "or, if it indexed tars of other programs, dray index URL --prefix OTHER"
        return
    yield from _first_steps(report, snapshot)
    if report.rebuild is None:
        version = snapshot.manifest.recipe.get("transform")
        yield f"Run the program that made it{f', with transform_version={version!r}' if version else ''}."
    else:
        yield f"  {report.rebuild}"
        if " build " in report.rebuild and " --names " not in report.rebuild:
            yield "This packs all samples of the source. If the dataset was made from a part of them (--names, --split)"
            yield "or in another order, run `dray verify` with --names FILE first, and build with the same option."
    if not report.is_last and snapshot.manifest.kind == Kind.BUILD:
        yield "This is not the last version: a build repairs only the shards that the last version has as well."


def _first_steps(report: Report, snapshot: Snapshot) -> Iterator[str]:
    """Yields the lines before the command that rebuilds."""
    log = f"dray log {snapshot.store.url}"
    if not _is_repairable(report.findings):
        again = "index the tars" if snapshot.tars.is_foreign else "build again"
        yield "A record of the version is damaged, and no build can start from it. Go back to an intact version with"
        yield f"dray rollback ({log} lists them), or {again} under another prefix:"
    elif snapshot.tars.is_foreign:
        yield "dray did not write these tars and only reads them; they may be your only copy. Put back what is missing"
        yield "or damaged from where it came, or make a version of the tars as they are now:"
        if report.delete:
            yield "(delete these damaged indexes first, so that they are made again)"
            yield from (f"  {name}" for name in report.delete)
    elif snapshot.manifest.kind == Kind.WRITTEN:
        yield f"To repair it, go back to an intact version with dray rollback ({log} lists them), or make a new one:"
    elif report.delete:
        yield f"To repair it, if the samples are still in {snapshot.manifest.source_url}: delete these files, or move"
        yield "them to another folder, because dray never overwrites"
        yield from (f"  {name}" for name in report.delete)
        yield "and build again; intact shards are kept:"
    else:
        yield "To repair it, build again; intact shards are kept:"
