"""Pixels of Pillow's many modes, and of arrays, as 8-bit RGB."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from preprocessing.alpha import Colour, on_ground
from preprocessing.errors import ImageError


def to_rgb(image: Image.Image, ground: Colour | None) -> Image.Image:
    """A loaded image of any mode as RGB; transparency is dropped, or laid on `ground`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if ground is not None and image.has_transparency_data:
        return on_ground(image, ground)
    if image.mode == "La":  # Pillow converts it to LA alone
        image = image.convert("LA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as mode L, or as LA where one grey level is declared transparent."""
    values = np.asarray(image)
    clear = image.info.get("transparency")
    if image.mode in ("I", "F"):
        values = np.nan_to_num(values)
    if image.mode in ("I", "F") and values.max() <= 255:
        grey = Image.fromarray(values).convert("L")
    else:
        # 65535 / 255 = 257, and half of it rounds to nearest
        levels = np.rint(values.clip(0, 65535)).astype(np.uint32)
        grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if isinstance(clear, int):
        return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))
    return grey


def from_array(array: np.ndarray | torch.Tensor, label: str) -> Image.Image:
    """A Pillow image of mode L, RGB or RGBA. Raises ImageError for another dtype than uint8 or another shape."""
    shape = list(array.shape)
    if array.dtype not in (np.uint8, torch.uint8):
        raise ImageError(f"{label}: expected a uint8 array, got {array.dtype}; scale it to 0..255 and convert it")
    if isinstance(array, torch.Tensor):
        if array.ndim == 3 and shape[0] in (1, 3, 4):
            array = array.permute(1, 2, 0)
        array = array.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(f"{label}: expected an array of shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {shape}")
    if array.size == 0:
        raise ImageError(f"{label}: the image has no pixels, its shape is {shape}")
    return Image.fromarray(np.ascontiguousarray(array))
