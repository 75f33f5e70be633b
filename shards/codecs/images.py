"""Image parts, read by Pillow: the pixels that WebDataset's `.decode("rgb8")` returns.

Pillow may open a part only as one of a few formats that it reads itself, never as one that starts a program
(PostScript). The size is checked before the pixels are decoded.
"""

import io
from typing import Any

import numpy as np

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")


def read_image(data: bytes, max_bytes: int) -> "np.ndarray[Any, Any]":
    """Return the pixels: uint8, shape (height, width, 3), RGB, writable.

    Grey images become RGB, transparency is dropped, and only the first frame of an animation is read.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
        Exception: The image is damaged, or its pixels would take more than `max_bytes`.
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
