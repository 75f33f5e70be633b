"""Compares this machine's clock with the store's: by the Date of an HTTP answer, and by the time of a new object."""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from dray.cluster.doctor.finding import Finding, bad, good, unchecked, warning
from dray.cluster.doctor.scratch import Scratch

WARNING_S, BAD_S = 30, 300  # S3, GCS and Azure refuse requests whose time differs by 15 minutes
ANSWER_S = 5.0  # timeout of the request for a Date
_PUBLIC = {"s3": "https://s3.amazonaws.com", "gs": "https://storage.googleapis.com"}


def check_clock(scratch: Scratch, options: Mapping[str, Any], *, can_write: bool) -> Iterator[Finding]:
    """Yields one finding: how far the store's clock is ahead of this machine's.

    Args:
        scratch: Temporary objects in the store.
        options: The store's options.
        can_write: Whether an object can be created.
    """
    skews = []
    if endpoint := _endpoint(scratch, options):
        skews += _skew_of_answer(endpoint)
    if can_write:
        skews += _skew_of_object(scratch)
    if not skews:
        yield unchecked("clock", "not checked: the store gave no time")
        return
    skew = max(skews, key=abs)
    found = f"the store's clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    advice = (
        "set the wrong one (timedatectl set-ntp true): stores refuse requests that are 15 minutes off, and dray gc "
        "deletes by the age of objects"
    )
    if abs(skew) < WARNING_S:
        yield good("clock", f"within {max(1, abs(skew)):.0f} s of the store's", skew_s=skew)
    else:
        yield (bad if abs(skew) >= BAD_S else warning)("clock", found, advice, skew_s=skew)


def _endpoint(scratch: Scratch, options: Mapping[str, Any]) -> str:
    """Returns the URL that answers for the store; "" if none is known."""
    scheme = scratch.store.url.partition("://")[0]
    account = options.get("account_name") or options.get("azure_storage_account_name")
    public = f"https://{account}.blob.core.windows.net" if scheme == "az" and account else _PUBLIC.get(scheme, "")
    return scratch.store.endpoint or public


def _skew_of_answer(endpoint: str) -> list[float]:
    """Returns seconds by which the Date of an HTTP answer is ahead; empty without one."""
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  the endpoint was checked when it was opened
    before = time.time()
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310
            date = answer.headers["Date"]
    except urllib.error.HTTPError as exc:  # an answer to an unsigned request, with a Date
        date = exc.headers["Date"]
        exc.close()
    except (OSError, ValueError):
        return []
    try:
        then = parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return []
    return [_ahead(then, before, time.time())]


def _skew_of_object(scratch: Scratch) -> list[float]:
    """Returns seconds by which the time of a new object is ahead."""
    name = scratch.name("clock")
    before = time.time()
    scratch.store.put_new(name, b"clock")
    after = time.time()
    info = scratch.store.head(name)
    return [_ahead(info.modified.timestamp(), before, after)] if info else []


def _ahead(then: float, before: float, after: float) -> float:
    """Returns seconds by which a time in whole seconds is after an event between two others; 0 if it may be equal."""
    if then > after:
        return then - after
    return min(0.0, then + 1 - before)
