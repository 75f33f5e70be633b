"""Samples as programs give them: dicts of values by suffix, with or without a key."""

from collections.abc import Generator, Iterable, Mapping
from typing import Any

from dray.pipelines.inputs.values import encode_sample
from dray.pipelines.writing.shard import Sample
from dray.shards.errors import InputError
from dray.shards.layout import NAME_RULE, bad_names, key_of

KEY = "__key__"
_OF_READERS = ("__url__", "__local_path__")  # fields in which webdataset's readers say where a sample was


def as_sample(
    given: Any,
    key: str,
    *,
    keep_pickles: bool,
    renamed: dict[str, str] | None = None,
    source: tuple[int, int] | None = None,
) -> Sample:
    """Returns a sample with its parts as bytes.

    Args:
        given: Field -> value; its `__key__`, if it has one, is the key, with the dots of its file name as dashes.
        key: The key of a sample without `__key__`.
        keep_pickles: See `encode_sample`, as for `renamed`.
        renamed: Gets field -> suffix for each field that is stored under another suffix.
        source: See `Sample`.

    Raises:
        InputError: It is not a dict, its key is none, or a value cannot be stored; names key, field and type.
    """
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise InputError(f"a sample is a dict of values by suffix, such as {{'jpg': bytes, 'cls': 3}}; found {kind}")
    fields = dict(given)
    for name in _OF_READERS:
        fields.pop(name, None)
    key = _checked(fields.pop(KEY)) if KEY in fields else key
    try:
        return Sample(key, encode_sample(fields, keep_pickles=keep_pickles, renamed=renamed), source)
    except InputError as exc:
        raise exc.at(key=key) from exc


def numbered(samples: Iterable[Any], *, keep_pickles: bool, renamed: dict[str, str]) -> Generator[Sample, None, None]:
    """Yields samples; if none has a `__key__`, the keys are their numbers: `000000000`, `000000001`, ...

    Raises:
        InputError: See `as_sample`; or some have a `__key__` and some do not.
    """
    are_keyed: bool | None = None
    for number, given in enumerate(samples):
        is_keyed = KEY in given if isinstance(given, Mapping) else are_keyed
        if are_keyed is not None and is_keyed != are_keyed:
            had, has = ("a", "none") if are_keyed else ("no", "one")
            raise InputError(
                f"sample {number} has {has}, but those before have {had} __key__: give each sample one, or none"
            )
        are_keyed = is_keyed
        try:
            yield as_sample(given, f"{number:09d}", keep_pickles=keep_pickles, renamed=renamed)
        except InputError as exc:
            raise (exc if exc.key else type(exc)(f"sample {number}: {exc.problem}")) from exc


def _checked(key: Any) -> str:
    """Returns the key of a sample's `__key__`.

    Raises:
        InputError: It is not text, or cannot be a key.
    """
    if not isinstance(key, str):
        raise InputError(f"its __key__ is {key!r:.80}: expected text, such as f'{{number:09d}}'")
    if not key or bad_names([key]):
        raise InputError(f"its __key__ is {key!r:.200}: {NAME_RULE}")
    return key_of(key)
