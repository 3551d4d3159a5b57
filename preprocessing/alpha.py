"""Transparent images: a ground to lay under them, and a word where dropping the transparency changes what they show.

The released recipe drops transparency: a clear pixel shows the colour that the file happens to have under it, black
more often than not, so that black print on a clear ground becomes a black rectangle.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageColor

from preprocessing.errors import InputError, brief

Colour: TypeAlias = tuple[int, int, int]

Background: TypeAlias = str | Sequence[int] | None
"""What lies behind a transparent image: a colour as Pillow writes it ("white", "#rrggbb"), or (r, g, b) from 0 to 255.

None drops the transparency, as the released recipe does.
"""

_SAMPLES = 128  # pixels along each side that are looked at
_VISIBLE = 64  # of 255 levels
_SHARE = 0.05  # of the pixels

_lock = threading.Lock()
_said = False


def read_background(background: Background) -> Colour | None:
    """The colour as (r, g, b). Raises InputError for anything else than an opaque colour or None."""
    if background is None:
        return None
    if isinstance(background, str):
        try:
            r, g, b, *alpha = ImageColor.getrgb(background)
        except ValueError:
            raise _not_a_colour(background) from None
        if alpha not in ([], [255]):
            raise InputError(f"background={background!r} is not opaque: leave its alpha out")
        return r, g, b
    try:
        r, g, b = map(operator.index, background)
    except (TypeError, ValueError):
        raise _not_a_colour(background) from None
    if not all(0 <= level <= 255 for level in (r, g, b)):
        raise _not_a_colour(background)
    return r, g, b


def _not_a_colour(background: object) -> InputError:
    forms = 'a name such as "white", "#rrggbb", (r, g, b) of whole numbers from 0 to 255, or None'
    return InputError(f"background={brief(background)} is not a colour: use {forms}")


def on_ground(image: Image.Image, colour: Colour) -> Image.Image:
    """RGB pixels of a transparent image of any mode, as Pillow's `alpha_composite` puts it on a ground of `colour`."""
    ground = Image.new("RGBA", image.size, (*colour, 255))
    return Image.alpha_composite(ground, rgba(image)).convert("RGB")


def rgba(image: Image.Image) -> Image.Image:
    # Pillow converts La, grey multiplied by its alpha, to LA alone.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def warn_of_dropped(image: Image.Image, label: str) -> None:
    """Says, once in a process, that dropping the transparency of `image` changes what it shows."""
    if not _said and changes_meaning(image):
        warn_once(
            f"{label} is partly transparent, and what it shows depends on what lies behind it. The transparency is "
            'dropped, as in the released recipe; background="white" (or another colour) lays such images on it. '
            "Further images are not reported."
        )


def warn_once(text: str) -> None:
    """Warns if this process has not yet; `text` may be what another process has to say."""
    global _said
    with _lock:
        if _said:
            return
        _said = True
    warnings.warn(text, stacklevel=3)


def changes_meaning(image: Image.Image) -> bool:
    """Whether a transparent image is another one without its transparency.

    It is where many of its pixels look clearly different from how they look on white, the ground that most such images
    are made for; and where only the transparency draws it, as with white print on clear white.
    """
    size = (min(image.width, _SAMPLES), min(image.height, _SAMPLES))
    sample = rgba(image.resize(size, Image.Resampling.NEAREST))
    alpha = np.asarray(sample.getchannel("A"))
    if alpha.min() == 255:
        return False
    dropped = np.asarray(sample.convert("RGB")).astype(int)  # [h, w, 3]
    on_white = np.asarray(on_ground(sample, (255, 255, 255))).astype(int)
    differs = np.abs(dropped - on_white).max(-1) > _VISIBLE
    flat = np.ptp(dropped, axis=(0, 1)).max() <= _VISIBLE < np.ptp(alpha)
    return bool(flat or differs.mean() > _SHARE)
