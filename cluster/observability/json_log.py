"""`--log-format json`: each line on standard error is one JSON object, so that a log store can search its fields."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import pairwise

VARIABLE = "DRAY_LOG_FORMAT"


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line, or else the environment, asks for JSON; found before the command is parsed."""
    for word, after in pairwise([*words, ""]):
        if word == "--log-format":
            return after == "json"
        if word.startswith("--log-format="):
            return word == "--log-format=json"
    return os.environ.get(VARIABLE) == "json"


@contextmanager
def json_log(words: Sequence[str]) -> Iterator[None]:
    """Standard error is JSON lines in this context, if the command line asks for it; an unexpected error is one too."""
    if not wants_json(words):
        yield
        return
    from dray.cluster.observability.json_lines import JsonLog  # slow to import
    from dray.pipelines.events import observed_by

    log = JsonLog(sys.stderr)
    with redirect_stderr(log), observed_by(log.observe):
        try:
            yield
        except Exception as exc:
            log.record("error", f"{type(exc).__name__}: {exc}", traceback="".join(traceback.format_exception(exc)))
            raise SystemExit(1) from exc
        finally:
            log.flush()
