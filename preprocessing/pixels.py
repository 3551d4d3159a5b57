"""Pixels of Pillow's many modes, and of arrays, as 8-bit RGB."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from preprocessing.alpha import Colour, on_ground
from preprocessing.errors import ImageError


def to_rgb(image: Image.Image, ground: Colour | None, label: str) -> Image.Image:
    """A loaded image of any mode as RGB; transparency is dropped, or laid on `ground`.

    Raises ImageError for floating-point pixels that are not from 0 to 1; Pillow's own errors pass through.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image, label)
    if ground is not None and image.has_transparency_data:
        return on_ground(image, ground)
    if image.mode == "La":  # Pillow converts it to LA alone
        image = image.convert("LA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image, label: str) -> Image.Image:
    """Grey of 16 or 32 bits as mode L, or as LA where one grey level is declared transparent."""
    values = np.asarray(image)
    if image.mode == "F":
        levels = _from_floats(values, label)
    elif image.mode == "I" and values.max() <= 255:
        levels = values.clip(0).astype(np.uint8)
    else:
        levels = _from_16_bits(values.clip(0, 65535))
    grey = Image.fromarray(levels)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))
    return grey


def from_array(array: np.ndarray | torch.Tensor, label: str) -> Image.Image:
    """A Pillow image of mode L, RGB or RGBA from an array as `ImageSource` has them. Raises ImageError for others."""
    shape = list(array.shape)
    if 0 in shape:
        raise ImageError(f"{label}: the image has no pixels, its shape is {shape}")
    levels = _levels(array, label)
    if isinstance(array, torch.Tensor) and levels.ndim == 3 and shape[0] in (1, 3, 4):
        levels = levels.transpose(1, 2, 0)
    if levels.ndim == 3 and levels.shape[2] == 1:
        levels = levels[:, :, 0]
    if levels.ndim != 2 and not (levels.ndim == 3 and levels.shape[2] in (3, 4)):
        raise ImageError(f"{label}: expected an array of shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {shape}")
    return Image.fromarray(np.ascontiguousarray(levels))


def _levels(array: np.ndarray | torch.Tensor, label: str) -> np.ndarray:
    """The pixels as uint8."""
    dtype = array.dtype
    if isinstance(array, torch.Tensor):
        try:
            array = array.detach().cpu().resolve_neg()
            if array.is_floating_point() and dtype != torch.float64:
                array = array.float()  # numpy has no bfloat16
            array = array.numpy()
        except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, without data, complex
            raise ImageError(f"{label}: cannot read pixels from this tensor ({error}); pass a plain one") from None
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return _from_16_bits(array)
    if array.dtype.kind == "f":
        return _from_floats(array, label)
    raise ImageError(
        f"{label}: expected an array of uint8, uint16, bool or floating point, got {dtype}; "
        "scale it to 0..255 and convert it to uint8"
    )


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    # 65535 / 255 = 257, and half of it rounds to nearest
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_floats(values: np.ndarray, label: str) -> np.ndarray:
    """0.0 to 1.0 as 0 to 255, rounded to nearest; half a level beyond is still black or white."""
    with np.errstate(over="ignore"):
        levels = np.rint(values.astype(np.promote_types(values.dtype, np.float32)) * 255)
    lowest, highest = levels.min(), levels.max()
    if not (lowest >= 0 and highest <= 255):
        found = f"they are from {values.min():g} to {values.max():g}"
        if not np.isfinite(values).all():
            found = "some are NaN or infinite"
        raise ImageError(
            f"{label}: floating-point pixels have to be from 0 (black) to 1 (white), and {found}; "
            "scale them, or convert 0..255 to uint8"
        )
    return levels.astype(np.uint8)
