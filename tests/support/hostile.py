"""Datasets with one mutated object whose digests agree, as anyone who can write to the store can make them.

`survey` reads many of them in child processes, through every reader, and returns what went wrong: a process that ended
by a signal, an error that is not dray's, or more memory than such a dataset takes.
"""

import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from dray.cluster.cli.app import command_line
from dray.loaders import Dataset, ShardLoader, WebDataModule
from dray.loaders.split import Split
from dray.shards import DrayError, Snapshot, Store
from dray.shards.index import digest_of
from dray.shards.layout import Layout
from tests.support import processes

KINDS = ("index", "manifest", "commit", "intent", "holds", "sources", "left_out")
LAYOUT = Layout("wds")
MORE_BYTES = 1 << 30  # that a child may allocate beside what it has
Objects = Mapping[str, bytes]
Case = tuple[str, int]  # kind and seed of a mutation

_WILD = [None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 10**10, 10**30, 0.5, float("nan"), "", "../x", "\ud800", [], {}]
_WORDS = [0, 1, -1, 2**31 - 1, -(2**31), 2**30]


def objects_in(folder: Path) -> Objects:
    """Every object of a dataset, by name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def mutated(objects: Objects, kind: str, seed: int) -> Objects:
    """The dataset with one object of a kind changed, and every digest that names it."""
    choice = random.Random(f"{kind} {seed}")
    folder, end = {
        "index": (LAYOUT.indexes, ".arrow"),
        "manifest": (LAYOUT.manifests, ".json"),
        "commit": (LAYOUT.commits, ".json"),
        "intent": (LAYOUT.intents, ".json"),
        "holds": (LAYOUT.holds, ".json"),
    }.get(kind, (LAYOUT.manifests, ".parquet"))
    names = [name for name in sorted(objects) if name.startswith(folder) and name.endswith(end)]
    if end == ".parquet":
        manifest = json.loads(next(body for name, body in objects.items() if _is_manifest(name)))
        digest = manifest["left_out"]["digest"] if kind == "left_out" else manifest["sources"][0]["digest"]
        names = [name for name in names if digest in name]
    name = choice.choice(names)
    is_json = end == ".json" and choice.random() < 0.8
    body = (_mutated_json if is_json else _mutated_bytes)(objects[name], choice)
    return _replaced(objects, name, body)


def _is_manifest(name: str) -> bool:
    return name.startswith(LAYOUT.manifests) and name.endswith(".json")


def _mutated_json(body: bytes, choice: random.Random) -> bytes:
    values = json.loads(body)
    places = list(_places(values))
    for _ in range(choice.choice([1, 1, 2])):
        holder, key = choice.choice(places)
        if choice.random() < 0.1:
            if isinstance(holder, dict):
                holder.pop(key, None)
        else:
            holder[key] = choice.choice([*_WILD, choice.randrange(-9, 2**40), [[[]]], {"a": {}}])
    return json.dumps(values).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where a value can be replaced: the list or object that holds it, and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in items:
        yield value, key
        yield from _places(held)


def _mutated_bytes(data: bytes, choice: random.Random) -> bytes:
    body = bytearray(data)
    start = choice.choice([0, max(0, len(body) - 1500)])  # half of them where the footer lies
    for _ in range(choice.choice([1, 1, 2, 4])):
        place, how = choice.randrange(start, len(body)), choice.randrange(6)
        if how == 0:
            body[place] = choice.randrange(256)
        elif how == 1:
            body[place] ^= 1 << choice.randrange(8)
        elif how in (2, 3):
            size = 4 * (how - 1)
            place -= place % size
            value = choice.choice([*_WORDS, choice.randrange(-(2**31), 2**31)]) << choice.choice([0, 0, 8 * size - 32])
            body[place : place + size] = value.to_bytes(size, "little", signed=True)
        elif how == 4:
            del body[place : place + choice.randrange(1, 40)]
        else:
            other = choice.randrange(len(body))
            body[place : place + 16] = body[other : other + 16]
        start = min(start, len(body) - 1)
    return bytes(body)


def _replaced(objects: Objects, name: str, body: bytes) -> Objects:
    """With another content of an object; what names it by its digest is changed as well, up to the commits."""
    before, after = digest_of(objects[name]), digest_of(body)
    changed = {**objects}
    del changed[name]
    changed[name.replace(before, after)] = body
    for other, text in objects.items():
        if other.endswith(".json") and other != name and before.encode() in text:
            changed = dict(_replaced(changed, other, text.replace(before.encode(), after.encode())))
    return changed


# The readers


def _loader(url: str) -> None:
    for batch in ShardLoader(url, prefix=LAYOUT.prefix, batch_size=4, shuffle=True, with_keys=True):
        assert len(batch["cls"])


def _snapshot(url: str) -> None:
    snapshot = Snapshot.open(url, LAYOUT.prefix)
    snapshot.sources()
    snapshot.left_out()
    for shard in snapshot.shards:
        snapshot.index(shard)
    snapshot.read("s0003")


def _dataset(url: str) -> None:
    dataset = Dataset(url, prefix=LAYOUT.prefix)
    for key in dataset:
        assert "cls" in dataset[key]


def _module(url: str) -> None:
    module = WebDataModule(None, "x.pyd", {Split.train: url}, 4, LAYOUT.prefix)
    module.setup("fit")
    for _ in module.train_dataloader():
        pass


def _command(*words: str) -> Callable[[str], None]:
    def run(url: str) -> None:
        with suppress(typer.Exit):
            command_line()([words[0], url, "--prefix", LAYOUT.prefix, *words[1:]], standalone_mode=False)

    return run


READERS: Mapping[str, Callable[[str], None]] = {
    "snapshot": _snapshot,
    "loader": _loader,
    "dataset": _dataset,
    "module": _module,
    **{f"dray {words[0]}": _command(*words) for words in [
        ["ls", "--all"], ["log"], ["show", "s0003"], ["verify", "--level", "full"], ["diff", "1", "2"],
        ["gc", "--older-than", "0"], ["compact"], ["rollback", "1"], ["hold", "other"], ["release", "best"],
    ]},
}  # fmt: skip


def problems_of(objects: Objects, name: str, folder: Path, readers: Iterable[str] = tuple(READERS)) -> list[str]:
    """What goes wrong where a dataset is read from memory, and from a disk."""
    store = Store(f"memory://{name}")
    for path, body in objects.items():
        store.put_new(path, body)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
    found = []
    for what in readers:
        for url in (str(folder), store.url):
            try:
                READERS[what](url)
            except DrayError as exc:
                if not str(exc):
                    found.append(f"{what}: an error without a message")
            except BaseException as exc:
                found.append(f"{what} of {url.partition(':')[0]}: {type(exc).__name__}: {exc!s:.200}")
    return found


def _read_many(source: Path, cases: Sequence[Case], folder: Path, journal: Path) -> None:
    """In a child: note each mutation before it is read, and what came of it."""
    os.environ["DRAY_TRACEBACK"] = "1"  # errors come through
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    objects = objects_in(source)
    assert not problems_of(objects, "warm", folder / f"warm {cases[0]}")  # what is imported and started is not counted
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = (int(status["VmData"].split()[0]) << 10) + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with journal.open("a", buffering=1) as file:
        for kind, seed in cases:
            print(json.dumps([kind, seed, ["ended the process"]]), file=file)
            others = [*READERS][seed % len(READERS) :][:1]
            place = folder / f"{kind} {seed}"
            found = problems_of(mutated(objects, kind, seed), f"{kind} {seed}", place, ["snapshot", "loader", *others])
            print(json.dumps([kind, seed, found]), file=file)
            shutil.rmtree(place)


def survey(source: Path, cases: Sequence[Case], folder: Path) -> dict[Case, list[str]]:
    """Kind and seed of a mutation -> what went wrong."""
    journal, found = folder / "journal", dict[Case, list[str]]()
    while rest := [case for case in cases if case not in found]:
        child = processes.start(_read_many, source, rest, folder, journal)
        child.join()
        before = len(found)
        for line in journal.read_text().splitlines() if journal.exists() else ():
            kind, seed, problems = json.loads(line)
            found[kind, seed] = problems
        assert len(found) > before, f"a child ended with {child.exitcode} before it read anything"
    return {case: problems for case, problems in found.items() if problems}
