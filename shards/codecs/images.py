"""Image parts, by Pillow: what WebDataset's `.decode("rgb8")` gives.

Each part is opened as one of a few formats that Pillow reads by itself, never as one that starts a program
(PostScript), and its size is checked before its pixels are made.
"""

import io
from typing import Any

import numpy as np

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")


def read_image(data: bytes, max_bytes: int) -> "np.ndarray[Any, Any]":
    """The pixels: uint8, shape (height, width, 3), red, green and blue, writable.

    Grey images are repeated in all three, transparency is dropped, and of several pictures the first is read.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
        Exception: The part is no whole image, or its pixels would take more than `max_bytes`.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            'images are read by Pillow: pip install "dray[images]", or give decoders={"jpg": bytes} to get their bytes'
        ) from exc
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        width, height = image.size
        if 4 * width * height > max_bytes:
            raise ValueError(f"an image of {width} x {height} pixels grows past {max_bytes} bytes")
        return np.array(image.convert("RGB"))
