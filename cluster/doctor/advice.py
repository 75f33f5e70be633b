"""The answers of stores in few words, and what to do about them."""

import re

_CODE = re.compile(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]*))?")
_ADVICE = {  # part of an error -> what to do
    "RequestTimeTooSkewed": "set this machine's clock (timedatectl set-ntp true), or the store's",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: copy both again, without line breaks",
    "InvalidAccessKeyId": "the store does not know this access key: is it of another store or account, or deleted?",
    "ExpiredToken": "the temporary credentials have expired: renew them (aws sso login), or use a role",
    "NoSuchBucket": "create the bucket, or correct its name in the URL",
    "no credentials": "give this machine a role, or keys in a file (~/.aws/credentials) or in its environment",
    "error sending request": "is the endpoint right (--storage-option endpoint=...), is the store running, does a "
    "firewall or a proxy stand between?",
    "Read-only file system": "mount the disk for writing",
    "No space left on device": "free space on the disk, or choose another one",
    "Not a directory": "give the URL of a folder",
}
_FINAL = ("SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "NoSuchBucket", "no credentials")


def in_short(error: Exception) -> str:
    """Returns an error without the XML of the store's answer."""
    found = _CODE.search(str(error))
    if found is None:
        return str(error)
    return f"the store answers {found[1]}" + (f": {found[2].rstrip('. ')}" if found[2] else "")


def advice_for(error: Exception, default: str) -> str:
    """Returns what to do about a store's error.

    Args:
        error: The error.
        default: For an error that is not known, such as a right that the key lacks.
    """
    return next((advice for text, advice in _ADVICE.items() if text in str(error)), default)


def ends_all(error: Exception) -> bool:
    """Returns whether no other request can succeed either, whatever the rights of the key."""
    return any(text in str(error) for text in _FINAL)
