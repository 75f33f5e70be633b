"""The values of a sample's fields as parts: under which suffix a field is stored, and as which bytes."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from dray.shards.codecs.json_text import as_json
from dray.shards.codecs.unfit import UnfitError
from dray.shards.errors import CallError, InputError
from dray.shards.layout import check_suffixes
from dray.shards.parts import is_pickled, stem_of
from dray.shards.tar import MAX_SHARD_BYTES

_check_names = lru_cache(1024)(check_suffixes)  # samples of a dataset share few sets of names
_ARRAY_FORMATS = ("npy", "safetensors")
_NUMBERS = ("cls", "cls2", "index", "inx", "id")  # suffixes that readers decode as an integer
_TEXT = ("txt", "text", "transcript")
_OTHERS = ("json", "jsn", "npz", "pth", "ten", "tb", "tenbin", "mp", "msg", "msgpack", "cbor")
_IMAGES = ("jpg", "jpeg", "png", "ppm", "pgm", "pbm", "pnm", "tif", "tiff")
_WRITABLE = frozenset((*_ARRAY_FORMATS, *_NUMBERS, *_TEXT, *_OTHERS, *_IMAGES))  # extensions that say how to encode


def encode_sample(
    fields: Mapping[str, Any], *, keep_pickles: bool = False, renamed: dict[str, str] | None = None
) -> dict[str, bytes]:
    """Returns the parts of a sample: suffix -> bytes, in the order of its fields, without those that are None.

    Bytes are stored as they are, under the name of their field. Another value is stored as the field's extension says.
    A field without such an extension gets one by the type of its value: arrays and tensors `.npy`, dicts of them
    `.safetensors`, text `.txt`, other plain values `.json`. The extension of a pickled field, such as `tensor.pyd`, is
    replaced in the same way, so that nothing is pickled.

    Args:
        fields: Field -> value, without `__key__`.
        keep_pickles: Pickle the values of pickled fields instead.
        renamed: Gets field -> suffix for each field that is stored under another suffix than its name.

    Raises:
        InputError: There is no field, a name is not a suffix, two fields get the same suffix, or a value cannot be
            stored; names field and type.
    """
    parts: dict[str, bytes] = {}
    try:
        for field, value in fields.items():
            if value is None:
                continue
            suffix, data = encode_field(field, value, keep_pickles=keep_pickles)
            if suffix != field and renamed is not None:
                renamed[field] = suffix
            if suffix in parts:
                raise CallError(f"two fields would be stored as {suffix!r}: rename one of {', '.join(fields)}")
            parts[suffix] = data
        _check_names(tuple(parts))
    except (TypeError, ValueError) as exc:
        raise InputError(str(exc)) from exc
    return parts


def encode_field(field: str, value: Any, *, keep_pickles: bool = False) -> tuple[str, bytes]:
    """Returns the suffix and the bytes of one field of a sample; see `encode_sample`.

    Raises:
        CallError: The value cannot be stored; names field and type.
    """
    if isinstance(value, np.memmap):  # an array of a file, whose elements are stored
        value = np.asarray(value)
    suffix = field if is_pickled(field) and keep_pickles else stored_suffix(field, value)
    return suffix, _strictly(suffix, value)


def stored_suffix(field: str, value: Any) -> str:
    """Returns the suffix under which a field with this value is stored; see `encode_sample`."""
    if isinstance(value, bytes | bytearray | memoryview):
        return field
    if is_pickled(field):
        return stem_of(field) + ("json" if isinstance(value, str) else _extension_of(value))
    extension = field.rpartition(".")[2].lower()
    is_fit = extension in _WRITABLE and ("." in field or _may_hold(extension, value))
    return field if is_fit else f"{field}.{_extension_of(value)}"


def _may_hold(extension: str, value: Any) -> bool:
    """Whether a field's bare name, such as `id` or `text`, says how its value is stored."""
    if extension in _NUMBERS:
        return _extension_of(value) == "json" and not isinstance(value, bool | float | list | dict)
    return extension not in _TEXT or isinstance(value, str)


def _extension_of(value: Any) -> str:
    if isinstance(value, str):
        return "txt"
    if getattr(value, "ndim", None) == 0 or isinstance(value, int | float | bool | list):
        return "json"
    if isinstance(value, np.ndarray):
        return "npy"
    if isinstance(value, dict) and isinstance(next(iter(value.values()), None), str | int | float | list | dict | None):
        return "json"
    from dray.shards.codecs.encode import format_of  # loads torch

    return format_of(value)


def _strictly(suffix: str, value: Any) -> bytes:
    """Returns a part that reads back as the same value; JSON handlers would change tuples and NaN silently."""
    if suffix.rpartition(".")[2].lower() != "json" or isinstance(value, bytes | bytearray | memoryview):
        return encode_value(suffix, value)
    try:
        return as_json(value.item() if getattr(value, "ndim", None) == 0 else value, MAX_SHARD_BYTES)
    except UnfitError as exc:
        raise CallError(f"part {suffix!r} is {_type_name(value)}, which .json cannot hold ({exc})") from exc


def encode_value(suffix: str, value: Any) -> bytes:
    """Returns bytes as they are, and other values as their suffix stores them.

    Raises:
        CallError: The suffix cannot store it; names suffix and type.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    extension = suffix.rpartition(".")[2].lower()
    try:
        return _written(extension, suffix, value)
    except Exception as exc:
        raise CallError(
            f"part {suffix!r} is {_type_name(value)}, which .{extension} cannot hold ({exc}): return bytes, or an "
            "array or tensor for .npy, a dict of them for .safetensors, plain values for .json, an integer for .cls, "
            "text for .txt, anything for .pyd"
        ) from exc


def _written(extension: str, suffix: str, value: Any) -> bytes:
    if extension in _ARRAY_FORMATS:
        from dray.shards.codecs.encode import FORMATS  # loads torch

        return FORMATS[extension](value, MAX_SHARD_BYTES)
    if not is_pickled(suffix) and getattr(value, "ndim", None) == 0:
        value = value.item()  # a numpy or torch scalar's text differs from the number's
    if extension in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise TypeError("expected an integer")
    from webdataset.writer import default_handlers, encode_based_on_extension1  # slow to import, rarely needed

    return bytes(encode_based_on_extension1(value, suffix, default_handlers))


def _type_name(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"{type(value).__module__}.{type(value).__qualname__}{'' if dtype is None else f' of {dtype}'}"
