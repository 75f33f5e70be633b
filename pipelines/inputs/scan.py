"""Scanning an input folder and its sub-folders for samples.

The same rules hold on a disk and on object storage, where one recursive listing serves. A name counts as a sample if
any of the suffixes has a file under it; hidden files and folders, and folders that hold a dray dataset, are left out
and counted.
"""

import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields

from dray.pipelines.inputs.sources import BadInput, Print, etag_stamp
from dray.shards.errors import CallError, MissingInputError
from dray.shards.layout import DRAY_FOLDER, NAME_RULE, bad_names
from dray.shards.messages import counted
from dray.shards.storage.store import Store

MOST_PROPOSED = 5  # suffixes in an error
MOST_KINDS = 16  # up to this many distinct last words of sample names look like parts of a suffix
_WORD = re.compile(r"[A-Za-z][\w-]*")


@dataclass(slots=True, kw_only=True)
class Unscanned:
    """Number of files and folders that a scan left out, by reason. Files in such a folder are not counted.

    Attributes:
        hidden_files: Files whose name starts with a dot.
        hidden_folders: Folders whose name starts with a dot.
        datasets: Folders that hold a dray dataset, and the folder of dray's records in the input folder itself.
        links: Symbolic links to folders that are scanned under another path.
        other_case: Files whose ending differs from a suffix by upper and lower case alone.
        example: One of the files of another case; empty if there is none.
    """

    hidden_files: int = 0
    hidden_folders: int = 0
    datasets: int = 0
    links: int = 0
    other_case: int = 0
    example: str = ""

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        counts = (
            (self.hidden_files, "hidden file"),
            (self.hidden_folders, "hidden folder"),
            (self.datasets, "folder of a dray dataset"),
            (self.links, "link to a folder that is scanned elsewhere"),
            (self.other_case, "file of a suffix in another case"),
        )
        example = f" such as {self.example!r}, to be renamed" if self.example else ""
        return ", ".join(f"{count:,} {_plural(what, count)}" for count, what in counts if count) + example

    def to_json(self) -> dict[str, int | str]:
        """Returns the counts by name, and the example."""
        return asdict(self)


def _plural(what: str, count: int) -> str:
    if count == 1:
        return what
    head, space, rest = what.partition(" of ") if " of " in what else what.partition(" to ")
    return f"{head}s{space}{rest}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scan:
    """The samples in an input folder.

    Attributes:
        names: n names, sorted.
        unusable: The samples whose names cannot become keys.
        prints: File -> (size, stamp) from the listing; None on a disk, where files are looked up one by one.
        unscanned: What was left out.
    """

    names: list[str]
    unusable: tuple[BadInput, ...] = ()
    prints: Mapping[str, Print] | None = None
    unscanned: Unscanned


def scan(store: Store, suffixes: Sequence[str]) -> Scan:
    """Returns the samples in a folder and its sub-folders, without opening a file.

    Args:
        store: The input folder.
        suffixes: The suffixes of the samples' files. A file belongs to the longest one that it ends with.

    Raises:
        MissingInputError: No file has any of the suffixes, or a folder cannot be listed.
        CallError: The suffixes are cut short: `pyd` where the files are `image.pyd`.
    """
    unscanned = Unscanned()
    prints: dict[str, Print] | None = None if store.local_root is not None else {}
    endings = tuple(f".{suffix}" for suffix in sorted(suffixes, key=len, reverse=True))
    lowered = tuple(map(str.lower, endings))
    if prints is None:
        folders = _walk(store.local_root or "", unscanned)
    else:
        folders = _listed_folders(store, endings, prints, unscanned)
    found: list[str] = []
    longer: dict[str, str] = {}  # suffix that a file may really have -> one such file
    unasked = Counter[str]()  # suffixes of files that have none of those asked for
    for folder, files in folders:
        visible = [file for file in files if not file.startswith(".")]
        unscanned.hidden_files += len(files) - len(visible)
        stems, others = _stems(visible, endings, longer)
        if other_case := [file for file in others if file.lower().endswith(lowered)]:
            unscanned.other_case += len(other_case)
            paths = [f"{folder}/{file}".lstrip("/") for file in other_case]
            unscanned.example = min(filter(None, [unscanned.example, *paths]))
        if not found:
            unasked.update(file.partition(".")[2] for file in others)
        found += [f"{folder}/{stem}" for stem in stems] if folder else stems
    unusable = set(bad_names(found))
    names = sorted(name for name in found if name not in unusable) if unusable else sorted(found)
    if not found:
        besides = f"; left out: {unscanned}" if unscanned else ""
        there = f"; the files there have the suffixes {_proposals(unasked)}" if +unasked else ""
        asked = ", ".join(f"*.{suffix}" for suffix in suffixes)
        raise MissingInputError(f"no file {asked} in {store.url}{there}{besides}")
    if 0 < len(longer) <= MOST_KINDS:
        raise CallError(_cut_short(longer, suffixes, store.url))
    return Scan(
        names=names,
        unusable=tuple(_unusable(name) for name in sorted(unusable)),
        prints=prints,
        unscanned=unscanned,
    )


def _stems(files: Sequence[str], endings: Sequence[str], longer: dict[str, str]) -> tuple[set[str], Sequence[str]]:
    """Returns the files' names without their suffixes, and the files that have none of them.

    Args:
        files: The visible files of a folder.
        endings: The suffixes with their dots, the longest first.
        longer: Is filled with suffix -> file for files that may really have a longer suffix.
    """
    stems: set[str] = set()
    for ending in endings:
        taken = [file[: -len(ending)] for file in files if file.endswith(ending)]
        stems.update(taken)
        if len(taken) == len(files):
            files = []
        elif taken:
            files = [file for file in files if not file.endswith(ending)]
        if len(longer) <= MOST_KINDS:
            for stem in [stem for stem in taken if "." in stem]:
                word = stem.rpartition(".")[2]
                if _WORD.fullmatch(word):
                    longer.setdefault(word + ending, stem + ending)
    return stems, files


def _proposals(suffixes: Counter[str]) -> str:
    """Returns the most frequent suffixes with their counts; only the last words of them if there are many."""
    suffixes = Counter({suffix: count for suffix, count in suffixes.items() if suffix})
    if len(suffixes) > MOST_KINDS:  # dots in the names of samples make each suffix another one
        last = Counter[str]()
        for suffix, count in suffixes.items():
            last[suffix.rpartition(".")[2]] += count
        suffixes = last
    ranked = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{suffix!r} ({counted(count, 'file')})" for suffix, count in ranked[:MOST_PROPOSED]]
    return ", ".join(shown) + (", ..." if len(suffixes) > MOST_PROPOSED else "")


def _cut_short(longer: Mapping[str, str], suffixes: Sequence[str], url: str) -> str:
    example, whole = next(iter(longer.values())), " and ".join(map(repr, sorted(longer)))
    given = " and ".join(map(repr, suffixes))
    return (
        f"{url} holds files such as {example!r}, of which {given} takes only the end of the suffix: give {whole} "
        "(--suffix or suffixes=); or, if that is part of the samples' names, list the samples (--names FILE or names=)"
    )


def _unusable(name: str) -> BadInput:
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    is_text = shown == name
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)
    why = NAME_RULE if is_text else "it is not UTF-8"
    return BadInput(name=shown, file="", stage="find", error=f"its name cannot become a key ({why}): rename its files")


def _walk(root: str, unscanned: Unscanned) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, names of the files directly in it) for a folder on disk and all below, as relative paths.

    Links to folders come last, and are followed only if the folder was not scanned before: so every folder is scanned
    once, under its own path if it has one, and loops end.
    """
    if not os.path.isdir(root):
        return
    folders, links, seen = deque([""]), deque[str](), set[tuple[int, int]]()
    while folders or links:
        is_link = not folders
        folder = links.popleft() if is_link else folders.popleft()
        path = os.path.join(root, folder)
        try:
            info = os.stat(path)
            if (info.st_dev, info.st_ino) in seen:
                unscanned.links += 1
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(path) as entries:
                files, inner = _sorted_out(entries)
        except OSError as exc:
            raise MissingInputError(f"cannot list the input folder {path}: {exc.strerror}") from exc
        if DRAY_FOLDER in inner:
            unscanned.datasets += 1
            if folder:
                continue
            del inner[DRAY_FOLDER]
        yield folder, files
        for name in sorted(inner):
            if name.startswith("."):
                unscanned.hidden_folders += 1
            else:
                (links if inner[name] else folders).append(f"{folder}/{name}" if folder else name)


def _sorted_out(entries: "Iterator[os.DirEntry[str]]") -> tuple[list[str], dict[str, bool]]:
    """Returns the files, and the folders with whether each is a symbolic link."""
    files: list[str] = []
    folders: dict[str, bool] = {}
    for entry in entries:
        if entry.is_dir():
            folders[entry.name] = entry.is_symlink()
        else:
            files.append(entry.name)
    return files, folders


def _listed_folders(
    store: Store, endings: tuple[str, ...], prints: dict[str, Print], unscanned: Unscanned
) -> Iterator[tuple[str, list[str]]]:
    """Like `_walk`, by one listing of an object store; adds size and stamp of each input file to `prints`."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    infos = store.list_tree()[::-1]
    while infos:
        info = infos.pop()  # millions are not held beside what is made of them
        folder, _, file = info.name.rpartition("/")
        folders[folder].append(file)
        if file.endswith(endings):
            prints[info.name] = info.size, etag_stamp(info)
    parts_of = {folder: folder.split("/") if folder else [] for folder in folders}
    datasets = {"/".join(parts[: parts.index(DRAY_FOLDER)]) for parts in parts_of.values() if DRAY_FOLDER in parts}
    reasons = dict(filter(None, (_why_left_out(parts, datasets) for parts in parts_of.values())))
    counts = Counter(reasons.values())
    unscanned.hidden_folders, unscanned.datasets = counts["hidden"], counts["dataset"]
    for folder, files in folders.items():
        if _why_left_out(parts_of[folder], datasets) is None:
            yield folder, files


def _why_left_out(parts: Sequence[str], datasets: Set[str]) -> tuple[str, str] | None:
    """Returns (folder, reason) for the topmost of a path's folders that is left out; None where none is."""
    for stop in range(1, len(parts) + 1):
        folder = "/".join(parts[:stop])
        if parts[stop - 1].startswith("."):
            return folder, "hidden"
        if folder in datasets or parts[stop - 1] == DRAY_FOLDER:
            return folder, "dataset"
    return None
