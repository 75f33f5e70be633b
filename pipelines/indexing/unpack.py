"""Unpacking compressed tars: their samples cannot be read one by one."""

_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zst"}


def compression_in(head: bytes) -> str:
    """Returns the compression of a file by its first bytes: "gz", "bz2", "xz" or "zst"; empty if it is none of them."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
