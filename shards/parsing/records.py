"""Strict parser of the JSON records of a dataset: anyone who can write to the store may have written them.

Every value must have the type of its field. Integers are non-negative and fit into 64 bits, so that no sum, range or
array of them overflows; text must be valid Unicode. Each record checks the meaning of its fields itself.

Later versions of dray can extend a record without a new format. Unknown fields are ignored. An extension that must not
be ignored is listed under `features`; a version of dray that does not know it asks for an upgrade.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin

FORMAT = 2
HEADER: Mapping[str, Any] = {"format": FORMAT, "features": []}  # header of every record; no features are defined yet
MOST = (1 << 63) - 1
Record = TypeVar("Record")
_DIGEST = re.compile(r"[0-9a-f]{32}")
_DEEPEST = 16  # maximum nesting of lists and objects in an untyped value


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Returns JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n"


def write_record(record: Any) -> bytes:
    """Returns a dataclass as canonical JSON, after the header of every record."""
    return canonical_json({**HEADER, **asdict(record)})


def read_record(kind: type[Record], body: bytes) -> Record:
    """Returns the dataclass that a JSON object holds; unknown fields are ignored.

    Raises:
        FormatError: See `check_format`.
        ValueError: It is not a JSON object, lacks a field, or a value does not have the type of its field.
    """
    try:
        values = json.loads(body, parse_constant=_refuse)
        if not isinstance(values, dict):
            raise ValueError(f"an object expected, found {type(values).__name__}")
        check_format(values)
        return cast(Record, _reader_of(cast(Any, kind))(values))
    except RecursionError as exc:
        raise ValueError("its values are nested too deeply") from exc


class FormatError(ValueError):
    """A record that another version of dray wrote; the message says what to do."""


def check_format(values: Mapping[str, Any]) -> None:
    """Check that this version of dray can read a record: its format, and every feature that it lists.

    Raises:
        FormatError: The format differs, or a feature is unknown.
        ValueError: The format or the features have the wrong type.
    """
    try:
        found = _number(values.get("format"))
        features = _names(values.get("features")) if found == FORMAT else []
    except _UnexpectedError as exc:
        raise ValueError(f"its format or features are {exc}") from exc
    if found < FORMAT:
        raise FormatError(f"format {found} was written by an older dray; rebuild it, as this one reads {FORMAT}")
    if found > FORMAT:
        raise FormatError(f"format {found} was written by a newer dray, and this one reads {FORMAT}: upgrade dray")
    if features:
        raise FormatError(f"unknown features {', '.join(map(repr, features))}: upgrade dray")


def check_digests(digests: Iterable[str]) -> None:
    """Check that digests, which may become parts of object names, are well-formed.

    Raises:
        ValueError: A digest is not.
    """
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"a digest of 32 hexadecimal digits expected, found {digest!r:.80}")


_Reader = Callable[[Any], Any]


@cache
def _reader_of(kind: Any) -> _Reader:
    """Returns a function that converts a JSON value to a type, or raises ValueError."""
    if kind in _READERS:
        return _READERS[kind]
    if is_dataclass(kind):
        return _object_reader(cast("type[Any]", kind))
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType and arguments[1:] == (NoneType,):
        read_some = _reader_of(arguments[0])
        return lambda value: None if value is None else read_some(value)
    if origin is tuple:
        read_item = _reader_of(arguments[0])
        return lambda value: tuple(read_item(item) for item in _expect(value, list))
    if origin in (dict, Mapping):
        read_value = _reader_of(arguments[1])
        return lambda value: {_text(key): read_value(held) for key, held in _expect(value, dict).items()}
    raise TypeError(f"records do not support {kind}")


def _object_reader(kind: type[Any]) -> _Reader:
    readers = {field.name: _reader_of(cast(Any, field.type)) for field in fields(kind)}
    required = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}

    def read(value: Any) -> Any:
        names = _expect(value, dict).keys()
        if missing := required - names:
            raise ValueError(f"{kind.__name__} without {', '.join(sorted(missing))}")
        values = {}
        for name, read_field in readers.items():
            if name not in names:
                continue
            try:
                values[name] = read_field(value[name])
            except _UnexpectedError as exc:
                raise ValueError(f"{name} of {kind.__name__} is {exc}") from exc
        return kind(**values)

    return read


class _UnexpectedError(ValueError):
    """A value of the wrong type; the message is the value."""

    def __init__(self, value: object) -> None:
        super().__init__(f"{value!r:.80}")


def _expect(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise _UnexpectedError(value)
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST:  # a bool is an int as well
        raise _UnexpectedError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not (value.isascii() or _can_be_encoded(value)):
        raise _UnexpectedError(value)
    return value


def _names(value: Any) -> list[str]:
    names = [_text(name) for name in _expect(value, list)]
    if names != sorted(set(names)):
        raise _UnexpectedError(value)
    return names


def _can_be_encoded(value: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _anything(value: Any, level: int = 0) -> Any:
    if level > _DEEPEST:
        raise _UnexpectedError("a value that is nested too deeply")
    if isinstance(value, str):
        _text(value)
    if isinstance(value, float) and not isfinite(value):
        raise _UnexpectedError(value)
    for held in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        _anything(held, level + 1)
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


_READERS: Mapping[Any, _Reader] = {int: _number, str: _text, Any: _anything}
