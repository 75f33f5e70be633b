"""Names the kind of credentials that a store is asked with; shows none of them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dray.cluster.doctor.finding import Finding, bad, good, warning
from dray.shards.storage.aws import needs_provider

_FILE_ADVICE = "put keys into a file (~/.aws/credentials), the environment, or use a role: command lines are visible"
_METHODS = {  # botocore's name of where credentials come from -> in words
    "env": "keys in the environment",
    "shared-credentials-file": "keys in a file on this machine (profile {profile!r} of the shared credentials file)",
    "config-file": "keys in a file on this machine (profile {profile!r} of the AWS config file)",
    "assume-role": "a role that profile {profile!r} assumes",
    "assume-role-with-web-identity": "a role by a web identity token (a Kubernetes service account)",
    "sso": "single sign-on of profile {profile!r}",
    "login": "a login of profile {profile!r}",
    "custom-process": "a program that profile {profile!r} names",
    "container-role": "the role of this container or pod",
    "iam-role": "the instance role of this machine",
}
_OPTIONS = {  # part of an option's name -> what it holds
    "s3": {"access_key_id": "keys in storage options", "web_identity": "a web identity token", "container_": ""},
    "gs": {"service_account_key": "a key in storage options", "bearer": "a token in storage options"},
    "az": {"key": "a key in storage options", "secret": "a secret in storage options", "token": "a token in options"},
}
_GOOGLE = {
    "GOOGLE_SERVICE_ACCOUNT_KEY": "the key of a service account in the environment",
    "GOOGLE_SERVICE_ACCOUNT": "a service account's file on this machine",
    "GOOGLE_SERVICE_ACCOUNT_PATH": "a service account's file on this machine",
    "GOOGLE_APPLICATION_CREDENTIALS": "application default credentials in a file on this machine",
    "GOOGLE_BEARER_TOKEN": "a token in the environment",
}
_AZURE = {
    "AZURE_STORAGE_ACCOUNT_KEY": "an account key in the environment",
    "AZURE_STORAGE_ACCESS_KEY": "an account key in the environment",
    "AZURE_STORAGE_SAS_KEY": "a shared access signature in the environment",
    "AZURE_STORAGE_SAS_TOKEN": "a shared access signature in the environment",
    "AZURE_STORAGE_TOKEN": "a token in the environment",
    "AZURE_CLIENT_SECRET": "a service principal's secret in the environment",
    "AZURE_FEDERATED_TOKEN_FILE": "a workload identity (a Kubernetes service account)",
    "AZURE_USE_AZURE_CLI": "the login of the Azure CLI",
}
_GCLOUD_FILE = Path("~/.config/gcloud/application_default_credentials.json")


def check_credentials(url: str, options: Mapping[str, Any]) -> Finding:
    """Returns which kind of credentials is in use for a URL of object storage."""
    scheme, names = url.partition("://")[0], [name.lower() for name in options]
    if any("skip_signature" in name for name in names) or os.environ.get(_unsigned(scheme), "").lower() == "true":
        return good("credentials", "none: requests are unsigned, which suits a public bucket")
    for part, what in _OPTIONS[scheme].items():
        if what and any(part in name for name in names):
            return warning("credentials", what, _FILE_ADVICE)
    if scheme == "s3":
        return _aws(options)
    return _from_environment(_GOOGLE, _google_default) if scheme == "gs" else _from_environment(_AZURE, _azure_default)


def _unsigned(scheme: str) -> str:
    return {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}[scheme] + "_SKIP_SIGNATURE"


def _aws(options: Mapping[str, Any]) -> Finding:
    if not needs_provider(options):
        return _keys_in_environment()
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    session = Session()
    try:
        found = session.get_credentials()
    except BotoCoreError as exc:
        return bad("credentials", f"none: {exc}", "correct the profile, or set AWS_PROFILE to another one")
    if found is None:
        return bad("credentials", "none found", "give this machine a role, or keys in a file or in its environment")
    profile = session.get_config_variable("profile") or "default"
    return good("credentials", _METHODS.get(found.method, found.method).format(profile=profile))


def _keys_in_environment() -> Finding:
    """Returns the finding of AWS keys in variables; temporary ones end before a long build does."""
    what = f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment{_of_pod()}"
    if os.environ.get("AWS_SESSION_TOKEN"):
        advice = "they expire and nothing renews them: use a profile, single sign-on or a role for long work"
        return warning("credentials", f"temporary keys: {what}", advice)
    return good("credentials", what)


def _of_pod() -> str:
    in_pod = os.environ.get("KUBERNETES_SERVICE_HOST")
    return " of this pod, as a Kubernetes secret is given by reference" if in_pod else ""


def _from_environment(names: Mapping[str, str], default: Any) -> Finding:
    found = next((f"{what} ({name})" for name, what in names.items() if os.environ.get(name)), None)
    return good("credentials", f"{found}{_of_pod()}" if found else default())


def _google_default() -> str:
    if _GCLOUD_FILE.expanduser().is_file():
        return f"application default credentials of gcloud ({_GCLOUD_FILE})"
    return "the service account of this machine or pod"


def _azure_default() -> str:
    return "the managed identity of this machine or pod"
