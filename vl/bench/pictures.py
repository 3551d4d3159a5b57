"""Made-up photographs: smooth noise, which compresses as photographs do."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

_COARSE = 16  # pixels of the photograph for one that is random


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG file that is always the same."""
    size = max(1, height // _COARSE), max(1, width // _COARSE), 3
    coarse = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def photograph_part(width: int, height: int, seed: int) -> dict[str, object]:
    """The same as a part of a message."""
    content = base64.b64encode(photograph(width, height, seed)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{content}"}}
