"""Arrays and pixels of more than 8 bits: each dtype by its rule, and what fits none is refused."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing import ImageError, load_image

SHAPES = [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)]
FLOATS: list[Any] = [np.float16, np.float32, np.float64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def pixels(source: Any) -> np.ndarray:
    return np.asarray(load_image(source))


def as_rgb(levels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(levels.squeeze()).convert("RGB"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:.* is partly transparent")
def test_floats_go_from_0_to_1(shape: tuple[int, ...], dtype: Any) -> None:
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if isinstance(dtype, torch.dtype):
        array: Any = torch.from_numpy(levels).to(dtype) / 255
        exact = array.double().numpy() * 255
        if len(shape) == 3:
            array = array.permute(2, 0, 1)  # as torchvision has it
    else:
        array = (levels / 255).astype(dtype)
        exact = array.astype(np.float64) * 255
    assert np.array_equal(pixels(array), as_rgb(np.rint(exact).astype(np.uint8)))
    if dtype not in (torch.bfloat16,):
        assert np.array_equal(pixels(array), as_rgb(levels)), "what was 8 bits comes back"


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_floats_are_rounded_to_nearest(a: float, b: float) -> None:
    found = pixels(np.array([[a, b]]))[0, :, 0].astype(float)
    assert np.abs(found / 255 - [a, b]).max() <= 0.5 / 255 + 1e-9


def test_floats_half_a_level_beyond_are_black_and_white() -> None:
    assert pixels(np.array([[-0.0019, 1.0019, -0.0]]))[0, :, 0].tolist() == [0, 255, 0]


def test_float_files_follow_the_same_rule() -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    file = BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    portable = b"Pf\n16 16\n-1.0\n" + values[::-1].astype("<f4").tobytes()
    for source in (file.getvalue(), portable, Image.fromarray(values), values):
        assert np.array_equal(pixels(source)[:, :, 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ([0.0, 255.0], "from 0 to 255; scale them, or convert 0..255 to uint8"),
        ([0.0, 1.02], "from 0 to 1.02"),
        ([-1.0, 1.0], "from -1 to 1"),
        ([0.0, np.nan], "NaN or infinite"),
        ([0.0, np.inf], "NaN or infinite"),
        ([-np.inf, np.nan], "NaN or infinite"),
        ([0.0, 3e38], "from 0 to 3e[+]38"),
    ],
)
def test_other_floats_are_refused(values: list[float], cause: str) -> None:
    array = np.array([values], np.float32)
    for source in (array, array.astype(np.float64), torch.from_numpy(array), Image.fromarray(array)):
        with pytest.raises(ImageError, match=rf"^image 3: floating-point pixels have to be from 0 .* {cause}"):
            load_image(source, name="image 3")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore:.* is partly transparent")
def test_bool_and_sixteen_bit_arrays(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    for array in (values, values.astype(">u2"), torch.from_numpy(values)):
        assert np.array_equal(pixels(array), as_rgb(expected))
    truth = values > 30_000
    for array in (truth, torch.from_numpy(truth)):
        assert np.array_equal(pixels(array), as_rgb(truth.astype(np.uint8) * 255))


def test_grey_of_sixteen_bits_is_the_same_as_array_and_image() -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    assert np.array_equal(pixels(values), pixels(Image.fromarray(values)))


def test_tensors_that_train_or_are_views() -> None:
    tensor = torch.rand(3, 8, 8, requires_grad=True)
    expected = np.rint(tensor.detach().numpy().transpose(1, 2, 0) * 255)
    assert np.array_equal(pixels(tensor), expected)
    assert np.array_equal(pixels(tensor[:, ::2, ::2]), expected[::2, ::2])


def test_tensors_in_other_stores_than_numpy_has() -> None:
    values = torch.rand(4, 6)
    assert np.array_equal(pixels(torch._neg_view(-values)), pixels(values))
    for tensor in (values.to("meta"), values.to_sparse(), values.to(torch.complex64).conj()):
        with pytest.raises(ImageError, match=r"tensor|complex64"):
            load_image(tensor)


@pytest.mark.parametrize("shape", [(20_000, 20_000, 3), (3, 20_000, 20_000), (200_000, 1)])
def test_arrays_of_too_many_pixels_are_refused_before_they_are_copied(shape: tuple[int, ...]) -> None:
    one = np.full((1,) * len(shape), 0.5)
    with pytest.raises(ImageError, match="over the limit"):
        load_image(np.broadcast_to(one, shape))


def test_adobe_jpegs_keep_their_colours() -> None:
    """CMYK files of Adobe's are stored inverted, and Pillow turns them back."""
    image = Image.new("RGB", (32, 32), (200, 30, 60)).convert("CMYK")
    file = BytesIO()
    image.save(file, "JPEG", quality=95)
    assert b"Adobe" in file.getvalue()[:64]
    assert np.abs(pixels(file.getvalue()).astype(int) - (200, 30, 60)).max() <= 6


def test_the_callers_array_is_left_alone() -> None:
    array = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    before = array.copy()
    load_image(array)
    assert np.array_equal(array, before)
