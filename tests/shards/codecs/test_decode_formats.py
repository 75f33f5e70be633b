"""Images and safetensors, formats that dray reads beyond those of WebDataset, are decoded or refused by name."""

import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dray.shards.codecs.decode import Decoder, decode_part
from dray.shards.errors import DamagedError, RefusedError
from tests.shards.codecs.test_decode import PARTS, saved, written


def image(kind: str, mode: str = "RGB", size: tuple[int, int] = (3, 2), **options: Any) -> bytes:
    """A small image with numbered pixels."""
    width, height = size
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = (np.arange(width * height * channels) % 251).astype("u1").tobytes()
    return written(lambda f: Image.frombytes(mode, size, pixels).save(f, kind, **options))


IMAGES = {
    "jpg": image("JPEG"),
    "photo.jpeg": image("JPEG", "L"),
    "png": image("PNG"),
    "mask.png": image("PNG", "L"),
    "clear.png": image("PNG", "RGBA"),
    "two.png": image("PNG", "LA"),
    "webp": image("WEBP", lossless=True),
    "bmp": image("BMP"),
    "gif": image("GIF", "L"),
    "tiff": image("TIFF"),
    "ppm": image("PPM"),
}


@pytest.mark.parametrize("suffix", IMAGES)
def test_an_image_is_decoded_as_webdataset_decodes_rgb8(suffix: str) -> None:
    """uint8, (height, width, 3), writable."""
    sample = {"__key__": "a", suffix: IMAGES[suffix]}
    expected = next(iter(wds.WebLoader([sample], batch_size=None).decode("rgb8")))[suffix]
    found = decode_part(suffix, memoryview(IMAGES[suffix]))
    assert found.dtype == np.uint8
    assert found.shape == (2, 3, 3)
    assert found.flags.writeable
    assert found.tolist() == expected.tolist()


def test_an_image_of_another_format_is_not_opened() -> None:
    """PostScript in disguise starts no program."""
    with pytest.raises(DamagedError, match=r"part 'png'.*cannot identify"):
        decode_part("png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


def test_an_image_of_too_many_pixels_is_damaged() -> None:
    """A decompression bomb is refused by its header, before its pixels are decoded."""
    with pytest.raises(DamagedError, match="1000 x 1000 pixels grows"):
        decode_part("png", image("PNG", "L", (1000, 1000)), max_bytes=1_000_000)
    data = bytearray(image("PNG"))
    data[16:24] = struct.pack(">II", 1 << 20, 1 << 20)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(DamagedError, match="DecompressionBomb"):
        decode_part("png", bytes(data))


TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1, 2], dtype=torch.bfloat16),
    "c": torch.zeros(0, 2),
}
ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3, "u2")}


def test_safetensors_are_a_dict_of_tensors() -> None:
    """Files of other programs are read, whatever their metadata contain."""
    for metadata in (None, {"format": "pt"}):
        found = decode_part("x.safetensors", memoryview(safetensors.torch.save(TENSORS, metadata)))
        assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
            name: (value.dtype, value.tolist()) for name, value in TENSORS.items()
        }


def test_safetensors_of_a_build_are_what_they_were() -> None:
    """A note in the file distinguishes a tensor, an array and a dict of arrays from a dict of tensors."""
    tensor = decode_part("safetensors", safetensors.torch.save({"tensor": TENSORS["b"]}, {"dray": "tensor"}))
    assert torch.equal(tensor, TENSORS["b"])
    array = decode_part("safetensors", safetensors.numpy.save({"array": ARRAYS["a"]}, {"dray": "array"}))
    assert array.tolist() == ARRAYS["a"].tolist()
    arrays = decode_part("safetensors", safetensors.numpy.save(ARRAYS, {"dray": "arrays"}))
    assert {name: (type(value), value.dtype) for name, value in arrays.items()} == {
        name: (np.ndarray, value.dtype) for name, value in ARRAYS.items()
    }
    array += 1
    tensor += 1


def header(content_of: Any, content: bytes = bytes(8)) -> bytes:
    """A safetensors file with the given header."""
    text = json.dumps(content_of).encode() if not isinstance(content_of, bytes) else content_of
    return struct.pack("<Q", len(text)) + text + content


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES = {
    "shape": header({"a": entry([3], 0, 8)}),
    "wrapping shape": header({"a": entry([1 << 62, 4], 0, 8)}),
    "negative shape": header({"a": entry([-2], 0, 8)}),
    "dtype": header({"a": entry([2], 0, 8, "F64")}),
    "unknown dtype": header({"a": entry([2], 0, 8, "O")}),
    "end": header({"a": entry([4], 0, 16)}),
    "start": header({"a": entry([1], 4, 8)}),
    "overlap": header({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}),
    "bytes left": header({"a": entry([1], 0, 4)}),
    "reversed": header({"a": entry([2], 8, 0)}),
    "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "negative header": struct.pack("<q", -1) + b"{}",
    "no JSON": header(b"{'a': 1}"),
    "list": header([]),
    "deep JSON": header(b"[" * 100_000),
    "unknown note": header({"__metadata__": {"dray": "objects"}, "a": entry([2], 0, 8)}),
    "other name": header({"__metadata__": {"dray": "tensor"}, "a": entry([2], 0, 8)}),
    "note that is not text": header({"__metadata__": {"dray": ["tensor"]}, "a": entry([2], 0, 8)}),
    "cut short": safetensors.torch.save(TENSORS)[:-1],
    "a byte more": safetensors.torch.save(TENSORS) + b"x",
    "nothing": b"",
}


@pytest.mark.parametrize("case", LIES)
def test_inconsistent_safetensors_are_damaged(case: str) -> None:
    """Sizes, offsets, dtypes and notes are checked against each other and against the bytes."""
    with pytest.raises(DamagedError, match=r"part 'x\.safetensors'"):
        decode_part("x.safetensors", LIES[case])


WHOLE = PARTS | IMAGES | {"safetensors": safetensors.torch.save(TENSORS), "pth": saved({"a": torch.ones(2)})}


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_garbage_and_halves_are_a_value_or_a_named_refusal(data: st.DataObject) -> None:
    """Law: any bytes under any known extension give a value, or an error that names shard, key and suffix."""
    suffix = data.draw(st.sampled_from(sorted(WHOLE)))
    good = bytearray(WHOLE[suffix][: data.draw(st.integers(0, len(WHOLE[suffix])))])
    for _ in range(data.draw(st.integers(0, 3)) if good else 0):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    sample = {"__url__": "train-000001.tar", "__key__": "cat7", suffix: bytes(good)}
    try:
        Decoder()(sample)
    except (DamagedError, RefusedError) as exc:
        assert f"train-000001.tar, key 'cat7', suffix {suffix!r}" in str(exc)  # noqa: PT017
    except ModuleNotFoundError as exc:
        assert suffix in ("mp", "msg") and "msgpack" in str(exc)  # noqa: PT017, PT018
