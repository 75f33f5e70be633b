"""Parts are decoded as WebDataset decodes them, but safely; errors name shard, key and suffix."""

import gzip
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from webdataset import autodecode, tenbin

from dray.shards.codecs.decode import Decoder, decode_part
from dray.shards.codecs.encode import FORMATS
from dray.shards.errors import CallError, DamagedError, RefusedError
from dray.shards.parts import TARGETS


def written(write: Callable[..., None], *values: Any, **options: Any) -> bytes:
    """The bytes that `write` writes to a file."""
    stream = io.BytesIO()
    write(stream, *values, **options)
    return stream.getvalue()


def saved(value: Any) -> bytes:
    """The bytes of torch.save."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


PARTS = {
    "txt": "grüße".encode(),
    "text": b"a",
    "transcript": b"a",
    "cls": b"5\n",
    "cls2": b"-5",
    "index": b"0",
    "inx": b" 7",
    "id": b"12345678901234567890",
    "class": b"5",
    "count": b"5",
    "json": b'{"a": [1, null]}',
    "null.json": b"null",
    "jsn": b"[1.5]",
    "x.pyd": pickle.dumps({"a": [1, 2.5, "x"]}),
    "none.pyd": pickle.dumps(None),
    "pickle": pickle.dumps(np.float32(2)),
    "pkl": pickle.dumps((1, b"x"), 0),
    "PYD": pickle.dumps(1),
    "pt": saved(torch.ones(2)),
    "mydata.pt": pickle.dumps(torch.ones(2)),
    "npy": written(np.save, np.arange(6, dtype=">i2").reshape(2, 3)),
    "npz": written(np.savez, a=np.arange(3), b=np.array("x")),
    "packed.npz": written(np.savez_compressed, a=np.zeros(1000)),
    "ten": bytes(tenbin.encode_buffer([np.arange(3, dtype="f4"), np.ones((2, 2), "i8")])),
    "tb": bytes(tenbin.encode_buffer([np.arange(3, dtype="u1")])),
    "mp": b"\x82\xa1a\x01\xa1b\x93\x01\x02\x03",
    "msg": b"\xc4\x01x",
    "msgpack": b"\x01",
    "bin": b"\x00\x01",
    "txt.gz": gzip.compress(b"text"),
    "two.txt.gz": gzip.compress(b"te") + gzip.compress(b"xt"),
    "x.pyd.gz": gzip.compress(pickle.dumps([1])),
    "bin.gz": gzip.compress(b"\x00"),
    "gz": gzip.compress(b"\x00"),
    "txt.gz.gz": gzip.compress(gzip.compress(b"text")),
}


@pytest.mark.parametrize("suffix", PARTS)
def test_a_part_is_decoded_as_webdataset_decodes_it(suffix: str) -> None:
    """Values and types equal those of `WebDataset(...).decode()`, for its extensions and some others."""
    if suffix in ("mp", "msg"):
        pytest.importorskip("msgpack")
    sample = {"__key__": "a", suffix: PARTS[suffix]}
    expected = next(iter(wds.WebLoader([sample], batch_size=None).decode()))[suffix]
    found = decode_part(suffix, PARTS[suffix])
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)


@pytest.mark.parametrize("suffix", PARTS)
def test_a_view_of_bytes_is_decoded_as_the_bytes(suffix: str) -> None:
    """Parts of a mapped shard are decoded from a memoryview; unknown extensions are returned as bytes."""
    if suffix in ("mp", "msg"):
        pytest.importorskip("msgpack")
    found, expected = (Decoder()({suffix: data})[suffix] for data in (memoryview(PARTS[suffix]), PARTS[suffix]))
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)


def test_every_extension_of_webdataset_is_known() -> None:
    """Every decoder of WebDataset has its counterpart; this fails if WebDataset adds one."""
    tested = {suffix.rpartition(".")[2] for suffix in PARTS} | {"pth", "cbor"}
    assert set(autodecode.decoders) <= tested


@pytest.mark.parametrize("new", [True, False])
def test_a_torch_file_is_read(new: bool) -> None:
    """`.pth` files in both formats of torch.save are read."""
    data = written(lambda f: torch.save({"a": torch.ones(2)}, f, _use_new_zipfile_serialization=new))
    assert torch.equal(decode_part("x.pth", data)["a"], torch.ones(2))


@pytest.mark.parametrize("suffix", ["x.pyd", "x.pickle", "x.pkl", "x.pth"])
def test_an_allowed_class_is_read_and_others_are_refused_by_name(suffix: str) -> None:
    """`allow` admits one class; without it the error names the class and both keywords."""
    value = {"a": Fraction(1, 3)}
    data = saved(value) if suffix == "x.pth" else pickle.dumps(value)
    with pytest.raises(RefusedError, match=r'fractions\.Fraction.*allow=\["fractions\.Fraction"\].*allow_pickle=True'):
        decode_part(suffix, data)
    assert decode_part(suffix, data, allow=["fractions.Fraction"]) == value
    assert decode_part(suffix, data, allow_pickle=True) == value


class Evil:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("suffix", ["npy", "npz", "npy.gz", "pth", "pyd.gz", "pyd"])
def test_code_in_a_part_is_refused(suffix: str) -> None:
    """In every format that can contain a pickle, its code does not run."""
    hidden = np.array([Evil()], dtype=object)
    write: dict[str, Callable[..., None]] = {
        "npy": np.save,
        "npz": np.savez,
        "pth": lambda f, v: torch.save(v[0], f),
        "pyd": lambda f, v: pickle.dump(v[0], f),
    }
    data = written(write[suffix.removesuffix(".gz")], hidden)
    with pytest.raises(RefusedError):
        decode_part(suffix, gzip.compress(data) if suffix.endswith(".gz") else data)


PNG = written(lambda f: Image.effect_noise((8, 8), 50).save(f, "PNG"))
DAMAGED = {
    "txt": b"\xff",
    "cls": b"five",
    "json": b"{",
    "deep.json": b"[" * 100_000,
    "npy": PARTS["npy"][:-1],
    "huge.npy": written(np.save, np.zeros(2)).replace(b"(2,), ", b"(1" + b"0" * 14 + b",), "),
    "npz": PARTS["npz"][:-30],
    "npy.npz": PARTS["npy"],
    "pyd.npz": pickle.dumps(1),
    "pth": saved(torch.ones(2))[:-30],
    "empty.pth": b"",
    "ten": PARTS["ten"][:-64],
    "circular.ten": b"~TenBin~" + (-80 & (2**64 - 1)).to_bytes(8, "little") + bytes(64),
    "msg": b"\xdd\xff\xff\xff\xff",
    "txt.gz": PARTS["txt.gz"][:-4],
    "plain.gz": b"not compressed",
    "jpg": b"\xff\xd8",
    "cut.png": PNG[: len(PNG) // 2],
    "text.webp": b"hello",
    "safetensors": b"\x02" + bytes(7) + b"{",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("suffix", DAMAGED)
def test_a_damaged_part_is_named(suffix: str) -> None:
    """Every failure is an error of dray that names shard, key and suffix and keeps its cause."""
    sample = {"__url__": "s3://bucket/train-000001.tar", "__key__": "cat7", suffix: DAMAGED[suffix]}
    with pytest.raises((DamagedError, RefusedError), match="s3://bucket/train-000001.tar.*cat7.*" + suffix) as found:
        Decoder()(sample)
    assert found.value.__cause__ is not None


def test_what_grows_too_far_is_damaged() -> None:
    """Compressed parts and archives may not grow past the maximum size."""
    zeros = written(np.savez_compressed, np.zeros(100_000))
    for suffix, data in {
        "bin.gz": gzip.compress(bytes(2_000_000)),
        "npz": zeros,
        "pth": saved(torch.zeros(100_000)),
    }.items():
        with pytest.raises(DamagedError, match="grows"):
            decode_part(suffix, data, max_bytes=100_000)


def test_an_archive_that_announces_too_little_is_damaged() -> None:
    """A member that announces less than it contains is read no further than that."""
    data = bytearray(written(np.savez_compressed, np.zeros(100_000)))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = archive.infolist()[0].file_size.to_bytes(4, "little")
    with pytest.raises(DamagedError):
        decode_part("npz", bytes(data.replace(size, (200).to_bytes(4, "little"))), max_bytes=100_000)


# ---- decoders of the caller ----


def test_a_decoder_of_the_caller_wins_over_the_table() -> None:
    """The longest suffix that fits wins; parts without a decoder use the built-in formats."""
    decoders = {"npy": lambda data: "any", ".tensor.npy": lambda data: "tensor", "mine": bytes.decode}
    sample = {
        "npy": b"",
        "a.npy": b"",
        "tensor.npy": b"",
        "b.tensor.npy": b"",
        "xtensor.npy": b"",
        "mine": b"x",
        "id": b"3",
    }
    assert list(Decoder(decoders=decoders)(sample).values()) == ["any", "any", "tensor", "tensor", "any", "x", 3]


def test_a_decoder_of_the_caller_gets_what_was_compressed() -> None:
    """Unless its name includes the compressed suffix."""
    packed = gzip.compress(b"x")
    assert decode_part("a.mine.gz", packed, decoders={"mine": lambda data: data + b"!"}) == b"x!"
    assert decode_part("a.mine.gz", memoryview(packed), decoders={"mine.gz": bytes}) == packed
    with pytest.raises(DamagedError):
        decode_part("a.mine.gz", packed[:-2], decoders={"mine": bytes})


def test_what_a_decoder_of_the_caller_gives_is_the_value() -> None:
    """Also None."""
    assert decode_part("mine", b"x", decoders={"mine": lambda data: None}) is None


def test_what_a_decoder_of_the_caller_raises_names_the_part() -> None:
    """DamagedError with shard, key, suffix and the decoder's name; the cause is kept."""
    sample = {"__url__": "train-000001.tar", "__key__": "cat7", "a.mine": b"x"}
    with pytest.raises(DamagedError, match=r"train-000001\.tar.*cat7.*a\.mine.*decoders\['mine'\].*KeyError") as found:
        Decoder(decoders={"mine": lambda data: {}[data]})(sample)
    assert isinstance(found.value.__cause__, DamagedError)
    assert isinstance(found.value.__cause__.__cause__, KeyError)


def test_decoders_of_the_caller_reach_workers() -> None:
    """Lambdas too, also when pickled a second time."""
    decoder = Decoder(decoders={"mine": lambda data: len(data)})
    for _ in range(2):
        decoder = pickle.loads(pickle.dumps(decoder))
    assert decoder({"a.mine": b"abc"}) == {"a.mine": 3}


@pytest.mark.parametrize("decoders", [["npy"], {"npy": 3}, {"": bytes}, {3: bytes}], ids=repr)
def test_decoders_are_functions_by_suffix(decoders: Any) -> None:
    """Anything else is refused when the decoder is created."""
    with pytest.raises(CallError, match="functions by suffix"):
        Decoder(decoders=decoders)


# ---- whole samples ----


def test_a_sample_is_decoded_part_by_part() -> None:
    """Parts are decoded; key, URL and other metadata are kept as text."""
    sample = {
        "__key__": "a",
        "__url__": "u",
        "__note__": b"n",
        "x.pyd": pickle.dumps([1]),
        "json": json.dumps(2).encode(),
    }
    assert Decoder()(sample) == {"__key__": "a", "__url__": "u", "__note__": "n", "x.pyd": [1], "json": 2}


def test_a_refusal_names_shard_key_suffix_and_the_way_out() -> None:
    """The message says where the part is and what is wrong."""
    sample = {"__key__": "cat7", "__url__": "train-000001.tar", "x.pyd": pickle.dumps(Fraction(1, 3))}
    with pytest.raises(RefusedError, match=r'train-000001\.tar.*cat7.*x\.pyd.*fractions\.Fraction.*allow=\["fra'):
        Decoder()(sample)


def test_a_part_that_is_no_bytes_is_damaged() -> None:
    """Decoding twice is an error, as in WebDataset."""
    with pytest.raises(DamagedError, match=r"key 'a', suffix 'json'.*dict"):
        Decoder()({"__key__": "a", "json": {}})


def test_a_decoder_pickles_with_what_it_allows() -> None:
    """Worker processes get the same decoder."""
    decoder = pickle.loads(pickle.dumps(Decoder(allow=["fractions.Fraction"])))
    assert decoder == Decoder(allow=("fractions.Fraction",))
    assert decoder({"pyd": pickle.dumps(Fraction(1, 3))}) == {"pyd": Fraction(1, 3)}


def test_allow_pickle_warns_once_a_decoder() -> None:
    """The warning is given when a decoder is created, not in every worker or for every part."""
    with pytest.warns(UserWarning, match="run any code") as caught:
        decoder = Decoder(allow_pickle=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pickle.loads(pickle.dumps(decoder))({"pyd": pickle.dumps(Fraction(1))}) == {"pyd": 1}


def test_a_decoder_refuses_a_lone_name() -> None:
    """A string in place of a list is refused at once."""
    with pytest.raises(CallError, match="full names"):
        Decoder(allow="fractions.Fraction")


def test_every_format_that_encodes_is_a_target() -> None:
    """`shards/parts.py` repeats the names, because the formats load torch."""
    assert set(TARGETS) == set(FORMATS)
