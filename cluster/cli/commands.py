"""How commands are loaded and how they end.

Importing numpy, pyarrow, Ray or torch takes longer than `dray --help` may take, so the module of a command is imported
when the command is called.
"""

import importlib
import os
import sys
import traceback
import warnings
from functools import cached_property, partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from dray.cluster.cli.exits import ExitCode, exit_code
from dray.cluster.cli.wording import in_words

SETTINGS: dict[str, Any] = {
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Settings of typer that all commands share."""

_RERUN_CONTINUES = "every shard that was stored is kept: run the same command again, and it does what is missing"
_AFTER_INTERRUPT = {
    "build": _RERUN_CONTINUES,
    "compact": _RERUN_CONTINUES,
    "reshard": _RERUN_CONTINUES,
    "index": "every index that was stored is kept: run the same command again, and it scans what is missing",
    "gc": "all versions that are kept are intact: run the same command again, and it deletes the rest",
    "quickstart": "its folder stays: run the same command again",
    **dict.fromkeys(("hold", "release", "rollback"), "the change was made in full or not at all: dray log shows which"),
}


class LazyCommand(TyperCommand):
    """A command whose module is imported when it is called; its name and summary are known before."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._module = module

    @cached_property
    def loaded(self) -> Any:
        """The command itself: that of the module's function with the same name."""
        module = importlib.import_module(self._module)
        from dray.cluster.cli.options import expand_options
        from dray.cluster.observability.options import with_reporting

        app = typer.Typer(add_completion=False, **SETTINGS)
        call, settings = expand_options(getattr(module, str(self.name))), getattr(module, "CONTEXT_SETTINGS", None)
        if settings is None:  # else the command passes the options that it lacks to another one, these two as well
            call = with_reporting(call)
        app.command(self.name, context_settings=settings)(call)
        return typer.main.get_command(app)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the context of the command itself."""
        return self.loaded.make_context(*args, **kwargs)


class CommandGroup(TyperGroup):
    """The commands of dray."""

    def invoke(self, ctx: Any) -> Any:
        """Run one; print an expected error as one line on standard error and exit with the code of its kind."""
        from dray.pipelines.progress import WORDS, say

        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
            token = WORDS.set(partial(self._in_words, ctx))
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                say(f"interrupted; {_AFTER_INTERRUPT.get(ctx.invoked_subcommand, 'nothing was changed')}")
                raise
            except BrokenPipeError as exc:  # what is still buffered must not fail when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(ExitCode.CLOSED_OUTPUT) from exc
            except Exception as exc:
                code = exit_code(exc)
                if code is None:
                    raise
                _print_error(exc)
                raise typer.Exit(code) from exc
            finally:
                WORDS.reset(token)

    def _in_words(self, ctx: Any, text: str) -> str:
        """Returns a message with the options of the command that runs in place of Python's keywords."""
        command = self.commands.get(ctx.invoked_subcommand or "")
        params = command.loaded.params if isinstance(command, LazyCommand) else ()
        found = [param for param in params if isinstance(param, TyperOption)]
        options = {param.name: max(param.opts, key=len) for param in found if param.name}
        return in_words(text, options, {param.secondary_opts[0] for param in found if param.secondary_opts})


def _print_error(error: Exception) -> None:
    """Print an error as one line, or with its traceback if that was asked for."""
    from dray.pipelines.progress import WORDS
    from dray.shards.errors import DrayError

    if os.environ.get("DRAY_TRACEBACK"):
        traceback.print_exception(error)
        return
    hint = "" if isinstance(error, DrayError) else " (DRAY_TRACEBACK=1 shows where)"
    print(f"dray: error: {WORDS.get()(str(error))}{hint}", file=sys.stderr)  # noqa: T201
