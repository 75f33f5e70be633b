"""What every format refuses in the same words: values that are too large, and text that is not UTF-8."""

from typing import Any


class UnfitError(ValueError):
    """A format cannot store a value exactly. The message is the reason, to follow `X cannot hold it: `."""


def check_size(num_bytes: int, max_bytes: int) -> None:
    """Raise UnfitError if a value takes more than `max_bytes`: a small pickle can repeat one object many times."""
    if num_bytes > max_bytes:
        raise UnfitError("it would be far larger than its pickle, which refers to the same objects many times")


def check_text(text: Any, what: str) -> None:
    """Raise UnfitError unless `text` is a string that UTF-8 can encode; `what` says where it stands."""
    if type(text) is not str:
        raise UnfitError(f"{what} in it is {type_name(text)}, not text")
    if text.isascii():  # a flag of the string, while encoding copies it
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnfitError(f"{what} in it is not UTF-8: {text!r:.80}") from None


def type_name(value: Any) -> str:
    """Return the name of a value's type, with its module unless that is `builtins`."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
