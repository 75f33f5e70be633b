"""The endpoint of a store and where it was set."""

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dray.shards.errors import CallError
from dray.shards.storage.aws import AwsSettings

OPTIONS = {"endpoint", "endpoint_url", "endpoint_url_s3"}  # without the prefix of the store
_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_USER = re.compile(r"(://)[^/@\s]+@")  # an endpoint may name a user


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The endpoint of a store, if it is not the default one.

    Attributes:
        url: With its scheme; "" for the place that the store has by itself.
        source: The option, variable or profile that named it.
    """

    url: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"endpoint {without_user(self.url)} from {self.source}" if self.url else ""


def find_endpoint(scheme: str, options: Mapping[str, Any], settings: AwsSettings) -> Endpoint:
    """Returns the endpoint that an option, a variable or an AWS profile names, in this order.

    Raises:
        CallError: It is no http:// or https:// URL.
    """
    named = [Endpoint(str(value), f"option {name!r}") for name, value in options.items() if is_endpoint(name) and value]
    if not named and os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        variables = _VARIABLES.get(scheme, ())
        named = [Endpoint(os.environ[name], name) for name in variables if os.environ.get(name)]
        if scheme == "s3" and settings.endpoint:
            named.append(Endpoint(settings.endpoint, f"profile {settings.profile!r}"))
    if not named:
        return Endpoint()
    _check(named[0])
    return named[0]


def is_endpoint(name: str) -> bool:
    """Returns whether a storage option names an endpoint."""
    return re.sub("^(aws|azure|azure_storage)_", "", name.lower()) in OPTIONS


def without_user(text: str) -> str:
    """Returns a text whose URLs name no user and no password."""
    return _USER.sub(r"\1***@", text)


def _check(endpoint: Endpoint) -> None:
    try:
        parts = urllib.parse.urlsplit(endpoint.url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good or re.search(r"[\s\x00-\x1f]", endpoint.url):
        raise CallError(
            f"{without_user(endpoint.url)!r} ({endpoint.source}) is no endpoint: "
            "expected https://host or http://host:port, scheme included"
        )
