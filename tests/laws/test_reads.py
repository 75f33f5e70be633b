"""Both readers and both entry points against a model: for any options, the same batches or the same error.

The model is a plain dict, key -> suffix -> value. A local dataset and its copy on a real S3 server are read.
"""

import itertools
import pickle
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import ShardLoader, Split, WebDataModule
from dray.pipelines import pickles_to_tars
from dray.shards import CallError, DamagedError, DrayError, NotFoundError, Snapshot, Store
from dray.shards.layout import Layout
from tests.conftest import Place
from tests.support.datasets import stored

NUM_SAMPLES, NUM_SHARDS, BATCH = 12, 3, 4
KEYS = [f"s{number:02d}" for number in range(NUM_SAMPLES)]
Model = Mapping[str, Mapping[str, Any]]


def tensor(number: int, size: int = 2) -> torch.Tensor:
    return torch.full((size,), float(number))


def lacking(number: int) -> dict[str, Any]:
    """Returns parts that some samples or whole shards lack; one sample has only a part that no test reads."""
    parts: dict[str, Any] = {"other.txt": "note"}
    if number not in (3, 6):
        parts["x.pyd"] = tensor(number)
    if number % 3 and number != 6:
        parts["n.cls" if number % 2 else "n.CLS"] = number
    if number >= 8:
        parts["late.pyd"] = tensor(number)
    return parts


def ragged(number: int) -> dict[str, Any]:
    """Returns tensors of two shapes, of two dtypes, and of equal shape and dtype."""
    return {
        "shape.pyd": tensor(number, 2 if number < 10 else 3),
        "dtype.pyd": tensor(number).to(torch.float64 if number == 5 else torch.float32),
        "x.pyd": tensor(number),
        "t.txt": f"note {number}",
    }


DATASETS = {"lacking": lacking, "ragged": ragged}
WANTED = {
    "lacking": ["x.pyd", "X.PYD", "n.cls", "N.Cls", "late.pyd", "other.txt"],
    "ragged": ["shape.pyd", "dtype.pyd", "x.pyd", "t.TXT"],
}


def files(parts: Mapping[str, Any]) -> dict[str, bytes]:
    return {suffix: pickle.dumps(value) if suffix.endswith(".pyd") else str(value).encode()
            for suffix, value in parts.items()}  # fmt: skip


def build(folder: Path, parts_of: Any) -> None:
    inputs = folder.parent / f"{folder.name}-inputs"
    inputs.mkdir()
    for key in KEYS:
        (inputs / f"{key}.n").write_bytes(b"")
    make = lambda key, _: files(parts_of(int(key[1:])))  # noqa: E731
    pickles_to_tars(inputs, KEYS, "n", folder, "wdshards", make, NUM_SHARDS, transform_version="1", progress=False)


def flip_part(folder: Path, number: int) -> None:
    """Flip a bit in every part of a sample."""
    snapshot = Snapshot.open(folder)
    place, row = divmod(number, NUM_SAMPLES // NUM_SHARDS)
    index = snapshot.index(snapshot.shards[place])
    path = folder / Layout("wdshards").shard(place)
    body = bytearray(path.read_bytes())
    for offset in index.offsets[row]:
        if offset:
            body[int(offset)] ^= 1
    path.write_bytes(body)


def spoil(folder: Path, damage: str) -> None:
    layout = Layout("wdshards")
    if damage.startswith("flip"):
        for number in map(int, damage.split()[1:]):
            flip_part(folder, number)
    elif damage == "no shard":
        (folder / layout.shard(1)).unlink()
    elif damage == "no index":
        (folder / layout.index(1)).unlink()


DAMAGE = ("none", "flip 2", "flip 6 3", "no shard", "no index")


def damaged(damage: str, number: int, wanted: Sequence[str]) -> type[DrayError] | None:
    """Returns the error class that reading these parts of a sample raises, or None."""
    if damage in ("no shard", "no index"):
        return NotFoundError if number // (NUM_SAMPLES // NUM_SHARDS) == 1 else None
    return DamagedError if wanted and str(number) in damage.split()[1:] else None


@dataclass(frozen=True)
class Datasets:
    """Every dataset with every kind of damage, on disk and on object storage."""

    folder: Path
    s3_url: str
    s3_options: Mapping[str, Any]

    def place(self, name: str, damage: str, where: str) -> Place:
        path = f"{name}-{damage.replace(' ', '-')}"
        return Place(f"{self.folder}/{path}") if where == "disk" else Place(f"{self.s3_url}/{path}", self.s3_options)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, s3: SeaweedServer) -> Datasets:
    folder = tmp_path_factory.mktemp("reads")
    found = Datasets(folder, s3.url(f"reads/{uuid.uuid4().hex}"), s3.storage_options)
    for name, parts_of in DATASETS.items():
        build(folder / f"built-{name}", parts_of)
        for damage in DAMAGE:
            local, remote = (found.place(name, damage, where) for where in ("disk", "s3"))
            shutil.copytree(folder / f"built-{name}", local.url)
            spoil(Path(local.url), damage)
            copy = Store(remote.url, s3.storage_options)
            for file, body in stored(Store(local.url)).items():
                copy.put_new(file, body)
    return found


def has(parts: Mapping[str, Any], wanted: str) -> list[Any]:
    return [value for suffix, value in parts.items() if suffix.lower() == wanted.lower()]


def plain(value: Any) -> Any:
    """Returns a value that can be compared; tensors as a tuple with their dtype."""
    if isinstance(value, torch.Tensor):
        return "tensor", str(value.dtype), value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def expected(
    name: str, damage: str, numbers: Sequence[int], wanted: Sequence[str], missing: str, stack: Any
) -> tuple[Any, ...]:
    """Returns the model's result of a step: ("batch", part -> plain value), or ("error", class, words of it)."""
    parts_of = DATASETS[name]
    for number in numbers:
        there = [part for part in wanted if has(parts_of(number), part)]
        if error := damaged(damage, number, there):
            return "error", error, {KEYS[number]} if error is DamagedError else {"000001"}
    columns = {part: [has(parts_of(number), part) for number in numbers] for part in wanted}
    for part, column in columns.items():
        if missing == "error" and [] in column:
            return "error", CallError, {KEYS[numbers[column.index([])]], part}
    batch = {}
    for part, column in columns.items():
        values = [found[0] if found else None for found in column]
        is_stacked = stack if isinstance(stack, bool) else part in stack
        if not is_stacked or None in [None if value is None else 0 for value in values] or isinstance(values[0], str):
            batch[part] = plain(values)
            continue
        tensors = [torch.as_tensor(value) for value in values]
        other = next((row for row, value in enumerate(tensors) if (value.dtype, value.shape) !=
                      (tensors[0].dtype, tensors[0].shape)), None)  # fmt: skip
        if other is not None:
            return "error", CallError, {KEYS[numbers[0]], KEYS[numbers[other]], part}
        batch[part] = plain(torch.stack(tensors))
    return "batch", batch


def agrees(found: Any, model: tuple[Any, ...]) -> None:
    if model[0] == "batch":
        assert found == model
    else:
        assert found[0] == "error", found
        assert found[1] is model[1], found
        assert all(word in found[2] for word in model[2]), (found, model)


def read_loader(place: Place, step_numbers: list[list[int]], **options: Any) -> list[Any]:
    """Returns the batches up to the first error, which is included; notes the samples of each step."""
    loader = ShardLoader(place.url, batch_size=BATCH, storage_options=place.storage_options, **options)
    undamaged = re.sub(r"(lacking|ragged)-[a-z0-9-]*$", r"\1-none", place.url)
    order = ShardLoader(undamaged, storage_options=place.storage_options, batch_size=BATCH,
                        **{**options, "num_workers": 0})  # fmt: skip
    steps = [[int(entry["key"][1:]) for entry in order.locate(0, step)] for step in range(len(order))]
    step_numbers[:] = steps
    found: list[Any] = []
    batches = iter(loader)
    for _ in steps:
        try:
            found.append(("batch", {part: plain(values) for part, values in next(batches).items()}))
        except DrayError as exc:
            found.append(("error", type(exc), str(exc)))
            break
    return found


selections = st.sampled_from(sorted(DATASETS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(st.sampled_from(WANTED[name]), min_size=1, max_size=3, unique_by=str.lower),
    )
)


@settings(max_examples=60, deadline=None)
@given(
    selections,
    st.sampled_from(DAMAGE),
    st.sampled_from(["error", "none"]),
    st.sampled_from([True, False, "first"]),
    st.booleans(),
    st.integers(0, 3),
)
def test_both_readers_give_what_the_model_says(
    places: Datasets, selection: tuple[str, list[str]], damage: str, missing: str, stack: Any, shuffle: bool, seed: int
) -> None:
    """Batches of any parts in any order, or the first error: its class, and the samples that it names."""
    name, wanted = selection
    stack = {wanted[0]} if stack == "first" else stack
    for where in ("disk", "s3"):
        steps: list[list[int]] = []
        found = read_loader(
            places.place(name, damage, where), steps,
            parts=wanted, missing=missing, stack=stack, shuffle=shuffle, seed=seed,
        )  # fmt: skip
        for numbers, batch in itertools.zip_longest(steps, found):
            if batch is None:  # after an error
                break
            agrees(batch, expected(name, damage, numbers, wanted, missing, stack))


@pytest.mark.parametrize("where", ["disk", pytest.param("s3", marks=pytest.mark.heavy)])
@pytest.mark.parametrize(
    ("name", "wanted", "damage", "missing"),
    [
        ("lacking", ["x.pyd", "n.cls"], "none", "none"),
        ("lacking", ["n.cls"], "flip 6 3", "error"),
        ("ragged", ["shape.pyd"], "no shard", "error"),
    ],
)
def test_workers_give_the_same(
    places: Datasets, where: str, name: str, wanted: list[str], damage: str, missing: str
) -> None:
    """The same batches and the same first error as without workers."""
    place, steps = places.place(name, damage, where), list[list[int]]()
    options: dict[str, Any] = {"parts": wanted, "missing": missing, "shuffle": True, "seed": 2}
    here = read_loader(place, steps, **options)
    there = read_loader(place, steps, num_workers=2, **options)
    assert [entry[:2] for entry in there] == [entry[:2] for entry in here]
    for numbers, batch in zip(steps, there, strict=False):
        agrees(batch, expected(name, damage, numbers, wanted, missing, True))


def in_batches(source: Iterable[Any]) -> Iterator[list[Any]]:
    """Yields lists of BATCH samples, each as soon as it is full."""
    samples = iter(source)
    while rows := list(itertools.islice(samples, BATCH)):
        yield rows


@settings(max_examples=30, deadline=None)
@given(selections, st.sampled_from(DAMAGE), st.sampled_from(["error", "none"]), st.sampled_from(["disk", "s3"]))
def test_the_data_module_gives_what_the_model_says(
    places: Datasets, selection: tuple[str, list[str]], damage: str, missing: str, where: str
) -> None:
    """Tuples in the dataset's order, or the same errors."""
    name, wanted = selection
    place = places.place(name, damage, where)
    data = WebDataModule(
        None, wanted, {Split.val: place.url}, BATCH, missing=missing, storage_options=place.storage_options,
        pipeline_wds={Split.val: in_batches},
    )  # fmt: skip
    data.setup("validate")
    outputs = iter(data.val_dataloader())
    steps = [range(first, first + BATCH) for first in range(0, NUM_SAMPLES, BATCH)]
    models = [expected(name, damage, numbers, wanted, missing, False) for numbers in steps]
    for step, model in enumerate(models):
        try:
            rows = next(outputs)
        except DrayError as exc:  # a chunk is given when the next one is read: it may be the next that fails
            error = next(model for model in models[step : step + 2] if model[0] == "error")
            agrees(("error", type(exc), str(exc)), error)
            break
        agrees(("batch", {part: [plain(row[at]) for row in rows] for at, part in enumerate(wanted)}), model)
    data.teardown("")


def test_a_sample_without_any_wanted_part_is_read_everywhere(places: Datasets) -> None:
    """Reading it in shuffled order from object storage once raised a KeyError."""
    for where in ("disk", "s3"):
        place = places.place("lacking", "none", where)
        options: dict[str, Any] = {"parts": ["x.pyd", "n.cls"], "storage_options": place.storage_options}
        with pytest.raises(CallError, match=r"key 's0[0369]': no part with suffix '.*; it has \['other\.txt'"):
            list(ShardLoader(place.url, batch_size=1, shuffle=True, **options))
        loader = ShardLoader(place.url, batch_size=1, shuffle=True, missing="none", with_keys=True, **options)
        found = {batch["__key__"][0]: (batch["x.pyd"], batch["n.cls"]) for batch in loader}
        assert sorted(found) == KEYS
        assert found["s06"] == ([None], [None])
