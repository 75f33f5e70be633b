"""The parts that a loader reads: missing parts, forms of encoded parts, letter case, different shapes."""

import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import Dataset, ShardLoader, Split, WebDataModule
from dray.loaders.batching.collate import collate
from dray.pipelines import pickles_to_tars
from dray.shards import CallError, DamagedError, Store
from tests.conftest import Dray
from tests.support import datasets

FLOAT = torch.ones(2)
VALUES: list[Any] = [FLOAT, (1, 2), FLOAT * 2, FLOAT * 3, {"a": 1}, 2 * FLOAT]  # stored as .npy, .pyd and .json
Parts = Callable[[int], Mapping[str, Any]]


def files(parts: Mapping[str, Any]) -> dict[str, bytes]:
    return {suffix: pickle.dumps(value) if suffix.lower().endswith(("pyd", "pkl")) else str(value).encode()
            for suffix, value in parts.items()}  # fmt: skip


def build(folder: Path, parts_of: Parts, num_samples: int = 6, num_shards: int = 3, **options: Any) -> str:
    """Returns the URL of a dataset whose samples have the parts that a function returns for their number."""
    inputs, names = folder / "in", [f"s{number}" for number in range(num_samples)]
    inputs.mkdir(parents=True)
    for name in names:
        (inputs / f"{name}.n").write_bytes(b"")
    make = lambda key, _: files(parts_of(int(key[1:])))  # noqa: E731
    options = {"transform_version": "1", "progress": False, **options}
    pickles_to_tars(inputs, names, "n", folder / "out", "wdshards", make, num_shards, **options)
    return str(folder / "out")


def encode(folder: Path, values: list[Any], encode: Any = "auto", **more: Any) -> str:
    """Returns the URL of a dataset with two samples in each shard, whose parts image.pyd are these values."""
    parts = {"image.pyd": lambda number: pickle.dumps(values[number])} | more
    return datasets.pack(folder, len(values), -(-len(values) // 2), parts=parts, encode=encode)


def only(url: str, size: int, **options: Any) -> dict[str, Any]:
    """Returns the only batch of a dataset of that size."""
    (batch,) = ShardLoader(url, batch_size=size, **options)
    assert isinstance(batch, dict)
    return batch


# Parts that samples lack


def some(number: int) -> dict[str, Any]:
    """Sample 4, in the last shard, has no label; the last shard alone has notes."""
    parts: dict[str, Any] = {"x.pyd": torch.full((2,), float(number))}
    return parts | ({"label.cls": number} if number != 4 else {}) | ({"note.txt": "n"} if number > 3 else {})


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_named_part_that_a_sample_lacks_is_an_error(tmp_path: Path, on_error: str, num_workers: int) -> None:
    """The error names shard, key, suffix and solution, is not skipped as damage, and comes after the batches before."""
    url = build(tmp_path, some)
    bad = tmp_path / "bad"
    loader = ShardLoader(
        url, batch_size=2, parts=["x.pyd", "label.cls"], on_error=on_error, bad_samples=bad, num_workers=num_workers
    )
    batches = iter(loader)
    assert [next(batches)["label.cls"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(
        CallError, match=r"wdshards-000002\.tar', key 's4': no part with suffix 'label\.cls'.*missing='none'"
    ):
        next(batches)
    assert not bad.exists()
    fine = ShardLoader(url, batch_size=2, parts="x.pyd", num_workers=num_workers)
    assert len(list(fine)) == 3


def test_missing_none_gives_none_in_a_list(tmp_path: Path) -> None:
    """Batches and samples have a key for every part, and None where a sample lacks it."""
    url = build(tmp_path, some)
    first, second = ShardLoader(url, batch_size=3, missing="none", with_keys=True)
    assert list(first) == list(second) == ["label.cls", "x.pyd", "note.txt", "__key__"]
    assert (first["label.cls"].tolist(), first["note.txt"]) == ([0, 1, 2], [None] * 3)
    assert (second["label.cls"], second["note.txt"]) == ([3, None, 5], [None, "n", "n"])
    rows: list[dict[str, Any]] = []
    list(ShardLoader(url, batch_size=6, missing="none", transform=lambda row: rows.append(dict(row)) or {"a": 1}))
    assert [row["label.cls"] for row in rows] == [0, 1, 2, 3, None, 5]
    ((kept, *_),) = ShardLoader(url, batch_size=6, missing="none", collate=list)
    assert kept["note.txt"] is None


def test_all_parts_must_be_in_all_samples(tmp_path: Path) -> None:
    """Otherwise opening the loader raises an error that names the shard and the part."""
    url = build(tmp_path, some)
    with pytest.raises(CallError, match=r"000000\.tar lack 'note\.txt': name the parts with parts=, or give miss"):
        ShardLoader(url, batch_size=2)
    assert only(url, 6, missing="none").keys() == {"x.pyd", "label.cls", "note.txt"}
    assert only(url, 4, limit=4).keys() == {"x.pyd", "label.cls"}


@pytest.mark.parametrize("missing", ["error", "none"])
def test_a_rank_without_samples_has_every_part(tmp_path: Path, missing: str) -> None:
    """The parts have no rows and are stacked if possible, whatever the first sample of the dataset lacks."""
    url = build(tmp_path, lambda number: {"x.pyd": FLOAT} | ({"n.cls": number} if number else {}), num_samples=7)
    parts = ["x.pyd", "n.cls"] if missing == "none" else ["x.pyd"]
    loader = ShardLoader(url, batch_size=2, remainder="keep", rank=0, num_ranks=3, parts=parts, missing=missing)
    *_, last = loader
    assert [tuple(last[part].shape) for part in parts] == [(0, 2), (0,)][: len(parts)]


def test_a_transform_that_leaves_out_a_part_is_an_error(tmp_path: Path) -> None:
    """The missing part is None only with missing="none"."""
    url = build(tmp_path, lambda number: {"n.cls": number})

    def odd(row: dict[str, Any]) -> dict[str, Any]:
        return {"n": row["n.cls"]} if row["n.cls"] % 2 else {}

    with pytest.raises(CallError, match=r"transform returned no 'n' for shard .*000000.tar', key 's0'"):
        list(ShardLoader(url, batch_size=2, transform=odd))
    assert only(url, 6, transform=odd, missing="none")["n"] == [None, 1, None, 3, None, 5]


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    """The errors quote the arguments as given."""
    url = build(tmp_path, some)
    with pytest.raises(CallError, match=r"stack names 'y': a batch has the parts x\.pyd"):
        ShardLoader(url, batch_size=1, parts="x.pyd", stack={"y"})
    for options in ({"missing": "skip"}, {"stack": "x.pyd"}, {"stack": [1]}, {"missing": None}):
        (name,) = options
        with pytest.raises(CallError, match=f"{name}="):
            ShardLoader(url, batch_size=1, parts="x.pyd", **options)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="missing="):
        WebDataModule(None, "x", {}, 1, missing="skip")


def test_tuples_of_the_data_module_have_none_where_they_may(tmp_path: Path) -> None:
    """Without missing="none" the loader raises an error."""
    url = build(tmp_path, some)
    data = module(url, ["x.pyd", "LABEL.cls"])
    with pytest.raises(
        CallError, match=r"key 's4': no part with suffix 'LABEL\.cls'; it has \['x\.pyd', 'note\.txt'\]"
    ):
        list(data.val_dataloader())
    labels = [label for _, label in module(url, ["x.pyd", "label.cls"], missing="none").val_dataloader()]
    assert labels == [0, 1, 2, 3, None, 5]


def test_no_other_part_stands_for_one_that_is_missing(tmp_path: Path) -> None:
    """The end of a suffix matches only if no sample has a part with exactly that name."""
    url = build(tmp_path, lambda number: {"other.x.cls": 9, "n.txt": "n"} | ({"x.cls": number} if number else {}))
    with pytest.raises(
        CallError, match=r"key 's0': no part with suffix 'x\.cls'; it has \['other\.x\.cls', 'n\.txt'\]"
    ):
        list(module(url, "x.cls").val_dataloader())
    found = module(url, ["x.cls", "txt"], missing="none")
    assert [value for value, _ in found.val_dataloader()] == [None, 1, 2, 3, 4, 5]


def module(url: str, suffixes: Any, **options: Any) -> WebDataModule:
    data = WebDataModule(None, suffixes, {Split.val: url}, None, **options)
    data.setup("validate")
    return data


def test_loadtest_takes_any_name_of_a_part(tmp_path: Path, dray: Dray) -> None:
    """It also reads datasets whose samples have different parts."""
    url = encode(tmp_path, VALUES)
    for more in (["--part", "image"], ["--part", "image.npy"], []):
        assert dray("loadtest", url, "--batch-size", 2, "--steps", 3, *more).code == 0
    ragged = encode(tmp_path / "ragged", [torch.ones(1), torch.ones(2)])
    failed = dray("loadtest", ragged, "--batch-size", 2, "--steps", 1)
    assert (failed.code, "Give --no-stack for lists" in failed.err) == (2, True)
    assert dray("loadtest", ragged, "--batch-size", 2, "--steps", 1, "--no-stack").code == 0


# Letter case


def test_suffixes_compare_without_case(tmp_path: Path) -> None:
    """A part is decoded and grouped regardless of the letter case in each sample."""
    url = build(tmp_path, lambda number: {"x.PYD" if number % 2 else "x.pyd": torch.full((2,), float(number))})
    for names in (None, "X.Pyd"):
        batch = only(url, 6, parts=names)
        (name,) = batch
        assert name == (names or "x.PYD")
        assert batch[name][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert [float(x[0]) for (x,) in module(url, "x.PYD").val_dataloader()] == [0, 1, 2, 3, 4, 5]
    assert float(Dataset(url)["s3"]["x.pyd"][0]) == 3.0
    assert only(url, 6, parts="x.pyd", decoders={"PYD": lambda data: 7})["x.pyd"].tolist() == [7] * 6


def plain_tar(members: list[str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in members:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"7"))
    return stream.getvalue()


def test_two_parts_that_differ_in_case_are_named(tmp_path: Path) -> None:
    """Tars from other programs may have both in one sample."""
    (tmp_path / "wdshards-0.tar").write_bytes(plain_tar(["a.cls", "b.cls", "b.CLS", "b.n.txt"]))
    with pytest.raises(DamagedError, match=r"key 'b' has 'CLS' twice \(upper and lower case are the same\)"):
        module(str(tmp_path), "cls")


def test_streamed_tars_follow_the_same_rules(s3: SeaweedServer) -> None:
    """The rules also hold for tars from other programs on object storage."""
    store = Store(s3.url("parts-streamed"), s3.storage_options)
    store.put_new("wdshards-0.tar", plain_tar(["a.X.CLS", "a.n.txt", "b.n.txt"]))
    for missing, found in (("none", [7, None]), ("error", None)):
        with pytest.warns(UserWarning, match="streamed whole"):
            data = module(store.url, "x.cls", missing=missing, storage_options=s3.storage_options)
        if found is None:
            with pytest.raises(CallError, match=r"key 'b': no part with suffix 'x\.cls'; it has \['n\.txt'\]"):
                list(data.val_dataloader())
        else:
            assert [value for (value,) in data.val_dataloader()] == found


# Shapes that differ


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shapes_that_differ_are_an_error_or_lists(tmp_path: Path, num_workers: int) -> None:
    """The error names both samples, the difference and the solution; with lists, equal shapes give a list too."""
    url = build(tmp_path, lambda number: {"x.pyd": torch.ones(2 + (number == 5)), "y.pyd": FLOAT, "t.txt": "t"})
    options: dict[str, Any] = {"batch_size": 3, "num_workers": num_workers}
    batches = iter(ShardLoader(url, **options))
    assert next(batches)["x.pyd"].shape == (3, 2)
    with pytest.raises(
        CallError,
        match=r"'x\.pyd' cannot be stacked: it is float32 \(2,\) in shard .*, key 's3', but float32 \(3,\) in "
        r"shard .*000002\.tar', key 's5'\. Give stack=False",
    ):
        next(batches)
    for batch in ShardLoader(url, stack=False, **options):
        assert [type(batch[part]) for part in batch] == [list, list, list]
        assert batch["y.pyd"][2].tolist() == [1, 1]
    for batch in ShardLoader(url, stack={"y.pyd"}, **options):
        assert (type(batch["x.pyd"]), batch["y.pyd"].shape) == (list, (3, 2))


SCALARS = [1, True, 0.5, np.float32(2), np.int64(3), FLOAT, np.ones(2), np.ones(2, ">f8"), torch.ones(3), "text", b"b",
           {"a": 1}, [1], None, 2**63, np.array("x"), torch.ones(2).to_sparse()]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(range(len(SCALARS))), min_size=1, max_size=4))
def test_what_can_be_stacked_does_not_depend_on_luck(chosen: list[int]) -> None:
    """The result is a list if a value is not a tensor, a tensor if dtypes and shapes agree, else an error."""
    values = [SCALARS[number] for number in chosen]

    def kind(value: Any) -> Any:
        if isinstance(value, str | bytes | dict | list) or value is None or (type(value) is int and value >= 2**63):
            return None
        if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
            return None
        try:
            tensor = torch.as_tensor(np.asarray(value).astype(np.asarray(value).dtype.newbyteorder("=")))
        except TypeError:
            return None
        return (torch.float64 if type(value) is float else tensor.dtype), tuple(tensor.shape)

    kinds = {kind(value) for value in values}
    assert type(collate([{"a": value} for value in values], stack=False)["a"]) is list
    if len(kinds) > 1 and None not in kinds:
        with pytest.raises(CallError, match=r"part 'a' cannot be stacked: .* sample 0 of the batch"):
            collate([{"a": value} for value in values])
        return
    found = collate([{"a": value} for value in values])["a"]
    assert isinstance(found, list) == (None in kinds)
    if isinstance(found, torch.Tensor):
        assert [(found.dtype, tuple(found.shape[1:]))] == list(kinds)
