"""Decompression with a limit: a few kilobytes must not grow to fill the memory."""

import gzip
import io
import zipfile

_CHUNK_BYTES = 1 << 20


def gunzip(data: bytes | memoryview, max_bytes: int) -> bytes:
    """Return the content of a gzip stream; ValueError if it grows past `max_bytes`."""
    content = bytearray()
    with gzip.open(io.BytesIO(data)) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            content += chunk
            if len(content) > max_bytes:
                raise ValueError(f"it grows past {max_bytes} bytes when decompressed")
    return bytes(content)


def check_zip(data: bytes, max_bytes: int) -> None:
    """Raise ValueError if the members of a ZIP archive announce more than `max_bytes`; readers never return more."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > max_bytes:
        raise ValueError(f"it grows to {total} bytes when decompressed; at most {max_bytes} are read")
