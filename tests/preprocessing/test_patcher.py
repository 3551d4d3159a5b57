"""The patcher against the recipe written naively with Pillow, and against transformers where the two agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing import PINPOINTS, Grid, ImageError, Patcher
from preprocessing.resize import resize_planes

SIX_BY_SIX = tuple((336 * i, 336 * j) for i in range(1, 7) for j in range(1, 7))
SIZES = st.tuples(st.integers(1, 700), st.integers(1, 700))


@pytest.fixture(autouse=True)
def _compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with Pillow is not Pillow."""
    monkeypatch.setattr("preprocessing.resize.UNCOMPILED_PIXELS", 0)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise in blocks of prime sides: every pixel matters, and bicubic overshoots are clipped."""
    noise = np.random.default_rng(seed).integers(0, 256, (min(height, 499), min(width, 503), 3), dtype=np.uint8)
    return Image.fromarray(np.tile(noise, (-(-height // 499), -(-width // 503), 1))[:height, :width])


def recipe_resolution(w: int, h: int, pinpoints: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    scored = []
    for position, (W, H) in enumerate(pinpoints):
        s = min(W / w, H / h)
        effective = min(max(1, int(w * s)) * max(1, int(h * s)), w * h)
        scored.append((-effective, W * H - effective, position))
    return pinpoints[min(scored)[2]]


def recipe_tiles(image: Image.Image, pinpoints: tuple[tuple[int, int], ...] = PINPOINTS, tile: int = 336) -> np.ndarray:
    """uint8 [tiles, tile, tile, 3]."""
    w, h = image.size
    W, H = recipe_resolution(w, h, pinpoints)
    size = (W, max(1, int(W * h / w))) if w / h > W / H else (max(1, int(H * w / h)), H)
    canvas = Image.new("RGB", (W, H), (0, 0, 0))
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC), ((W - size[0]) // 2, (H - size[1]) // 2))
    tiles = [image.resize((tile, tile), Image.Resampling.BICUBIC)]
    tiles += [canvas.crop((x, y, x + tile, y + tile)) for y in range(0, H, tile) for x in range(0, W, tile)]
    return np.stack([np.asarray(t) for t in tiles])


def recipe_crop(w: int, h: int, rows: int, cols: int) -> tuple[slice, slice]:
    """The part of a rows x cols feature map that unpadding keeps."""
    if w / h > cols / rows:
        pad = (rows - max(1, int(h * cols) // w)) // 2
        return slice(pad, rows - pad), slice(0, cols)
    pad = (cols - max(1, int(w * rows) // h)) // 2
    return slice(0, rows), slice(pad, cols - pad)


def assert_recipe(image: Image.Image, pinpoints: tuple[tuple[int, int], ...] = PINPOINTS) -> None:
    tiles, grid = Patcher(pinpoints)(image)
    assert tiles.dtype == torch.uint8
    assert tiles.is_contiguous()
    assert tiles.shape == (grid.tiles, 3, 336, 336)
    assert np.array_equal(tiles.permute(0, 2, 3, 1).numpy(), recipe_tiles(image, pinpoints))
    assert grid == Patcher(pinpoints).grid(*image.size)


@pytest.mark.parametrize(
    ("size", "tokens", "resolution"),
    [
        ((336, 336), 1176, (336, 336)),
        ((640, 480), 2340, (672, 672)),
        ((1920, 1080), 9864, (2016, 1008)),
        ((2016, 1344), 8424, (1680, 1008)),
        ((4032, 3024), 7560, (1344, 1008)),
        ((2016, 2016), 9888, (1344, 1344)),
        ((1, 3000), 1008, (336, 2016)),
    ],
)
def test_worked_values(size: tuple[int, int], tokens: int, resolution: tuple[int, int]) -> None:
    grid = Patcher().grid(*size)
    assert (grid.tokens, grid.resolution) == (tokens, resolution)
    assert (grid.width, grid.height) == size


def test_the_released_pinpoints() -> None:
    assert len(PINPOINTS) == len(set(PINPOINTS)) == 28
    assert set(PINPOINTS) == {(height, width) for width, height in PINPOINTS}
    assert PINPOINTS[:7] == ((336, 336), (336, 672), (336, 1008), (336, 1344), (336, 1680), (336, 2016), (672, 336))
    assert PINPOINTS[-3:] == ((2016, 336), (2016, 672), (2016, 1008))


@given(SIZES, st.sampled_from([PINPOINTS, SIX_BY_SIX, ((672, 336), (336, 672))]))
@example((1, 1), PINPOINTS)
@example((1, 700), PINPOINTS)
@example((700, 1), PINPOINTS)
@example((336, 336), PINPOINTS)
@settings(max_examples=60, deadline=None)
def test_pixels_are_the_recipes(size: tuple[int, int], pinpoints: tuple[tuple[int, int], ...]) -> None:
    assert_recipe(picture(*size), pinpoints)


@pytest.mark.parametrize(
    "size", [(8000, 8000), (4032, 3024), (8000, 1), (1, 8000), (45, 6000), (6000, 45), (700, 6900), (3001, 777)]
)
def test_pixels_of_large_images(size: tuple[int, int]) -> None:
    assert_recipe(picture(*size))


@given(SIZES, SIZES, SIZES, st.integers(1, 5), st.integers(0, 2**32))
@example((60, 600), (20, 20), (7, 70), 2, 0)
@example((600, 60), (20, 20), (70, 7), 2, 0)
@settings(max_examples=150, deadline=None)
def test_resize_is_pillows(
    size: tuple[int, int], small: tuple[int, int], large: tuple[int, int], threads: int, seed: int
) -> None:
    if max(size) <= 10 * min(size):  # beyond that the patcher asks for what it then leaves to Pillow
        large = size[0], large[1]  # Pillow skips the pass that changes nothing
    image = picture(*size, seed=seed)
    for planes, target in zip(resize_planes(image, [small, large], threads), (small, large), strict=True):
        expected = np.asarray(image.resize(target, Image.Resampling.BICUBIC))
        assert np.array_equal(planes.transpose(1, 2, 0), expected)


def test_other_processors_use_pillow_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(700, 500)
    compiled = resize_planes(image, [(336, 336), (470, 336)])
    monkeypatch.setattr("preprocessing.resize.COMPILED", False)
    for ours, pillows in zip(compiled, resize_planes(image, [(336, 336), (470, 336)]), strict=True):
        assert np.array_equal(ours, pillows)


def test_the_first_small_images_are_done_before_the_loops_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocessing import resize

    monkeypatch.setattr(resize, "UNCOMPILED_PIXELS", 200 * 300)
    monkeypatch.setattr(resize, "_seen", 0)
    compiled = []
    loops = resize._in_loops
    monkeypatch.setattr(resize, "_in_loops", lambda *given: compiled.append(given[0].size) or loops(*given))
    images = [picture(200, 150, 1), picture(200, 150, 2), picture(20, 30, 3), picture(200, 150, 4)]
    for image in images:
        (planes,) = resize_planes(image, [(336, 252)])
        expected = np.asarray(image.resize((336, 252), Image.Resampling.BICUBIC))
        assert np.array_equal(planes.transpose(1, 2, 0), expected)
    assert compiled == ([(20, 30), (200, 150)] if resize.COMPILED else [])


def test_high_contrast_is_clipped_as_pillow_clips() -> None:
    """Bicubic overshoots at edges; sums beyond 8 bits must not wrap."""
    pixels = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (300, 400, 3))
    image = Image.fromarray(pixels)
    for size in ((900, 700), (133, 99)):
        (planes,) = resize_planes(image, [size])
        assert np.array_equal(planes.transpose(1, 2, 0), np.asarray(image.resize(size, Image.Resampling.BICUBIC)))


@given(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), st.sampled_from([PINPOINTS, SIX_BY_SIX]))
@settings(max_examples=300, deadline=None)
def test_grid_is_the_released_unpadding(size: tuple[int, int], pinpoints: tuple[tuple[int, int], ...]) -> None:
    grid = Patcher(pinpoints).grid(*size)
    assert grid.resolution == recipe_resolution(*size, pinpoints)
    marks = np.arange(grid.tile_rows * 24 * grid.tile_cols * 24).reshape(grid.tile_rows * 24, grid.tile_cols * 24)
    kept = marks[recipe_crop(*size, *marks.shape)]
    assert kept.size > 0
    assert np.array_equal(kept, marks[grid.top : grid.top + grid.rows, grid.left : grid.left + grid.cols])
    assert grid.tokens == 576 + kept.shape[0] * (kept.shape[1] + 1)
    assert grid.tiles == 1 + marks.size // 576


@pytest.mark.parametrize("size", [(1920, 1080), (701, 333), (100, 900), (1, 3000), (3000, 1), (5, 5)])
@pytest.mark.parametrize("tile", [56, 336])
def test_box_is_where_the_tiles_show_the_image(size: tuple[int, int], tile: int) -> None:
    patcher = Patcher(tuple((w * tile // 336, h * tile // 336) for w, h in PINPOINTS), tile)
    tiles, grid = patcher(Image.new("RGB", size, "white"))
    shape = grid.tile_rows, grid.tile_cols, 3, grid.tile, grid.tile
    canvas = tiles[1:].view(shape)[:, :, 0].permute(0, 2, 1, 3).reshape(grid.resolution[::-1]).numpy()
    ys, xs = np.nonzero(canvas)
    assert grid.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@given(st.tuples(st.integers(8, 6000), st.integers(8, 6000)))
@settings(max_examples=200, deadline=None)
def test_resolution_is_transformers(size: tuple[int, int]) -> None:
    utils = pytest.importorskip("transformers.image_processing_utils")
    width, height = size
    best = utils.select_best_resolution((height, width), [(h, w) for w, h in PINPOINTS])
    assert Patcher().resolution(width, height) == (best[1], best[0])


@pytest.mark.parametrize("size", [(1920, 1080), (1008, 756), (336, 336), (500, 1000)])
def test_tiles_are_transformers(size: tuple[int, int]) -> None:
    """Sizes whose scaled sides are whole: there transformers' rounding up and the release's down agree."""
    module = pytest.importorskip("transformers.models.llava_next.image_processing_pil_llava_next")
    side = {"height": 336, "width": 336}
    peer = module.LlavaNextImageProcessorPil(
        size=side, crop_size=side, image_grid_pinpoints=[[h, w] for w, h in PINPOINTS]
    )
    image = picture(*size)
    expected = peer(image, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values[0]
    tiles, _ = Patcher()(image)
    assert torch.equal(tiles.float(), expected.float())


def test_other_tile_sizes() -> None:
    patcher = Patcher(((56, 56), (112, 56), (56, 112)), tile=56, patch=14)
    tiles, grid = patcher(picture(100, 40))
    assert grid == Grid(100, 40, tile_cols=2, tile_rows=1, left=0, top=0, cols=8, rows=4, patches=4, tile=56)
    assert np.array_equal(tiles.permute(0, 2, 3, 1).numpy(), recipe_tiles(picture(100, 40), patcher.pinpoints, 56))


def test_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(ImageError, match="mode L"):
        Patcher()(Image.new("L", (10, 10)))
    for pinpoints in ((), ((336, 100),), ((0, 336),)):
        with pytest.raises(ValueError, match="pinpoints"):
            Patcher(pinpoints)
    with pytest.raises(ValueError, match="patch"):
        Patcher(patch=13)
