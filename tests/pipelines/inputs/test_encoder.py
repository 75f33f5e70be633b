"""Encoding pickled parts while they are packed: what comes back, and the laws of a build with it."""

import json
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
from dray.pipelines.inputs.encoder import Encoder
from dray.shards import CallError, InputError
from dray.shards.codecs.npy import as_npy
from dray.shards.codecs.safetensors import as_safetensors
from dray.shards.codecs.unfit import UnfitError
from tests.conftest import Inputs
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
