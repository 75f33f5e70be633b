"""How a command ends: an error in the words of the command line, or Ctrl-C with what is kept.

dray's errors name the keywords of its Python functions: `on_error='skip'`. Here each becomes the option of the command
that failed, if it has one: `--on-error skip`.
"""

import ast
import os
import re
import shlex
import sys
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup, TyperOption

from dray.pipelines.progress import WORDS, say
from dray.shards.errors import DrayError

EXPECTED = (DrayError, TypeError, ValueError, OSError)  # what a wrong call or a missing file raises

_RENAMED = {  # keywords whose option has another name
    "grace_s": "older_than",
    "input_suffix": "suffix",
    "min_num_shards": "shards",
    "num_ranks": "ranks",
    "num_shards": "shards",
    "num_workers": "workers",
    "output_prefix": "prefix",
    "parts": "part",
    "storage_options": "storage_option",
}
BUILD_OPTIONS = {
    "allow": "--allow",
    "allow_pickle": "--allow-pickle",
    "encode": "--encode",
    "max_bad": "--max-bad",
    "on_error": "--on-error",
}
"""Options of `dray build` that a stored reason may name."""

_START = r"(?<![\w/?&.'\"-])"  # not inside a path, a URL or a quoted name
_VALUE = r"""'[^']*'|"[^"]*"|\[[^\]]*\]|\{[^}]*\}|\w+%?|\.{3}"""
_REST_IS_KEPT = "every shard that was stored is kept: run the same command again, and it does what is missing"
_KEPT = {
    "build": _REST_IS_KEPT,
    "compact": _REST_IS_KEPT,
    "gc": "every version that is kept is whole: run the same command again, and it deletes the rest",
    "quickstart": "its folder stays: run the same command again",
    **dict.fromkeys(("hold", "release", "rollback"), "it was done whole or not at all: dray log shows which"),
}


class Commands(TyperGroup):
    """The commands of dray."""

    def invoke(self, ctx: Any) -> Any:
        """Run one; expected errors end as one line on standard error and exit code 1."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
            words = WORDS.set(partial(_in_words_of, self, ctx))
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                say(f"interrupted; {_KEPT.get(ctx.invoked_subcommand, 'nothing was changed')}")
                raise
            except BrokenPipeError:  # `dray ls | head`: typer ends quietly
                raise
            except EXPECTED as exc:
                if os.environ.get("DRAY_TRACEBACK"):
                    raise
                hint = "" if isinstance(exc, DrayError) else " (DRAY_TRACEBACK=1 shows where)"
                print(f"dray: error: {WORDS.get()(str(exc))}{hint}", file=sys.stderr)  # noqa: T201
                raise typer.Exit(1) from exc
            finally:
                WORDS.reset(words)


def _in_words_of(group: TyperGroup, ctx: Any, text: str) -> str:
    command = group.get_command(ctx, ctx.invoked_subcommand or "")
    found = [param for param in (command.params if command else ()) if isinstance(param, TyperOption)]
    options = {param.name: max(param.opts, key=len) for param in found if param.name}
    return in_words(text, options, {param.secondary_opts[0] for param in found if param.secondary_opts})


def in_words(text: str, options: Mapping[str, str], negations: Collection[str] = ()) -> str:
    """Returns a message with Python's keywords replaced by a command's options.

    Args:
        text: The message. A keyword is followed by `=`, or has an underscore in its name.
        options: Parameter of the command -> its option, such as "on_error" -> "--on-error".
        negations: Options that switch another off, such as "--no-shuffle".
    """
    names = {**options, **{keyword: options[name] for keyword, name in _RENAMED.items() if name in options}}
    keywords = "|".join(sorted(names, key=len, reverse=True))
    pattern = rf"{_START}({keywords})(?:(=)({_VALUE})?|\b)"
    return re.sub(pattern, lambda found: _as_option(found, names, negations), text) if names else text


def _as_option(found: re.Match[str], names: Mapping[str, str], negations: Collection[str]) -> str:
    """`--on-error skip` of `on_error='skip'`."""
    keyword, equals, value = found.groups()
    if not equals and "_" not in keyword:  # a word of English, such as keep
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
