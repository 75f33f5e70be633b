"""Encoding pickled parts while they are packed: what comes back, and the laws of a build with it."""

import json
import os
import pickle
from collections.abc import Callable, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from dray.loaders import Dataset, ShardLoader
from dray.pipelines import BuildReport, pickles_to_tars
from dray.pipelines.building.compact import compact
from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.planning.plan import Last, changes_of
from dray.pipelines.planning.recipe import Recipe
from dray.shards import CallError, DamagedError, InputError, Snapshot, Store
from dray.shards.codecs.npy import as_npy
from dray.shards.codecs.safetensors import as_safetensors
from dray.shards.codecs.unfit import UnfitError
from dray.shards.layout import Layout, Location
from tests.conftest import Inputs, Place
from tests.support.datasets import stored
from tests.support.values import VALUES, read_safetensors, same

SUFFIX = "value.pyd"
AS_ARRAY = (torch.Tensor, np.generic)  # a `.npy` comes back as an array


def encoded(value: Any, encode: Any = "auto", **options: Any) -> tuple[str, bytes]:
    """The suffix and the bytes that a pickled value gets."""
    encoder = Encoder.of(encode, [SUFFIX], **options)
    assert encoder is not None
    ((suffix, data),) = encoder({SUFFIX: pickle.dumps(value)}).items()
    return suffix, data


def read(folder: Path) -> dict[str, tuple[str, Any]]:
    """Key -> stored suffix and value of the part, as the dataset's own reader decodes it."""
    dataset = Dataset(folder, "wds")
    found = {}
    for key in dataset:
        ((name, value),) = dataset[key].items()
        assert name == SUFFIX
        (suffix,) = dataset.snapshot.read(key)
        found[key] = suffix, value
    return found


def write(folder: Path, values: Sequence[Any], protocol: int = 4) -> Inputs:
    """Pickles of some values."""
    folder.mkdir(exist_ok=True)
    inputs = Inputs(folder, [f"s{number:04d}" for number in range(len(values))], (SUFFIX,))
    for name, value in zip(inputs.names, values, strict=True):
        inputs.path(name, SUFFIX).write_bytes(pickle.dumps(value, protocol))
    return inputs


def build(inputs: Inputs, folder: Path, **options: Any) -> BuildReport:
    options = {"min_num_shards": 4, "progress": False, "encode": "auto", **options}
    return pickles_to_tars(inputs.folder, inputs.names, inputs.suffixes, folder, "wds", **options)


# ---- what comes back ----


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(VALUES, min_size=1, max_size=8), protocol=st.integers(2, 5))
def test_any_value_comes_back_through_a_build(
    values: list[Any], protocol: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Dtype, shape and every bit; of a tensor or a scalar that became `.npy` as an array."""
    folder = tmp_path_factory.mktemp("encode")
    build(write(folder / "in", values, protocol), folder / "out")
    found = [place for _, place in sorted(read(folder / "out").items())]
    for (suffix, value), original in zip(found, values, strict=True):
        if suffix == "value.npy" and isinstance(original, AS_ARRAY):
            original = np.asarray(original if isinstance(original, np.generic) else original.numpy(force=True))
        if original is None:
            continue  # a reader gives the bytes of a part without a value, encoded or not
        assert same(value, original), (suffix, value, original)


@pytest.mark.parametrize("dtype", ["float32", "int16", "bool", "complex64"])
def test_a_loader_stacks_encoded_tensors_as_it_does_pickled_ones(dtype: str, tmp_path: Path) -> None:
    """Equal batches, of the same dtype."""
    values = [torch.arange(6).reshape(2, 3).add(number).to(getattr(torch, dtype)) for number in range(12)]
    inputs = write(tmp_path / "in", values)
    for encode in (None, "auto"):
        build(inputs, tmp_path / str(encode), encode=encode)
    pickled, encoded = (
        [batch[SUFFIX] for batch in ShardLoader(tmp_path / folder, prefix="wds", batch_size=4)]
        for folder in ("None", "auto")
    )
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(pickled, encoded, strict=True))
    assert torch.equal(torch.cat(encoded), torch.stack(values))


FLOAT32 = torch.arange(6.0).reshape(2, 3)
FITS = {
    "npy": [
        FLOAT32,
        FLOAT32.T,
        FLOAT32[:, 1],
        torch.tensor(1.5),
        torch.zeros(0, 3),
        torch.zeros(4, 0)[1::2],  # begins behind its storage
        torch.zeros(2, dtype=torch.complex128),
        torch.nn.Parameter(FLOAT32),
        np.arange(3, dtype=">i4"),
        np.array("2026-11-24", "M8[D]"),
        np.array(["a", "bc"]),
        np.float32(2.5),
        np.bool_(True),
    ],
    "safetensors": [
        FLOAT32.bfloat16(),
        FLOAT32.bfloat16()[:1, 1],  # one element, with another stride
        FLOAT32.to(torch.float8_e4m3fn),
        {"b": FLOAT32, "a": torch.tensor(True), "": FLOAT32.bfloat16()},
        {"x": np.arange(3.0), "y": np.zeros((0, 2), np.uint8)},
    ],
    "json": [0, -0.0, 2**64 - 1, True, "grüße", "", [], {}, {"a": [None, {"b": 1e300}]}],
    "pyd": [
        None,
        (1, 2),
        [(1, 2)],
        {1: 2},
        {"a": {2: 3}},
        float("nan"),
        [float("inf")],
        2**64,
        "\ud83d\ude00",
        b"bytes",
        {1, 2},
        1j,
        Fraction(1, 2),  # refused: not on the safe list
        np.array([{"a": 1}], object),
        np.zeros(2, "i4,f8"),
        np.zeros(2, np.longdouble),
        np.str_("text"),
        np.datetime64("2026-11-24"),
        {"a": FLOAT32, "b": 1},
        {"a": FLOAT32, "b": np.zeros(2)},
        {"a": FLOAT32.to(torch.complex64)},
        {"__metadata__": FLOAT32},
        [FLOAT32],
    ],
}


@pytest.mark.parametrize(
    ("extension", "value"),
    [(extension, value) for extension, values in FITS.items() for value in values],
    ids=lambda value: repr(value)[:40].encode("ascii", "replace").decode(),
)
def test_auto_takes_what_gives_the_value_back_and_else_leaves_the_pickle(extension: str, value: Any) -> None:
    """The pickle itself, byte for byte."""
    suffix, data = encoded(value)
    assert suffix == f"value.{extension}"
    assert (data == pickle.dumps(value)) == (extension == "pyd")


@pytest.mark.parametrize(
    ("target", "value", "why"),
    [
        ("npy", [1], "list is neither a tensor"),
        ("npy", FLOAT32.bfloat16(), "no dtype for torch.bfloat16"),
        ("safetensors", 1, "int is not a tensor"),
        ("safetensors", {"a": 1}, "'a' in the dict is int"),
        ("safetensors", {1: FLOAT32}, "a name in it is int, not text"),
        ("json", FLOAT32, "torch.Tensor would come back as something else"),
        ("json", (1,), "tuple would come back"),
        ("json", {1: 1}, "a key in it is int, not text"),
        ("json", Fraction(1), r"fractions.Fraction.*allow=\["),
    ],
)
def test_what_does_not_become_what_was_asked_is_a_bad_sample(target: str, value: Any, why: str) -> None:
    """The error names part and type and says what to do; its catcher names the sample."""
    with pytest.raises(InputError, match=f"'value.pyd' cannot become '{target}': .*{why}.* 'auto'"):
        encoded(value, {SUFFIX: target})


def test_a_target_may_be_wider_than_what_auto_takes() -> None:
    """A single tensor or array as safetensors comes back as it was: a tensor stays one."""
    for value in (FLOAT32, FLOAT32.numpy(), {"a": FLOAT32}, {"a": FLOAT32.numpy()}, {}):
        suffix, data = encoded(value, {SUFFIX: "safetensors"})
        assert suffix == "value.safetensors"
        assert same(read_safetensors(data), value)


# ---- the bytes ----


def test_npy_is_read_by_numpy_and_its_elements_are_aligned() -> None:
    """Version 1.0, C order, elements from a multiple of 64 on, for any shape."""
    for ndim in range(20):
        array = np.arange(3.0).reshape(3, *[1] * ndim)
        data = encoded(array)[1]
        found = np.load(BytesIO(data), allow_pickle=False)
        assert data[:8] == b"\x93NUMPY\x01\x00"
        assert (len(data) - array.nbytes) % 64 == 0
        assert same(found, array)


def test_equal_values_become_equal_bytes_however_they_were_laid_out() -> None:
    """Strides, byte order, requires_grad and the protocol leave no trace."""
    equal = [FLOAT32, FLOAT32.T.contiguous().T, FLOAT32[None].expand(2, 2, 3)[1], torch.nn.Parameter(FLOAT32)]
    equal += [FLOAT32.numpy(), np.asfortranarray(FLOAT32), FLOAT32.numpy().astype(">f4")]
    assert len({encoded(value)[1] for value in equal}) == 1
    assert encoded({"a": FLOAT32.T})[1] == encoded({"a": FLOAT32.T.contiguous()})[1]


def test_safetensors_keeps_the_order_of_the_dict_and_is_read_by_the_library() -> None:
    """In the header; the elements lie aligned, widest first."""
    value = {"z": torch.tensor([True]), "a": FLOAT32, "m": FLOAT32.double(), "ü": FLOAT32.bfloat16()}
    data = encoded(value)[1]
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert list(header) == list(value)
    assert size % 8 == 0
    assert all(about["data_offsets"][0] % value[name].itemsize == 0 for name, about in header.items())
    assert same({name: load(data)[name] for name in header}, value)


def test_json_is_compact_text_as_people_read_it() -> None:
    """Golden: these bytes are in the digests of every dataset, so they must not change."""
    assert (
        encoded({"näme": ["ü", 1.5, True, 2**40], "": {}})[1] == '{"näme":["ü",1.5,true,1099511627776],"":{}}'.encode()
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of kinds of tensors that it is about to change
@pytest.mark.parametrize("write", [as_npy, as_safetensors], ids=lambda write: write.__name__)
@pytest.mark.parametrize(
    "make",
    [
        FLOAT32.to_sparse,
        lambda: FLOAT32.to("meta"),
        lambda: torch.quantize_per_tensor(FLOAT32, 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "on another device", "quantized"],
)
def test_a_tensor_that_is_not_dense_on_the_cpu_has_no_encoding(
    write: Callable[..., bytes], make: Callable[[], torch.Tensor]
) -> None:
    """Whichever of these it is."""
    tensor = make()
    with pytest.raises(UnfitError, match="not dense and on the CPU"):
        write(tensor if write is as_npy else {"a": tensor}, 1 << 20)


# ---- safety ----


class Runs:
    """Its pickle makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


class MakesAnArray:
    """Its pickle calls a function of numpy's."""

    def __reduce__(self) -> Any:
        return np.arange, (3,)


def test_nothing_runs_while_a_pickle_is_encoded(tmp_path: Path) -> None:
    """With "auto" it stays as it is; with a format it is a bad sample, whose error says how to allow it."""
    value = Runs(tmp_path / "ran")
    assert encoded(value) == (SUFFIX, pickle.dumps(value))
    with pytest.raises(InputError, match=r"posix.mkdir.*allow=\["):
        encoded(value, {SUFFIX: "npy"})
    assert not list(tmp_path.iterdir())


def test_what_is_allowed_is_encoded() -> None:
    """By name, or all of it with one warning."""
    assert encoded(MakesAnArray())[0] == SUFFIX
    assert encoded(MakesAnArray(), allow=["numpy.arange"])[0] == "value.npy"
    with pytest.warns(UserWarning, match="allow_pickle=True"):
        assert encoded(MakesAnArray(), allow_pickle=True)[0] == "value.npy"


class Fails:
    """Its pickle raises any exception."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.mark.filterwarnings("ignore:allow_pickle=True")
def test_a_pickle_that_fails_where_all_is_allowed_is_a_bad_sample_or_stays() -> None:
    """For any exception that it raises."""
    assert encoded(Fails(), allow_pickle=True)[0] == SUFFIX
    with pytest.raises(InputError, match="its pickle fails: ValueError: invalid literal"):
        encoded(Fails(), {SUFFIX: "npy"}, allow_pickle=True)


def test_a_module_that_is_missing_where_a_part_is_encoded_is_said_even_under_auto() -> None:
    """Else the bytes would depend on what a worker has installed."""
    encoder = Encoder.of("auto", None, allow=["no_such_module.make"])
    assert encoder is not None
    with pytest.raises(InputError, match="needs the module 'no_such_module'"):
        encoder({SUFFIX: b"cno_such_module\nmake\n)R."})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def doubled(depth: int) -> Any:
    value: Any = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(1 << 29),
        {"a": torch.zeros(1).expand(1 << 29)},
        doubled(40),
        CYCLE,
        nested(101),
    ],
    ids=["tensor", "dict", "doubled", "cycle", "nested"],
)
def test_a_small_pickle_does_not_become_a_huge_part(value: Any) -> None:
    """It stays as it is, and takes neither memory nor time."""
    data = pickle.dumps(value)
    encoder = Encoder.of("auto", [SUFFIX])
    assert encoder is not None
    assert encoder({SUFFIX: data}) == {SUFFIX: data}


# ---- names ----


@pytest.mark.parametrize(
    ("suffix", "encode", "expected"),
    [
        ("pyd", "auto", "json"),
        ("a.b.pkl", "auto", "a.b.json"),
        ("x.pickle", {"x.pickle": "json"}, "x.json"),
        ("x.pickle", {"x.pickle": "auto"}, "x.json"),
        ("x.PYD", "auto", "x.json"),
        ("x.pyd.gz", "auto", "x.pyd.gz"),
        ("x.cls", "auto", "x.cls"),
    ],
)
def test_only_the_last_extension_of_a_pickle_changes(suffix: str, encode: Any, expected: str) -> None:
    """`tensor.pyd` becomes `tensor.npy`; what no reader takes for a pickle stays."""
    encoder = Encoder.of(encode, [suffix])
    assert encoder is not None
    assert list(encoder({suffix: pickle.dumps(1)})) == [expected]
    assert expected in encoder.outputs(suffix)


@pytest.mark.parametrize(
    ("encode", "suffixes", "message"),
    [
        ("npy", ["x.pyd"], "encode='npy': expected \"auto\", or a dict"),
        ({}, ["x.pyd"], 'expected "auto", or a dict'),
        ({"x.pyd": "pt"}, ["x.pyd"], "expected one of npy, safetensors, json, auto"),
        ({"x.cls": "npy"}, ["x.cls"], "'x.cls', which is not a pickled part"),
        ({"y.pyd": "npy"}, ["x.pyd"], "encode= names 'y.pyd': the samples have x.pyd"),
        ({"x.pyd": "npy"}, ["x.pyd", "x.npy"], "two parts 'x.npy' of one sample"),
        ("auto", ["x.pyd", "x.pkl"], "two parts 'x.json' of one sample"),
        ("auto", ["X.pyd", "x.pkl"], "two parts 'x.json' of one sample"),
    ],
)
def test_a_wrong_encode_is_refused_before_anything_is_read(encode: Any, suffixes: list[str], message: str) -> None:
    """With what was expected."""
    with pytest.raises(CallError, match=message):
        Encoder.of(encode, suffixes)


def test_allow_without_encode_is_refused(tmp_path: Path) -> None:
    """Nothing would be unpickled: the caller meant something else."""
    with pytest.raises(CallError, match="give encode= as well"):
        build(write(tmp_path / "in", [1]), tmp_path / "out", encode=None, allow=["a.b"])


# ---- the laws of a build ----

MIXED = [torch.full((n % 3,), float(n)) if n % 4 else (n,) for n in range(24)]  # a quarter stay pickles


def everything(folder: Path) -> dict[str, bytes]:
    """Returns all objects of a build except the records with a time and a write id."""
    records = ("/commits/", "/intents/")
    return {name: data for name, data in stored(Place(str(folder))).items() if not any(map(name.__contains__, records))}


def test_a_rerun_writes_nothing_and_one_changed_input_rewrites_one_shard(tmp_path: Path) -> None:
    """Law 4."""
    inputs = write(tmp_path / "in", MIXED)
    build(inputs, tmp_path / "out")
    before = stored(Place(str(tmp_path / "out")))
    assert build(inputs, tmp_path / "out").is_new is False
    assert stored(Place(str(tmp_path / "out"))) == before
    inputs.path(inputs.names[7], SUFFIX).write_bytes(pickle.dumps({"now": "a dict"}))
    report = build(inputs, tmp_path / "out")
    assert (report.version, report.num_reused) == (2, 3)
    assert read(tmp_path / "out")["s0007"] == ("value.json", {"now": "a dict"})


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """Law 1: tars, indexes, manifests."""
    inputs = write(tmp_path / "in", MIXED)
    for folder in ("a", "b"):
        build(inputs, tmp_path / folder)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_shards_of_a_build_that_was_never_committed_are_adopted(tmp_path: Path) -> None:
    """Law 3: they are read and indexed as they are, though their parts have other suffixes and sizes than the files."""
    inputs, out = write(tmp_path / "in", MIXED), tmp_path / "out"
    build(inputs, out)
    before = everything(out)
    for record in (out / "__dray__/wds/commits").iterdir():
        record.unlink()
    for index in list((out / "__dray__/wds/index").iterdir())[:2]:
        index.unlink()
    assert build(inputs, out).num_reused == 4
    assert everything(out) == before


@pytest.mark.parametrize(
    ("encode", "theirs"),
    [({SUFFIX: "json"}, {"encode": None}), ("auto", {"encode": "auto", "values": [(1,)] * 4})],
    ids=["another suffix", "a pickle of another size"],
)
def test_a_tar_with_other_parts_is_not_adopted(encode: Any, theirs: dict[str, Any], tmp_path: Path) -> None:
    """Though its keys are the plan's."""
    inputs, out = write(tmp_path / "in", [[1.5]] * 4), tmp_path / "out"
    build(inputs, out, encode=encode, min_num_shards=1)
    for record in (out / "__dray__/wds/commits").iterdir():
        record.unlink()
    others = write(tmp_path / "others", theirs.get("values", [[1.5]] * 4))
    build(others, tmp_path / "theirs", encode=theirs["encode"], min_num_shards=1)
    (out / "wds-000000.tar").write_bytes((tmp_path / "theirs/wds-000000.tar").read_bytes())
    with pytest.raises(DamagedError, match="holds other samples than this build reserved it for"):
        build(inputs, out, encode=encode, min_num_shards=1)


def test_a_changed_encoding_rebuilds_and_says_so(tmp_path: Path) -> None:
    """There and back: what was packed under the first one is another version."""
    inputs = write(tmp_path / "in", [FLOAT32] * 8)
    reports = [build(inputs, tmp_path / "out", encode=encode) for encode in ("auto", {SUFFIX: "npy"}, None)]
    assert [(report.version, report.num_reused) for report in reports] == [(1, 0), (2, 0), (3, 0)]
    then = Snapshot.open(tmp_path / "out", "wds", version=2).manifest.recipe
    last = Last(recipe=then, source_url="x", shards=(), whole=frozenset(), table=None)
    reason = changes_of(Recipe(suffixes=(SUFFIX,), num_shards=4), "x", last)
    assert reason == "encode was {'value.pyd': 'npy'}, is None"


def test_without_encode_nothing_of_it_is_recorded(tmp_path: Path) -> None:
    """Manifests and digests of shards are those of earlier versions of dray: their datasets stay as they are."""
    build(write(tmp_path / "in", [1]), tmp_path / "out", encode=None)
    (path,) = (tmp_path / "out/__dray__/wds/manifests").glob("*.json")
    manifest = json.loads(path.read_text())
    assert not {"encode", "allow", "allow_pickle", "encoder"} & manifest["recipe"].keys()
    assert "parts" not in manifest["shards"][0]
    assert Recipe(suffixes=("a.pyd",)).content_digest() == "d5a7881c7c76b33d3333f138d57d79d0"
    digest = Recipe(suffixes=("a.pyd",), transform="v1", leaves_out_bad=True).content_digest()
    assert digest == "5a4ab57b36db8163195a68f3ec941704"


def test_a_bad_value_fails_the_build_and_repairing_it_packs_only_its_shard(tmp_path: Path) -> None:
    """The others are adopted."""
    inputs = write(tmp_path / "in", [FLOAT32 * n for n in range(20)])
    good = inputs.path(inputs.names[7], SUFFIX).read_bytes()
    inputs.path(inputs.names[7], SUFFIX).write_bytes(pickle.dumps("text"))
    with pytest.raises(InputError, match=r"'s0007'.*cannot become 'npy': str is neither a tensor"):
        build(inputs, tmp_path / "out", encode={SUFFIX: "npy"})
    inputs.path(inputs.names[7], SUFFIX).write_bytes(good)
    assert build(inputs, tmp_path / "out", encode={SUFFIX: "npy"}).num_reused == 3


def test_a_bad_value_may_be_left_out_and_is_listed(tmp_path: Path) -> None:
    """With its stage; a rerun does not look at it again."""
    inputs = write(tmp_path / "in", [FLOAT32] * 9 + ["text"])
    options: Any = {"encode": {SUFFIX: "npy"}, "on_error": "skip"}
    assert build(inputs, tmp_path / "out", **options).num_skipped == 1
    table = Snapshot.open(tmp_path / "out", "wds").left_out()
    assert table is not None
    assert table.select(["name", "stage"]).to_pylist() == [{"name": "s0009", "stage": "encode"}]
    assert build(inputs, tmp_path / "out", **options).is_new is False


def test_what_a_function_makes_is_encoded(tmp_path: Path) -> None:
    """Its pickled parts of any suffix; the others stay."""

    def make(key: str, parts: dict[str, bytes]) -> dict[str, Any]:
        value = pickle.loads(parts[SUFFIX])
        return {"double.pyd": pickle.dumps(2 * value), "label.cls": b"7", "half.pyd": value / 2}

    inputs = write(tmp_path / "in", [FLOAT32] * 3)
    build(inputs, tmp_path / "out", func_output_data=make, transform_version="1")
    found = Dataset(tmp_path / "out", "wds")["s0000"]
    assert list(found) == ["double.npy", "label.cls", "half.npy"]
    assert np.array_equal(found["double.npy"], 2 * FLOAT32.numpy())


def test_two_parts_of_a_function_that_become_one_are_a_bad_sample(tmp_path: Path) -> None:
    """Nothing is dropped in silence."""

    def make(key: str, parts: dict[str, bytes]) -> dict[str, Any]:
        return dict.fromkeys(("x.pyd", "x.pkl"), parts[SUFFIX])

    with pytest.raises(InputError, match=r"two of its parts x\.pyd, x\.pkl became the same"):
        build(write(tmp_path / "in", [1]), tmp_path / "out", func_output_data=make)


def test_the_report_says_how_many_parts_stayed_pickles_and_why(tmp_path: Path) -> None:
    """The count is of the whole version; the reason is the most frequent one among parts that this build packed."""
    values = [*MIXED, {1, 2}, Fraction(1, 2)]
    inputs, out = write(tmp_path / "in", values), tmp_path / "out"
    report = build(inputs, out)
    assert report.num_pickles == 8
    assert report.pickle_reason == "tuple would come back as something else, or not at all"
    assert str(report).endswith(f"; 8 parts stayed pickles, most often because {report.pickle_reason}")
    again = build(inputs, out)
    assert (again.num_pickles, again.pickle_reason) == (8, None)
    assert str(again).endswith("; 8 parts stayed pickles")
    inputs.path("s0001", SUFFIX).write_bytes(pickle.dumps(Fraction(1, 3)))
    changed = build(inputs, out)
    assert changed.num_pickles == 9
    assert "fractions.Fraction" in str(changed.pickle_reason) or "tuple" in str(changed.pickle_reason)


def test_what_nobody_asked_to_encode_did_not_stay_a_pickle(tmp_path: Path) -> None:
    """A part that encode does not name, or that has to become something else, is not counted."""
    inputs = write(tmp_path / "in", [FLOAT32])
    inputs = Inputs(inputs.folder, inputs.names, (SUFFIX, "other.pyd"))
    inputs.path("s0000", "other.pyd").write_bytes(pickle.dumps((1,)))
    for encode in (None, {SUFFIX: "npy"}):
        report = build(inputs, tmp_path / str(encode is None), encode=encode)
        assert (report.num_pickles, report.pickle_reason) == (0, None)
    report = build(inputs, tmp_path / "auto")
    assert str(report).endswith("; 1 part stayed a pickle, most often because tuple would come back as something "
                                "else, or not at all")  # fmt: skip


def test_a_merged_shard_counts_its_parts(tmp_path: Path) -> None:
    """What `dray ls` tells stays true after a compaction."""
    inputs = write(tmp_path / "in", MIXED)
    build(inputs, tmp_path / "out", min_num_shards=None)
    for number in range(8, 25, 8):
        names = inputs.names[:number]
        build(Inputs(inputs.folder, names, inputs.suffixes), tmp_path / "out", min_num_shards=None)
    compact(Location(Store(str(tmp_path / "out")), Layout("wds")), retention=None, progress=False)
    (counts,) = Snapshot.open(tmp_path / "out", "wds").manifest.counts()
    assert counts == {"value.npy": 18, "value.pyd": 6}
