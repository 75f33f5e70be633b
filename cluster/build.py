"""What `dray build` does: read the names, deal them to groups, and make each group a dataset on one cluster."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dray.pipelines import BuildReport, pickles_to_tars, split_by_hash
from dray.pipelines.encode import AUTO, Encode
from dray.pipelines.progress import say
from dray.pipelines.session import check_address, ray_session
from dray.pipelines.sources import find_names
from dray.shards import CallError, Store
from dray.shards.client import StorageOptions
from dray.shards.layout import check_suffixes
from dray.shards.urls import check_apart, normal_url

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
GROUP_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # it becomes a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `dray build` and `dray plan` are asked for."""

    source: str
    destination: str
    prefix: str
    suffixes: Sequence[str]
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
    storage_options: StorageOptions

    def groups(self) -> dict[str, list[str]]:
        """Folder -> the names that go there.

        Raises:
            CallError: A folder is the source or lies inside it.
        """
        source = Store(self.source, self.storage_options)
        check_apart(source.url, normal_url(self.destination))
        names = read_names(self.names_file, source, check_suffixes(self.suffixes))
        groups = group_folders(self.destination, names, self.fractions, self.split_seed)
        for folder in groups:
            check_apart(source.url, normal_url(folder))
        return groups


def build_datasets(
    wanted: Wanted, *, keep: int | None, grace_s: float, address: str | None, progress: bool
) -> Iterator[BuildReport]:
    """Make a dataset in the destination, or one in a folder of it for each group of a split; a report for each.

    Each dataset is atomic for itself; an error leaves those before it done, and a rerun goes on from there.
    """
    groups = wanted.groups()
    with ray_session(address if wanted.fractions else None):  # one build connects by itself, and only if it has work
        for folder, names in groups.items():
            yield pickles_to_tars(
                wanted.source,
                names,
                wanted.suffixes,
                folder,
                wanted.prefix,
                min_num_shards=wanted.num_shards,
                shuffle_seed=wanted.shuffle_seed,
                encode=wanted.encode,
                allow=wanted.allow,
                allow_pickle=wanted.allow_pickle,
                checksum=wanted.checksum,
                on_error=wanted.on_error,
                max_bad=wanted.max_bad,
                keep=keep,
                grace_s=grace_s,
                address=address,
                storage_options=wanted.storage_options,
                progress=progress,
            )


def read_names(names_file: str | None, source: Store, suffixes: tuple[str, ...]) -> list[str]:
    """The names in a file, one a line (`-` is standard input); without a file those of all samples in the source."""
    if names_file is None:
        return find_names(source, suffixes)
    text = sys.stdin.read() if names_file == "-" else Path(names_file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


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
