"""Time from a decoded RGB image to its tiles: ours, Pillow's own calls, and transformers' LLaVA-NeXT processors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from preprocessing import PINPOINTS, Patcher

TILE = 336


@dataclass(frozen=True, slots=True)
class PatcherRow:
    """One image size; times are medians in milliseconds, None where transformers is not installed.

    `transformers_ms` is its default processor (torchvision), `transformers_pillow_ms` its Pillow one; `ratio` and
    `pillow_ratio` are our time over theirs. Theirs include the normalisation to float32, which we leave to the device.
    `identical`: our pixels equal the recipe's done with Pillow. `equals_transformers`: they equal the Pillow
    processor's, which rounds the resized side up where the released recipe rounds it down.
    """

    width: int
    height: int
    tiles: int
    ours_ms: float
    recipe_ms: float
    transformers_ms: float | None
    transformers_pillow_ms: float | None
    identical: bool
    equals_transformers: bool | None

    @property
    def ratio(self) -> float | None:
        return None if self.transformers_ms is None else self.ours_ms / self.transformers_ms

    @property
    def pillow_ratio(self) -> float | None:
        return None if self.transformers_pillow_ms is None else self.ours_ms / self.transformers_pillow_ms


def bench_patcher(
    sizes: Sequence[tuple[int, int]] = ((1920, 1080), (4032, 3024)), repeats: int = 15
) -> list[PatcherRow]:
    """Time every contender on each (width, height), in turns, so that a busy moment of the machine hits all alike."""
    patcher = Patcher()
    default, pillow = _transformers()
    rows = []
    for width, height in sizes:
        image = _photograph(width, height)
        contenders: dict[str, Callable[[], object]] = {
            "ours": partial(patcher, image),
            "recipe": partial(_recipe, image, patcher.resolution(width, height)),
        }
        for name, processor in (("default", default), ("pillow", pillow)):
            if processor is not None:
                contenders[name] = partial(processor, image)
        times = _medians(contenders, repeats)
        tiles, grid = patcher(image)
        rows.append(
            PatcherRow(
                width=width,
                height=height,
                tiles=grid.tiles,
                ours_ms=times["ours"],
                recipe_ms=times["recipe"],
                transformers_ms=times.get("default"),
                transformers_pillow_ms=times.get("pillow"),
                identical=torch.equal(tiles, _recipe(image, grid.resolution)),
                equals_transformers=None if pillow is None else _equal_pixels(tiles, pillow, image),
            )
        )
    return rows


def _medians(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, after one unmeasured turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn > 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(values) for name, values in times.items()}


def _photograph(width: int, height: int) -> Image.Image:
    """Random and smooth, as photographs are."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def _recipe(image: Image.Image, canvas_size: tuple[int, int]) -> Tensor:
    """The released recipe as one would write it with Pillow: uint8 [tiles, 3, 336, 336]."""
    (width, height), (canvas_width, canvas_height) = image.size, canvas_size
    if width / height > canvas_width / canvas_height:
        size = canvas_width, max(1, int(canvas_width * height / width))
    else:
        size = max(1, int(canvas_height * width / height)), canvas_height
    canvas = Image.new("RGB", canvas_size)
    canvas.paste(
        image.resize(size, Image.Resampling.BICUBIC), ((canvas_width - size[0]) // 2, (canvas_height - size[1]) // 2)
    )
    tiles = [image.resize((TILE, TILE), Image.Resampling.BICUBIC)]
    for top in range(0, canvas_height, TILE):
        tiles += [canvas.crop((left, top, left + TILE, top + TILE)) for left in range(0, canvas_width, TILE)]
    return torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2).contiguous()


def _transformers() -> tuple[Callable[..., Tensor] | None, Callable[..., Tensor] | None]:
    """transformers' default and Pillow processors for the released pinpoints, None where not installed."""
    try:
        from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    except ImportError:
        return None, None
    side = {"height": TILE, "width": TILE}
    pinpoints = [[height, width] for width, height in PINPOINTS]

    def tiles_of(processor_class: Any) -> Callable[..., Tensor]:
        processor = processor_class(size=side, crop_size=side, image_grid_pinpoints=pinpoints)
        return lambda image, **options: processor(image, return_tensors="pt", **options)["pixel_values"][0]

    return tiles_of(LlavaNextImageProcessor), tiles_of(LlavaNextImageProcessorPil)


def _equal_pixels(tiles: Tensor, processor: Callable[..., Tensor], image: Image.Image) -> bool:
    return torch.equal(tiles.float(), processor(image, do_rescale=False, do_normalize=False).float())
