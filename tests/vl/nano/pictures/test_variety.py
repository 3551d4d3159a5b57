"""Pictures that are made others still show what they are called by, and fill their canvas."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl.nano.mix import SMALL, Mix
from vl.nano.pictures.photographs import Photographs
from vl.nano.pictures.variety import vary_cutout, vary_photo
from vl.nano.render import render
from vl.nano.tasks import TASKS

from .cutout_folder import make_cutouts


def orange() -> Image.Image:
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    image.paste((240, 140, 20, 255), (6, 4, 50, 36))
    return image


def hue_of(image: Image.Image) -> float:
    """Of the mean of its ink, 0 to 1."""
    pixels = np.asarray(image).reshape(-1, 4)
    red, green, blue = pixels[pixels[:, 3] > 200][:, :3].mean(axis=0) / 255
    return colorsys.rgb_to_hsv(red, green, blue)[0]


def test_what_is_known_by_its_colour_keeps_it_and_others_do_not() -> None:
    kept, free = (
        np.array([hue_of(vary_cutout(np.random.default_rng(seed), orange(), keep)) for seed in range(60)])
        for keep in (True, False)
    )
    assert np.abs(kept - 33 / 360).max() < 20 / 360
    assert np.abs(free - 33 / 360).max() > 120 / 360


def test_a_cutout_is_cropped_to_an_ink_of_other_forms() -> None:
    sizes, areas = set(), []
    for seed in range(60):
        image = vary_cutout(np.random.default_rng(seed), orange(), False)
        ink = image.getchannel("A").point(lambda value: 255 * (value > 24))
        assert image.mode == "RGBA"
        assert ink.getbbox() == (0, 0, *image.size)
        sizes.add(image.size)
        areas.append(float((np.asarray(ink) > 0).mean()))
    assert len(sizes) > 20
    assert min(areas) > 0.3, "no more is hidden than leaves it to be seen"


@pytest.mark.parametrize("size", [(90, 40), (37, 64), (1200, 700)])
def test_a_part_of_a_photograph_never_shows_what_is_beside_it(size: tuple[int, int]) -> None:
    photo, seen = Image.new("RGB", (64, 48), (180, 150, 120)), set()
    for seed in range(8 if size[0] > 1000 else 60):
        image = vary_photo(np.random.default_rng(seed), *size, photo)
        assert image.size == size
        assert np.ptp(np.asarray(image), axis=(0, 1)).max() <= 1, seed
        seen.add(image.getpixel((0, 0)))
    assert len(seen) > 5


def test_parts_are_of_all_sizes() -> None:
    """A photograph that is a ramp from left to right shows by its slope how much of it a part is."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
    spans = []
    for seed in range(80):
        seen = np.asarray(vary_photo(np.random.default_rng(seed), 32, 32, ramp).convert("L"), float)
        spans.append(np.ptp(seen))
    assert np.quantile(spans, 0.1) < 60 < 140 < np.quantile(spans, 0.9)


def test_a_folders_photographs_may_lie_over_each_other(tmp_path: Path) -> None:
    for name, colour in (("a.png", (250, 250, 250)), ("b.png", (5, 5, 5))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / name)
    photographs = Photographs(str(tmp_path), varied=1.0)
    means = [float(np.asarray(photographs.draw(np.random.default_rng(seed), 16, 16)).mean()) for seed in range(120)]
    assert any(60 < mean < 190 for mean in means)


def test_training_draws_varied_pictures_and_tasks_do_not(tmp_path: Path) -> None:
    Image.effect_noise((60, 60), 80).convert("RGB").save(tmp_path / "held-out.png")
    folder = make_cutouts(tmp_path / "cutouts")
    photos = {"photos": str(tmp_path), "cutouts": folder, "sizes": SMALL}
    plain = Mix(scenes=0, words=0, things=1.0, nothing=1.0, **photos)
    varied = replace(plain, varied=1.0, photo_share=0.9)
    for index in range(6):
        asked = [TASKS["things"].draw(index, mix) for mix in (plain, varied)]
        images = [question.messages[0]["content"][0]["image"] for question in asked]
        assert images[0].tobytes() == images[1].tobytes()
    drawn = [
        sum(render(1, index, mix.only("nothing")).facts.sort == "photo" for index in range(40))  # type: ignore[union-attr]
        for mix in (plain, varied)
    ]
    assert drawn[0] < 22 < drawn[1]
    assert render(1, 3, plain.only("things")).image != render(1, 3, varied.only("things")).image
