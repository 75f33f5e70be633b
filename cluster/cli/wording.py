"""Error messages in the terms of the command line.

dray's errors name the keywords of its Python functions: `on_error='skip'`. The command line prints the option of the
command that failed instead, if it has one: `--on-error skip`.
"""

import ast
import re
import shlex
from collections.abc import Collection, Mapping

_RENAMED = {  # keyword -> parameter of the command, where the two differ
    "data_storage_options": "data_storage_option",
    "grace_s": "older_than",
    "input_suffix": "suffix",
    "into_storage_options": "into_storage_option",
    "memory_gib": "memory",
    "min_num_shards": "shards",
    "num_ranks": "ranks",
    "num_shards": "shards",
    "num_threads": "threads",
    "num_cpus": "task_cpus",
    "num_workers": "workers",
    "output_prefix": "prefix",
    "parts": "part",
    "storage_options": "storage_option",
}
_START = r"(?<![\w/?&.'\"-])"  # not inside a path, a URL or a quoted name
_VALUE = r"""'[^']*'|"[^"]*"|\[[^\]]*\]|\{[^}]*\}|\w+%?|\.{3}"""


def in_words(text: str, options: Mapping[str, str], negations: Collection[str] = ()) -> str:
    """Returns a message with Python's keywords replaced by a command's options.

    Args:
        text: The message. A keyword is followed by `=`, or has an underscore in its name.
        options: Parameter of the command -> its option, such as "on_error" -> "--on-error".
        negations: Options that switch another one off, such as "--no-shuffle".
    """
    names = {**options, **{keyword: options[name] for keyword, name in _RENAMED.items() if name in options}}
    keywords = "|".join(sorted(names, key=len, reverse=True))
    pattern = rf"{_START}({keywords})(?:(=)({_VALUE})?|\b)"
    return re.sub(pattern, lambda found: _as_option(found, names, negations), text) if names else text


def _as_option(found: re.Match[str], names: Mapping[str, str], negations: Collection[str]) -> str:
    """Returns `--on-error skip` for `on_error='skip'`."""
    keyword, equals, value = found.groups()
    if not equals and "_" not in keyword:  # an English word, such as keep
        return found[0]
    option = names[keyword]
    if value is None or value in ("True", "..."):
        return option
    if value in ("False", "None"):
        negation = f"--no-{option.removeprefix('--')}"
        return negation if negation in negations else f"no {option}"
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a bare word, or a value that was cut short
        return f"{option} {value}" if value[0].isalnum() else option
    if isinstance(given, dict):
        given = [f"{name}={'...' if item is ... else item}" for name, item in given.items()]
    return " ".join(f"{option} {shlex.quote(str(item))}" for item in (given if isinstance(given, list) else [given]))
