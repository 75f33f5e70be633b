"""What `dray build` does: read the names, deal them to groups, and make each group a dataset on one cluster."""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from dray.cluster.cli.groups import Leak, layout_refusal, leak_refusal, leaks, moved_between
from dray.pipelines import BuildReport, split_by_hash
from dray.pipelines.building.build import build, survey
from dray.pipelines.building.drop import drop_samples
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.survey import BuildSpec, Work
from dray.pipelines.inputs.encoder import Encode, Encoder
from dray.pipelines.inputs.scan import scan
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.changes import Guard
from dray.pipelines.planning.plan import Recipe
from dray.pipelines.progress import WORDS, say
from dray.pipelines.running.ray_session import check_address, ray_session
from dray.pipelines.versions.retention import Retention
from dray.shards import CallError, Store
from dray.shards.layout import Layout, check_suffixes
from dray.shards.parts import AUTO
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import check_apart, check_distinct, normal_url

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DROP = "drop"  # what to do with missing groups
GROUP_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # it becomes a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `dray build` and `dray plan` are asked for."""

    source: str
    destination: str
    prefix: str
    suffixes: Sequence[str]
    optional_suffixes: Sequence[str]
    num_shards: int | None
    shuffle_seed: int | None
    names_file: str | None
    fractions: Mapping[str, float] | None  # of a split; None: one dataset
    split_seed: int
    encode: Encode | None
    allow: Sequence[str]
    allow_pickle: bool
    checksum: bool
    on_error: str
    max_bad: str
    allow_removal: str | None  # see Guard
    allow_changed_source: bool
    missing_groups: str | None  # "keep" or "drop" datasets beside a split's groups that share samples; None: refuse
    storage_options: StorageOptions

    def specs(self, *, address: str | None = None, progress: bool = True) -> list[BuildSpec]:
        """What to build: one dataset in the destination, or one in a folder of it for each group of a split.

        Raises:
            CallError: A folder is the source or lies inside it; or a split and a dataset that is none would share one.
        """
        guard = Guard(allow_removal=self.allow_removal, allow_changed_source=self.allow_changed_source)
        tolerance = Tolerance(on_error=self.on_error, max_bad=self.max_bad)
        required, optional = check_suffixes(self.suffixes), tuple(self.optional_suffixes)
        suffixes = check_suffixes((*required, *optional))
        encoder = Encoder.of(self.encode, suffixes, allow=self.allow, allow_pickle=self.allow_pickle)
        recipe = Recipe(
            suffixes=suffixes,
            num_shards=self.num_shards,
            shuffle_seed=self.shuffle_seed,
            encoder=encoder,
            leaves_out_bad=tolerance.leaves_out,
            recursive=self.names_file is None,
        )
        inputs = Store(self.source, self.storage_options)
        check_apart(inputs.url, normal_url(self.destination))
        target, options = Store(self.destination, self.storage_options), self.storage_options
        if refusal := layout_refusal(target, Layout(self.prefix), options, is_split=self.fractions is not None):
            raise CallError(refusal)
        found = scan(inputs, suffixes) if self.names_file is None else None
        if found and found.unscanned:
            say(f"left out of the scan of {inputs.url}: {found.unscanned}", show=progress)
        names = found.names if found else read_names(self.names_file or "")
        bad = {entry.name: entry for entry in (found.unusable if found else ())}
        groups = group_folders(self.destination, [*names, *bad], self.fractions, self.split_seed)
        for folder in groups:
            check_apart(inputs.url, normal_url(folder))
        check_distinct(map(normal_url, groups))
        return [
            BuildSpec(
                job=PackJob(
                    inputs=inputs,
                    output=Store(folder, self.storage_options),
                    layout=Layout(self.prefix),
                    transform=None,
                    encoder=encoder,
                    leaves_out_bad=tolerance.leaves_out,
                ),
                recipe=recipe,
                names=[name for name in members if name not in bad],
                unusable=tuple(bad[name] for name in members if name in bad),
                optional=optional,
                scan=found,
                guard=guard if found else None,
                tolerance=tolerance,
                checksum=self.checksum,
                address=address,
                progress=progress,
            )
            for folder, members in groups.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What builds of one or several datasets would do.

    Attributes:
        specs: What each is built from.
        works: What each build would do, in the same order.
        moves: Samples that move between the groups of a split, in words; empty where none does.
        leaks: Datasets beside the groups of a split that hold samples of theirs.
        refusals: Why the builds are refused, all of them; empty where they are not.
    """

    specs: Sequence[BuildSpec]
    works: Sequence[Work]
    moves: str
    leaks: Sequence[Leak]
    refusals: Sequence[str]


def survey_datasets(wanted: Wanted, *, address: str | None = None, progress: bool = True) -> Survey:
    """Find out what the builds of all datasets would do, before any of them writes.

    Raises:
        CallError: See `Wanted.specs`; or groups are to be kept or dropped where there is no split.
    """
    if wanted.missing_groups is not None and wanted.fractions is None:
        raise CallError("--missing-groups is about the groups of a split: give --split as well")
    specs = wanted.specs(address=address, progress=progress)
    works = [survey(spec) for spec in specs]
    moves, found = "", list[Leak]()
    if wanted.fractions is not None:
        groups = [spec.job.output.url.rpartition("/")[2] for spec in specs]
        moves = moved_between(dict(zip(groups, works, strict=True)))
        found = list(leaks(Store(wanted.destination, wanted.storage_options), wanted.storage_options, specs, works))
    if moves:
        say(f"samples move between the groups of the split: {moves}; did --split or --seed change?", show=progress)
    refusals = [work.refusal for work in works if work.refusal]
    if wanted.missing_groups is None:
        refusals += map(leak_refusal, found)
    return Survey(specs=specs, works=works, moves=moves, leaks=found, refusals=refusals)


def build_datasets(
    wanted: Wanted, *, keep: int | None, grace_s: float, address: str | None, progress: bool
) -> Iterator[BuildReport]:
    """Make a dataset in the destination, or one in a folder of it for each group of a split; a report for each.

    All are planned and judged before the first is written. Each is atomic for itself; an error leaves those before it
    done, and a rerun goes on from there.

    Raises:
        CallError: One of them is refused; nothing was written.
    """
    retention = None if keep is None else Retention(keep=keep, grace_s=grace_s)
    with ray_session(address if wanted.fractions else None):  # one build connects by itself, and only if it has work
        found = survey_datasets(wanted, address=address, progress=progress)
        if found.refusals:
            raise CallError("; ".join(found.refusals))
        for spec, work in zip(found.specs, found.works, strict=True):
            yield build(spec, retention=retention, surveyed=work)
        for leak in found.leaks if wanted.missing_groups == DROP else ():
            yield drop_samples(leak.dataset.store, leak.dataset.layout, retention=retention, progress=progress)


def print_reports(reports: Iterator[BuildReport], *, as_json: bool) -> None:
    """Print each report when its dataset is made; as JSON all together, also those made before an error."""
    made: list[dict[str, Any]] = []
    try:
        for report in reports:
            made.append(asdict(report))
            if not as_json:
                typer.echo(WORDS.get()(str(report)))
    finally:
        if as_json:
            typer.echo(json.dumps(made, indent=1))


def read_names(names_file: str) -> list[str]:
    """The names in a file, one a line; `-` is standard input. A byte order mark and blank lines count for nothing.

    Raises:
        CallError: It is not UTF-8 text.
    """
    try:
        text = sys.stdin.read() if names_file == "-" else Path(names_file).read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise CallError(f"--names {names_file}: expected UTF-8 text, one name a line ({exc})") from exc
    lines = (line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))
    return [line for line in lines if line.strip()]


def parse_fractions(text: str) -> dict[str, float]:
    """`train=0.9,val=0.1` as {"train": 0.9, "val": 0.1}.

    Raises:
        CallError: It is not of that form, or a group has no name that a folder may have.
    """
    groups: dict[str, float] = {}
    for pair in text.split(","):
        name, _, share = pair.strip().partition("=")
        if not GROUP_NAME.fullmatch(name) or not re.fullmatch(r"\d*\.?\d+", share) or name in groups:
            raise CallError(f"--split {text}: expected train=0.9,val=0.1 with each group once, found {pair.strip()!r}")
        groups[name] = float(share)
    return groups


def parse_encode(words: list[str] | None) -> Encode | None:
    """`["tensor.pyd=npy"]` as {"tensor.pyd": "npy"}, `["auto"]` as "auto".

    Raises:
        CallError: One is not of that form, or of a suffix that has one already.
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


def parse_duration(text: str) -> float:
    """`36h` in seconds.

    Raises:
        CallError: It is not of that form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])|0", text.strip())
    if found is None:
        raise CallError(f"--older-than {text!r}: expected a time such as 90s, 30m, 36h, 7d or 2w")
    return float(found[1]) * _SECONDS[found[2]] if found[1] else 0.0


def parse_storage_options(pairs: list[str] | None) -> dict[str, str]:
    """`["region=eu-west-1"]` as {"region": "eu-west-1"}.

    Raises:
        CallError: One has no `=`; what follows it is never quoted, for it may be a secret.
    """
    options: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, options[name] = pair.partition("=")
        if not name or not equals:
            raise CallError("--storage-option: expected KEY=VALUE, such as region=eu-west-1")
    return options


def cluster_address(address: str | None) -> str | None:
    """The address given, once it answers; else RAY_ADDRESS, by which `ray job submit` tells a job its cluster.

    Raises:
        CallError: It is a dashboard's.
        ClusterError: Nothing answers there.
    """
    if address is not None:
        check_address(address)
        return address
    found = os.environ.get("RAY_ADDRESS", "")
    return None if found.startswith("http") else found or None  # people set a dashboard's for `ray job submit`


def group_folders(
    destination: str, names: list[str], fractions: Mapping[str, float] | None, seed: int
) -> dict[str, list[str]]:
    """Folder -> the names that go there; a group without a sample is left out, and said."""
    if fractions is None:
        return {destination: names}
    groups = split_by_hash(names, fractions, seed)
    for group in (group for group, members in groups.items() if not members):
        say(f"group {group!r} of the split got no sample of {len(names):,}: left out")
    return {f"{destination.rstrip('/')}/{group}": members for group, members in groups.items() if members}
