"""From a part's bytes to its value, by the last extension of its suffix: what WebDataset's `.decode()` gives, safely.

The table is WebDataset's: pickles, numpy, text, numbers, JSON, msgpack, CBOR, tenbin, `.pth`, and `.gz` around any of
them; and, beyond it, `.safetensors` and images (as its `.decode("rgb8")`). An extension that is not in it leaves the
bytes as they are (so does a value of None, as in WebDataset). A caller's own decoders come before the table.
Pickles go through the allow-list unpickler, `.pth` through torch's, and compressed parts may not grow past 4 GiB.
"""

import gzip
import importlib
import io
import json
import pickle
import pkgutil
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import cloudpickle
import numpy as np
import torch
from webdataset import tenbin

from dray.shards.codecs.images import IMAGE_EXTENSIONS, read_image
from dray.shards.codecs.pickles import unpickle
from dray.shards.codecs.pickles.stand_ins import MAX_BYTES
from dray.shards.codecs.safetensors import read_safetensors
from dray.shards.errors import CallError, DamagedError, RefusedError

Decoders = Mapping[str, Callable[[bytes], Any]]  # by suffix

_CHUNK_BYTES = 1 << 20


def decode_part(
    suffix: str,
    data: bytes | memoryview,
    *,
    allow: Collection[str] = (),
    allow_pickle: bool = False,
    max_bytes: int = MAX_BYTES,
    decoders: Decoders = MappingProxyType({}),
) -> Any:
    """The value of a part, by the last extension of `suffix`; the bytes themselves where the extension is unknown.

    Args:
        suffix: The part's suffix in lower case, with or without a leading dot: `tensor.pyd`, `json.gz`.
        data: The part's bytes.
        allow: Full names that a pickle may use besides the safe list.
        allow_pickle: Let pickles run any code.
        max_bytes: What a compressed part, or the pixels of an image, may grow to.
        decoders: Functions of the caller, by suffix in lower case, from the part's bytes to its value. They come before
            the table, and of several that fit the longest counts: `tensor.npy` before `npy`.

    Raises:
        RefusedError: The part holds, or claims to hold, something that is not on the safe list.
        DamagedError: The part is not what its extension says, or one of `decoders` failed.
        ModuleNotFoundError: Its format needs a package that is not installed.
    """
    if decoders and (own := _longest(decoders, suffix)):
        return _by_own(own, decoders[own], data)
    try:
        packed, (suffix, data) = suffix, _gunzip(f".{suffix}", data, max_bytes)
        if decoders and packed.endswith(".gz") and (own := _longest(decoders, suffix)):
            return _by_own(own, decoders[own], data)
        decode = _DECODERS.get(suffix.rpartition(".")[2])
        if decode is not _pickle:
            data = bytes(data)
        value = None if decode is None else decode(data, _Trust(unpickle.check_allow(allow), allow_pickle, max_bytes))
    except (RefusedError, CallError, DamagedError, ModuleNotFoundError):
        raise
    except Exception as exc:
        raise DamagedError(f"part {suffix!r} is not what its extension says: {exc!r:.200}") from exc
    return bytes(data) if value is None else value


def _longest(decoders: Mapping[str, Any], suffix: str) -> str | None:
    """The longest of the names, which are lower-case, that the suffix is or ends in after a dot."""
    suffix = suffix.lstrip(".").lower()
    while suffix not in decoders:
        _, dot, suffix = suffix.partition(".")
        if not dot:
            return None
    return suffix


def _by_own(name: str, decode: Callable[[bytes], Any], data: bytes | memoryview) -> Any:
    try:
        return decode(bytes(data))
    except (RefusedError, DamagedError):
        raise
    except Exception as exc:
        raise DamagedError(f"its decoder, decoders[{name!r}], failed: {exc!r:.200}") from exc


class _Functions(dict[str, Callable[[bytes], Any]]):
    """Decoders that cross to worker processes as cloudpickle writes them, lambdas too."""

    def __reduce__(self) -> Any:
        return _functions, (cloudpickle.dumps(dict(self)),)


def _functions(pickled: bytes) -> _Functions:
    return _Functions(cloudpickle.loads(pickled))


def _check_decoders(decoders: Decoders) -> _Functions:
    if not isinstance(decoders, Mapping) or not all(
        isinstance(name, str) and name and callable(decode) for name, decode in decoders.items()
    ):
        raise CallError(f"decoders takes functions by suffix, such as {{'wav': read_wav}}; got {decoders!r:.200}")
    found = _Functions({name.lstrip(".").lower(): decode for name, decode in decoders.items()})
    if len(found) < len(decoders):
        raise CallError(f"decoders: names compare without case, and two of {', '.join(decoders)} are the same")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Decodes a whole sample; it pickles, so that worker processes can have it."""

    allow: Collection[str] = ()
    """Full names (`pkg.module.Class`) that pickles may use besides the safe list."""
    allow_pickle: bool = False
    """Let pickles run any code: only for data that you made yourself."""
    decoders: Decoders = field(default_factory=dict, hash=False)
    """Functions of your own, by suffix, from a part's bytes to its value; they come before the table."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "allow", unpickle.check_allow(self.allow))
        object.__setattr__(self, "decoders", _check_decoders(self.decoders))
        if self.allow_pickle:
            warnings.warn("allow_pickle=True: pickled parts run any code that they name", stacklevel=3)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with every part decoded; entries whose name begins with two underscores stay, as text.

        Raises:
            RefusedError: A part holds something that is not on the safe list; the message names shard, key and suffix.
            DamagedError: A part is not what its extension says; the message names shard, key and suffix.
        """
        return {name: self._decode(sample, name, value) for name, value in sample.items()}

    def is_own(self, suffix: str) -> bool:
        """Whether a decoder of the user's reads parts of that suffix."""
        return bool(self.decoders) and _longest(self.decoders, suffix) is not None

    def part(self, suffix: str, data: bytes | memoryview) -> Any:
        """The value of one part; see `decode_part`. Suffixes compare without case."""
        return decode_part(
            suffix.lower(), data, allow=self.allow, allow_pickle=self.allow_pickle, decoders=self.decoders
        )

    def _decode(self, sample: Mapping[str, Any], name: str, value: Any) -> Any:
        try:
            if name.startswith("__"):
                return _note(value)
            if not isinstance(value, bytes | memoryview):
                raise DamagedError(f"expected bytes, found {type(value).__qualname__}")
            return self.part(name, value)
        except RefusedError as exc:
            raise RefusedError(f"{_place(sample, name)}: {exc}") from exc
        except DamagedError as exc:
            raise DamagedError(f"{_place(sample, name)}: {exc}") from exc


def _note(value: Any) -> Any:
    """An entry that is no part: bytes become text where they are UTF-8."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _place(sample: Mapping[str, Any], name: str) -> str:
    return f"shard {sample.get('__url__')!r}, key {sample.get('__key__')!r}, suffix {name!r}"


@dataclass(frozen=True, slots=True)
class _Trust:
    """What a decoder may do with the bytes that it gets."""

    allow: frozenset[str]
    allow_pickle: bool
    max_bytes: int


def _gunzip(suffix: str, data: bytes | memoryview, max_bytes: int) -> tuple[str, bytes | memoryview]:
    """Suffix and bytes without their compression, if they have one."""
    if not suffix.endswith(".gz"):
        return suffix, data
    content = bytearray()
    with gzip.open(io.BytesIO(data)) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            content += chunk
            if len(content) > max_bytes:
                raise ValueError(f"it grows past {max_bytes} bytes when decompressed")
    return suffix.removesuffix(".gz"), bytes(content)


def _text(data: bytes, _: _Trust) -> str:
    return data.decode("utf-8")


def _number(data: bytes, _: _Trust) -> int:
    return int(data)


def _json(data: bytes, _: _Trust) -> Any:
    return json.loads(data)


def _pickle(data: bytes | memoryview, trust: _Trust) -> Any:
    return unpickle.loads(data, allow=trust.allow, allow_pickle=trust.allow_pickle)


_REFUSED_BY_TORCH = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")


def _torch_file(data: bytes, trust: _Trust) -> Any:
    """What torch.save wrote, on the CPU; allowed names count for this call alone."""
    if trust.allow_pickle:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    if zipfile.is_zipfile(io.BytesIO(data)):
        _check_zip(data, trust.max_bytes)
    known = [pkgutil.resolve_name(name) for name in sorted(trust.allow)]
    try:
        with torch.serialization.safe_globals(known) if known else nullcontext():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        refused = _REFUSED_BY_TORCH.search(str(exc))
        if refused is None:
            raise RefusedError(f"torch reads only tensors and plain values here: {exc!s:.200}") from exc
        raise unpickle.refusal(refused[1]) from exc


def _check_zip(data: bytes, max_bytes: int) -> None:
    """Refuse an archive whose members would grow past `max_bytes`; no reader gives more than a member announces."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > max_bytes:
        raise ValueError(f"it grows to {total} bytes when decompressed; at most {max_bytes} are read")


def _npy(data: bytes, _: _Trust) -> Any:
    return _without_objects(lambda: np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))


def _npz(data: bytes, trust: _Trust) -> Any:
    _check_zip(data, trust.max_bytes)
    return _without_objects(lambda: dict(np.load(io.BytesIO(data), allow_pickle=False)))


def _without_objects(read: Callable[[], Any]) -> Any:
    """What `read` gives; RefusedError where numpy would have to unpickle an array of objects."""
    try:
        return read()
    except ValueError as exc:
        if "allow_pickle" not in str(exc):
            raise
        raise RefusedError("an array of objects, which numpy would unpickle; write it as .pyd instead") from exc


def _safetensors(data: bytes, _: _Trust) -> Any:
    return read_safetensors(data)


def _image(data: bytes, trust: _Trust) -> Any:
    return read_image(data, trust.max_bytes)


def _msgpack(data: bytes, _: _Trust) -> Any:
    return importlib.import_module("msgpack").unpackb(data)


def _cbor(data: bytes, _: _Trust) -> Any:
    return importlib.import_module("cbor").loads(data)


def _tenbin(data: bytes, _: _Trust) -> Any:
    """A list of arrays; lengths are checked first, as a negative one would send WebDataset's reader in circles."""
    offset = 0
    while offset < len(data):
        (num_bytes,) = struct.unpack_from("<q", data, offset + 8)
        offset += 16 + (num_bytes + 63) // 64 * 64
        if num_bytes < 0 or offset > len(data):
            raise ValueError(f"a chunk of {num_bytes} bytes does not fit")
    return tenbin.decode_buffer(data)


_DECODERS: dict[str, Callable[[Any, _Trust], Any]] = {
    **dict.fromkeys(("txt", "text", "transcript"), _text),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), _number),
    **dict.fromkeys(("json", "jsn"), _json),
    **dict.fromkeys(("pyd", "pickle", "pkl"), _pickle),
    **dict.fromkeys(("ten", "tb"), _tenbin),
    **dict.fromkeys(("mp", "msg"), _msgpack),
    **dict.fromkeys(IMAGE_EXTENSIONS, _image),
    "safetensors": _safetensors,
    "pth": _torch_file,
    "npy": _npy,
    "npz": _npz,
    "cbor": _cbor,
}
