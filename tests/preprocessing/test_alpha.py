"""Transparent images on a ground, against Pillow's own compositing; and when dropping transparency is warned of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from preprocessing import InputError, alpha, load_image

WIDTH, HEIGHT = 24, 16
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
NOISE[:4, :, 3], NOISE[4:8, :, 3] = 0, 255
RGBA = Image.fromarray(NOISE)
GROUNDS = {"white": (255, 255, 255), "#102030": (16, 32, 48), (1, 2, 3): (1, 2, 3), "rebeccapurple": (102, 51, 153)}


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def composited(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Pillow's compositing: uint8 [H, W, 3]."""
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, (*colour, 255)), image).convert("RGB"))


def pixels(source: Any, background: Any = None) -> np.ndarray:
    return np.asarray(load_image(source, background=background))


@pytest.fixture(autouse=True)
def unsaid() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alpha, "_said", False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


@pytest.mark.parametrize(("background", "colour"), GROUNDS.items(), ids=str)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
def test_transparent_modes_lie_on_the_ground(mode: str, background: Any, colour: tuple[int, int, int]) -> None:
    image = (RGBA.convert("LA") if mode == "La" else RGBA).convert(mode)
    straight = (image.convert("LA") if mode == "La" else image).convert("RGBA")
    assert np.array_equal(pixels(image, background), composited(straight, colour))


def test_premultiplied_pixels_look_as_before_they_were() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    expected = composited(image, (255, 255, 255)).astype(int)
    assert np.abs(pixels(image.convert("RGBa"), "white") - expected).max() <= 2


@pytest.mark.parametrize(
    ("image", "form", "options"),
    [
        (RGBA, "PNG", {}),
        (RGBA, "WEBP", {"lossless": True}),
        (RGBA, "TIFF", {}),
        (RGBA.convert("LA"), "PNG", {}),
        (RGBA.convert("RGB"), "PNG", {"transparency": tuple(NOISE[9, 9, :3].tolist())}),
        (RGBA.convert("L"), "PNG", {"transparency": int(np.asarray(RGBA.convert("L"))[3, 3])}),
        (RGBA.convert("RGB").convert("P"), "PNG", {"transparency": bytes(range(256))}),
        (RGBA.convert("RGB").convert("P"), "GIF", {"transparency": RGBA.convert("RGB").convert("P").getpixel((2, 9))}),
    ],
    ids=lambda value: getattr(value, "mode", str(value)[:20]),
)
def test_transparent_files_lie_on_the_ground(image: Image.Image, form: str, options: dict[str, Any]) -> None:
    content = encoded(image, form, **options)
    straight = Image.open(BytesIO(content)).convert("RGBA")
    assert np.asarray(straight)[:, :, 3].min() < 255
    for background, colour in GROUNDS.items():
        assert np.array_equal(pixels(content, background), composited(straight, colour))
    assert np.array_equal(pixels(content), np.asarray(Image.open(BytesIO(content)).convert("RGB")))


def test_a_transparent_level_of_sixteen_bits() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    content = encoded(Image.fromarray(values), transparency=int(values[5, 5]))
    expected = np.round(values / 257).astype(np.uint8)
    assert np.array_equal(pixels(content)[:, :, 1], expected)
    expected[5, 5] = 250
    assert np.array_equal(pixels(content, (250, 250, 250))[:, :, 1], expected)


def test_arrays_lie_on_the_ground() -> None:
    assert np.array_equal(pixels(NOISE, "white"), composited(RGBA, (255, 255, 255)))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK", "YCbCr", "RGBX", "HSV", "I"])
def test_opaque_modes_do_not_hear_of_the_ground(mode: str) -> None:
    image = RGBA.convert("RGB").convert(mode)
    assert np.array_equal(pixels(image, "red"), pixels(image))


@given(st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 7))
@settings(max_examples=100, deadline=None)
def test_one_pixel_by_hand(clear: int, levels: tuple[int, ...]) -> None:
    colour, ground = levels[:3], levels[3:6]
    found = pixels(np.array([[[*colour, clear]]], np.uint8), ground)[0, 0]
    expected = [(c * clear + g * (255 - clear)) / 255 for c, g in zip(colour, ground, strict=True)]
    assert np.abs(found - np.array(expected)).max() <= 1


def drawing(ink: tuple[int, ...], clear: tuple[int, ...]) -> Image.Image:
    image = Image.new("RGBA", (200, 100), clear)
    ImageDraw.Draw(image).text((20, 20), "MEANING", fill=ink, font_size=30)
    return image


def card(corners: tuple[int, ...]) -> Image.Image:
    """A picture with rounded corners."""
    image = Image.new("RGBA", (200, 100), corners)
    image.paste(Image.effect_noise((200, 100), 60), mask=_rounded())
    return image


def _rounded() -> Image.Image:
    mask = Image.new("L", (200, 100))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 199, 99), 15, fill=255)
    return mask


BLACK, WHITE, CLEAR, CLEAR_WHITE = (0, 0, 0, 255), (255, 255, 255, 255), (0, 0, 0, 0), (255, 255, 255, 0)


@pytest.mark.parametrize(
    ("image", "warned"),
    [
        (drawing(BLACK, CLEAR), True),
        (drawing(WHITE, CLEAR_WHITE), True),
        (drawing(BLACK, CLEAR).convert("LA"), True),
        (drawing(BLACK, CLEAR_WHITE), False),
        (drawing(BLACK, WHITE), False),
        (card(CLEAR), False),
        (card(CLEAR_WHITE), False),
        (Image.new("RGBA", (50, 50), (9, 9, 9, 255)), False),
    ],
    ids=["black on clear", "white on white", "grey", "black on clear white", "opaque", "corners", "white corners", "9"],
)
def test_dropped_meaning_is_warned_of(image: Image.Image, warned: bool) -> None:
    for source in (image, encoded(image)):
        alpha._said = False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_image(source, name="image 4")
            load_image(source, name="image 5")
        said = [str(w.message) for w in caught if w.category is UserWarning]
        assert [message.partition(" is ")[0] for message in said] == ["image 4"] * warned
        assert all('background="white"' in message for message in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alpha._said = False
        load_image(image, background="white")


def test_it_is_said_once_by_many_threads() -> None:
    image = drawing(BLACK, CLEAR)
    alpha._said = False
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        list(pool.map(load_image, [image.copy() for _ in range(50)]))
    assert len([w for w in caught if w.category is UserWarning]) == 1


NO_COLOURS = ["whitish", "#12", "", (1, 2), (1, 2, 3, 4), (0, 0, 256), (0, 0, -1), 7, [1, 2, 0.5], {"r": 1}]


@pytest.mark.parametrize("background", NO_COLOURS, ids=str)
def test_what_is_not_a_colour(background: Any) -> None:
    with pytest.raises(InputError, match=r'background=.* is not a colour: use a name such as "white"'):
        load_image(RGBA, background=background)


def test_a_ground_is_opaque() -> None:
    with pytest.raises(InputError, match="is not opaque"):
        load_image(RGBA, background="#ff000080")
