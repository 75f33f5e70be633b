"""From a part's bytes to its value, by the last extension of its suffix, as WebDataset's `.decode()`, but safely.

The table is WebDataset's (pickles, numpy, text, numbers, JSON, msgpack, CBOR, tenbin, `.pth`, and `.gz` around any of
them) plus `.safetensors` and images (as its `.decode("rgb8")`). Parts of other extensions stay bytes; a part that
decodes to None is returned as its bytes, as in WebDataset. Decoders of the caller come before the table. Pickles are
read by the allow-list unpickler, `.pth` by torch's, and a compressed part may not grow past 4 GiB. A new format is a
module beside this one and an entry in `_READERS`.
"""

import importlib
import json
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import cloudpickle

from dray.shards.codecs.compressed import gunzip
from dray.shards.codecs.images import IMAGE_EXTENSIONS, read_image
from dray.shards.codecs.npy import read_npy, read_npz
from dray.shards.codecs.pickles import unpickle
from dray.shards.codecs.pickles.stand_ins import MAX_BYTES
from dray.shards.codecs.safetensors import read_safetensors
from dray.shards.codecs.tenbin import read_tenbin
from dray.shards.codecs.torch_file import read_torch_file
from dray.shards.errors import CallError, DamagedError, RefusedError

Decoders = Mapping[str, Callable[[bytes], Any]]  # by suffix


def decode_part(
    suffix: str,
    data: bytes | memoryview,
    *,
    allow: Collection[str] = (),
    allow_pickle: bool = False,
    max_bytes: int = MAX_BYTES,
    decoders: Decoders = MappingProxyType({}),
) -> Any:
    """Return the value of a part by the last extension of `suffix`, or its bytes if the extension is unknown.

    Args:
        suffix: The part's suffix in lower case, with or without a leading dot: `tensor.pyd`, `json.gz`.
        data: The part's bytes.
        allow: Full names that a pickle may use besides the safe list.
        allow_pickle: Let pickles run any code.
        max_bytes: Maximum size of a decompressed part, or of an image's pixels.
        decoders: Functions of the caller, by suffix in lower case, from the part's bytes to its value. They come before
            the table, and the longest suffix that fits wins: `tensor.npy` before `npy`.

    Raises:
        RefusedError: The part holds, or claims to hold, something that is not on the safe list.
        DamagedError: The part is not what its extension says, or one of `decoders` failed.
        ModuleNotFoundError: Its format needs a package that is not installed.
    """
    if decoders and (own := _longest(decoders, suffix)):
        return _by_own(own, decoders[own], data)
    try:
        stem = f".{suffix}"
        if stem.endswith(".gz"):
            stem, data = stem.removesuffix(".gz"), gunzip(data, max_bytes)
            if decoders and (own := _longest(decoders, stem)):
                return _by_own(own, decoders[own], data)
        read = _READERS.get(stem.rpartition(".")[2])
        if read is not _read_pickle:
            data = bytes(data)
        value = None if read is None else read(data, _Trust(unpickle.check_allow(allow), allow_pickle, max_bytes))
    except (RefusedError, CallError, DamagedError, ModuleNotFoundError):
        raise
    except Exception as exc:
        raise DamagedError(f"part {suffix!r} is not what its extension says: {exc!r:.200}") from exc
    return bytes(data) if value is None else value


def _longest(decoders: Mapping[str, Any], suffix: str) -> str | None:
    """Return the longest decoder name (in lower case) that the suffix equals, or ends with after a dot."""
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
    """Decoders that are sent to worker processes by cloudpickle, lambdas included."""

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
    """Decodes whole samples; can be pickled, for worker processes."""

    allow: Collection[str] = ()
    """Full names (`pkg.module.Class`) that pickles may use besides the safe list."""
    allow_pickle: bool = False
    """Let pickles run any code: only for data that you made yourself."""
    decoders: Decoders = field(default_factory=dict, hash=False)
    """Your own functions from a part's bytes to its value, by suffix; they come before the built-in formats."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "allow", unpickle.check_allow(self.allow))
        object.__setattr__(self, "decoders", _check_decoders(self.decoders))
        if self.allow_pickle:
            warnings.warn("allow_pickle=True: pickled parts run any code that they name", stacklevel=3)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sample with every part decoded; entries whose name starts with two underscores are kept, as text.

        Raises:
            RefusedError: A part holds something that is not on the safe list; the message names shard, key and suffix.
            DamagedError: A part is not what its extension says; the message names shard, key and suffix.
        """
        return {name: self._decode(sample, name, value) for name, value in sample.items()}

    def is_own(self, suffix: str) -> bool:
        """Whether one of the user's decoders reads parts with this suffix."""
        return bool(self.decoders) and _longest(self.decoders, suffix) is not None

    def part(self, suffix: str, data: bytes | memoryview) -> Any:
        """Return the value of one part; see `decode_part`. Suffixes compare without case."""
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
        except (DamagedError, RefusedError) as exc:
            raise exc.at(url=sample.get("__url__"), key=sample.get("__key__"), suffix=name) from exc


def _note(value: Any) -> Any:
    """Return an entry that is not a part; as text if it is UTF-8."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


@dataclass(frozen=True, slots=True)
class _Trust:
    """What a reader may do with the bytes of a part."""

    allow: frozenset[str]
    allow_pickle: bool
    max_bytes: int


def _read_pickle(data: bytes | memoryview, trust: _Trust) -> Any:
    return unpickle.loads(data, allow=trust.allow, allow_pickle=trust.allow_pickle)


def _read_torch_file(data: bytes, trust: _Trust) -> Any:
    return read_torch_file(data, allow=trust.allow, allow_pickle=trust.allow_pickle, max_bytes=trust.max_bytes)


_READERS: dict[str, Callable[[Any, _Trust], Any]] = {
    **dict.fromkeys(("txt", "text", "transcript"), lambda data, _: data.decode("utf-8")),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), lambda data, _: int(data)),
    **dict.fromkeys(("json", "jsn"), lambda data, _: json.loads(data)),
    **dict.fromkeys(("pyd", "pickle", "pkl"), _read_pickle),
    **dict.fromkeys(("ten", "tb"), lambda data, _: read_tenbin(data)),
    **dict.fromkeys(("mp", "msg"), lambda data, _: importlib.import_module("msgpack").unpackb(data)),
    **dict.fromkeys(IMAGE_EXTENSIONS, lambda data, trust: read_image(data, trust.max_bytes)),
    "cbor": lambda data, _: importlib.import_module("cbor").loads(data),
    "npy": lambda data, _: read_npy(data),
    "npz": lambda data, trust: read_npz(data, trust.max_bytes),
    "pth": _read_torch_file,
    "safetensors": lambda data, _: read_safetensors(data),
}
