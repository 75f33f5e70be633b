"""Settings and credentials of AWS from their usual places: shared files, SSO, and the roles of containers and machines.

botocore reads them, as it does for the AWS command line. It is imported only where keys or files call for it.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dray.shards.errors import DeniedError

if TYPE_CHECKING:
    from obstore.store import S3Credential

CHECKED_EVERY = timedelta(minutes=5)  # botocore renews credentials ten minutes before they end
_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
_PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_OWN_CREDENTIALS = (  # options that choose the client's credentials
    "access_key_id",
    "container_",
    "credential_provider",
    "imdsv1_fallback",
    "metadata_endpoint",
    "skip_signature",
    "web_identity",
)
_seen: set[str] = set()  # secrets given to a client: no error may show them


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """Settings of the profile in use, besides credentials."""

    profile: str = "default"
    region: str | None = None
    endpoint: str | None = None


class AwsCredentials:
    """Finds credentials at the first request and renews them; a `credential_provider` of the client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._provider: Any = None

    def __call__(self) -> "S3Credential":
        """Returns the current credentials.

        Raises:
            DeniedError: There are none, or they cannot be renewed.
        """
        from botocore.exceptions import BotoCoreError

        try:
            with self._lock:
                self._provider = self._provider or _find_provider()
                found: S3Credential = self._provider()
        except BotoCoreError as exc:
            raise DeniedError(f"no credentials: {exc} (profile {_session_profile()!r})") from None
        _seen.update(str(value) for name, value in found.items() if value and name != "expires_at")
        return found


def seen_secrets() -> set[str]:
    """Returns the secrets that were found for clients in this process."""
    return _seen


def needs_provider(options: Mapping[str, Any]) -> bool:
    """Returns whether neither options nor variables hold credentials or say that none are needed."""
    names = [name.lower().removeprefix("aws_") for name in options]
    if any(name.startswith(_OWN_CREDENTIALS) for name in names):
        return False
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on"):
        return False
    return not (os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"))


def read_settings() -> AwsSettings:
    """Returns region and endpoint of the profile in use; nothing if there is no such file or profile."""
    if not any(_changed()):
        return AwsSettings(profile=_session_profile())
    from botocore.configprovider import ConfiguredEndpointProvider
    from botocore.exceptions import BotoCoreError

    session = _session()
    try:
        scoped = session.get_scoped_config()
        provider = ConfiguredEndpointProvider(session.full_config, scoped, "s3", environ={})
        return AwsSettings(_session_profile(), scoped.get("region"), provider.provide())
    except BotoCoreError:  # reported when credentials are needed
        return AwsSettings(profile=_session_profile())


def _find_provider() -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = _session()
    if session.get_credentials() is None:
        raise DeniedError(f"no credentials found: looked at {_places()}")
    return Boto3CredentialProvider(session, ttl=CHECKED_EVERY)


def _places() -> str:
    files = " and ".join(os.environ.get(name) or default for name, default in _FILES.items())
    is_off = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    machine = (
        "container role (AWS_EC2_METADATA_DISABLED rules out the machine's)" if is_off else "container and machine role"
    )
    return (
        "storage_options (access_key_id, secret_access_key), AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        f"profile {_session_profile()!r} in {files}, {machine}; set one of them, or skip_signature for a public bucket"
    )


def _session_profile() -> str:
    return next((os.environ[name] for name in _PROFILES if os.environ.get(name)), "default")


def _changed() -> tuple[int, ...]:
    """Returns the modification time of each shared file in ns; 0 for a missing one."""
    places = [Path(os.environ.get(name) or default).expanduser() for name, default in _FILES.items()]
    return tuple(place.stat().st_mtime_ns if place.is_file() else 0 for place in places)


def _session() -> Any:
    variables = tuple(os.environ.get(name) for name in (*_FILES, *_PROFILES, "HOME"))
    return _session_of(*variables, *_changed())


@lru_cache(maxsize=4)
def _session_of(*_: object) -> Any:
    """Returns one session for all stores of a process, while variables and files are the same."""
    from botocore.session import Session

    return Session()
