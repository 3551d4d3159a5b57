"""What the files say about pixels: `preprocessor_config.json`, or `processor_config.json` as transformers 5 writes it.

The patcher computes one thing: the whole image and the tiles of one resolution, bicubic, divided by 255, normalised. A
key that asks for something else is refused by name. A key that several files have must mean the same in all of them.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from preprocessing.grid import PINPOINTS
from vision_encoder.config import VisionConfig
from vl.section import Section

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

Pinpoints = tuple[tuple[int, int], ...]
Channels = tuple[float, float, float]
T = TypeVar("T")

# Steps that the patcher always does. Null is refused too: it means off in some releases of transformers, on in others.
_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
# Numbers of steps that other image processors have.
_NUMBERS_OF_OTHER_STEPS = (
    *("size_divisor", "pad_size", "min_pixels", "max_pixels", "crop_pct"),
    *("max_slice_nums", "min_patches", "max_patches", "max_image_tiles", "max_image_size"),
)
_BICUBIC = (3, "3", "bicubic", "BICUBIC")
# Other ways of the same steps: what the patcher does, where a file says it.
_OTHER_WAYS: dict[str, tuple[Any, ...]] = {
    "interpolation": _BICUBIC,
    "antialias": (True, None),
    "image_aspect_ratio": ("anyres", None),
    "rescale_offset": (False, None),
}
_MOST_TILES = 1024  # of 336 pixels: 115 million, near the most that an image may have
_MEANS, _DEVIATIONS = (-1e9, 1e9), (1e-6, 1e9)  # beyond, patches are infinite in float32 or not numbers


@dataclass(frozen=True)
class Pixels:
    """The resolutions to resize to, (width, height) in pixels, and the mean and deviation of values in 0..1."""

    pinpoints: Pinpoints
    mean: Channels
    std: Channels


def read_pixels(top: Section, tile: int, patch: int) -> Pixels:
    """What `config.json` and the preprocessor's files beside it say about pixels.

    Mean and deviation are CLIP's and the pinpoints the release's 28 where no file gives any.

    Args:
        top: `config.json`.
        tile, patch: sides in pixels, of the vision tower.

    Raises:
        ConfigError: if a file is malformed, asks for another computation, or contradicts another.
    """
    places = []
    for name in (PREPROCESSOR, PROCESSOR):
        places.append(Section.read(top.file.parent / name, optional=True))
        if places[-1].has("image_processor"):
            places.append(places[-1].child("image_processor"))
    for place in (top, *places):
        place.allow("process_image_mode", "anyres", None)
        place.allow("vision_feature_select_strategy", "default", None)
        place.allow("image_token", "<image>", None)
    for place in places:
        place.allow("patch_size", patch, None, {"height": patch, "width": patch})
        _refuse_other_computations(place, tile)
    listing = [place for place in (top, *places) if place.has("image_grid_pinpoints")]
    return Pixels(
        pinpoints=_agreed(listing, "image_grid_pinpoints", lambda place, key: _pinpoints(place, key, tile), PINPOINTS),
        mean=_agreed(places, "image_mean", _channels, VisionConfig.image_mean),
        std=_agreed(places, "image_std", _channels, VisionConfig.image_std),
    )


def preprocessor_to_json(vision: VisionConfig, pinpoints: Pinpoints) -> dict[str, Any]:
    """The contents of `preprocessor_config.json`. `size` is (width, height): the released class indexes it."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": [list(pinpoint) for pinpoint in pinpoints],
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "patch_size": vision.patch_size,
        "process_image_mode": "anyres",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": [vision.image_size, vision.image_size],
    }


def _agreed(places: Iterable[Section], key: str, parse: Callable[[Section, str], T], default: T) -> T:
    """The meaning of a key in the places that have it."""
    found: list[tuple[Path, T]] = []
    for place in places:
        if key in place.values:
            found.append((place.file, parse(place, key)))
            first, value = found[0]
            if found[-1][1] != value:
                raise place.error(key, f"contradicts {key} in {first}: make them equal, or take it out of one file")
    return found[0][1] if found else default


def _refuse_other_computations(place: Section, tile: int) -> None:
    for key in _STEPS:
        place.allow(key, True)
    place.allow("do_pad", True, None)  # tiles are pasted on black, and transformers pads batches
    place.allow("resample", *_BICUBIC)
    if "rescale_factor" in place.values and not math.isclose(place.number("rescale_factor", default=math.nan), 1 / 255):
        raise place.error("rescale_factor", f"= {place.values['rescale_factor']!r} is not supported: it must be 1/255")
    _must_be_tile(place, "size", tile)
    if place.values.get("do_center_crop"):
        if not place.has("crop_size"):
            raise place.error("do_center_crop", f"needs crop_size = {tile}, which changes nothing, or must be false")
        _must_be_tile(place, "crop_size", tile)
    for key, value in place.values.items():
        if key.startswith("do_") and key not in (*_STEPS, "do_pad", "do_center_crop") and value:
            raise place.error(key, f"= {value!r} is a step that this implementation does not have: take it out")
    for key in _NUMBERS_OF_OTHER_STEPS:
        place.allow(key, None)
    for key, ways in _OTHER_WAYS.items():
        place.allow(key, *ways)


def _must_be_tile(place: Section, key: str, tile: int) -> None:
    if place.has(key) and _sides(place.values[key]) not in ((tile,), (tile, tile)):
        raise place.error(
            key, f"= {place.values[key]!r} is not supported: tiles are [{tile}, {tile}], as image_size in config.json"
        )


def _sides(size: Any) -> tuple[Any, ...]:
    """The sides that a size names: 336, [336, 336], {"height", "width"} or {"shortest_edge"}, or the text of these.

    The image is resized to a square whatever its shape, so the shortest edge alone says the same. Anything else gives
    sides that equal no tile's.
    """
    size = _literal(size)
    if isinstance(size, Mapping):
        named = {key: value for key, value in size.items() if value is not None}
        if named.keys() not in ({"height", "width"}, {"shortest_edge"}):
            return ()
        size = list(named.values())
    return tuple(_literal(side) for side in size) if isinstance(size, list | tuple) else (size,)


def _literal(value: Any) -> Any:
    """The value that a text spells; anything else, and text that spells none, as it is."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return value


def _channels(place: Section, key: str) -> Channels:
    """Three numbers, or one for all three, that float32 can compute with."""
    values = place.values[key]
    if isinstance(values, int | float):
        values = [values] * 3
    if not isinstance(values, list) or len(values) != 3:
        raise place.error(key, f"must list three numbers, got {values!r}")
    channels = Section(dict(zip("rgb", values, strict=True)), place.file, f"{place.path}{key}.")
    least, most = _DEVIATIONS if key == "image_std" else _MEANS
    red, green, blue = (channels.number(name, default=math.nan, least=least, most=most) for name in "rgb")
    return red, green, blue


def _pinpoints(place: Section, key: str, tile: int) -> Pinpoints:
    """Pairs of sides in pixels; some files store the list as the text of a Python literal."""
    values = _literal(place.values[key])
    if not isinstance(values, list | tuple) or not values:
        raise place.error(key, f"must be a list of (width, height) pairs, got {values!r}")
    for pair in values:
        sides: Sequence[Any] = pair if isinstance(pair, list | tuple) else ()
        if len(sides) != 2 or any(type(side) is not int or side < tile or side % tile for side in sides):
            raise place.error(key, f"has {pair!r}: sides must be multiples of image_size {tile}")
        if math.prod(sides) > _MOST_TILES * tile**2:
            raise place.error(key, f"has {pair!r}: an image is cut into at most {_MOST_TILES} tiles")
    return tuple((width, height) for width, height in values)
