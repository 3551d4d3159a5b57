from __future__ import annotations

from dataclasses import replace

import numpy as np

from vl.nano.mix import SMALL, Mix
from vl.nano.pictures.canvas import TEXTURES, Background, contrast
from vl.nano.render import render


def test_textures_are_of_two_shades_that_everything_stands_out_from() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        background = replace(Background.draw(rng, 1.0), noise=0)
        pixels = np.asarray(background.paint(200, 160, rng)).reshape(-1, 3)
        shades, counts = np.unique(pixels, axis=0, return_counts=True)
        assert {tuple(shade) for shade in shades.tolist()} == {background.start, background.end}
        assert counts.min() > 0.15 * len(pixels)
        assert 6 <= background.pitch <= 60
        ink = (255, 255, 255)
        assert background.contrast(ink) == min(contrast(ink, background.start), contrast(ink, background.end))
        seen.add(background.texture)
    assert seen == set(TEXTURES)


def test_a_texture_repeats() -> None:
    background = Background((200, 200, 200), (180, 180, 180), angle=0.0, noise=0, grain=1, texture="stripes", pitch=20)
    row = np.asarray(background.paint(100, 3, np.random.default_rng(0)))[1, :, 0]
    assert (row[:80] == row[20:]).all()
    assert (row[:10] == 180).all()
    assert (row[10:20] == 200).all()


def test_a_share_of_scenes_has_textures_and_the_rest_is_as_before() -> None:
    plain, textured = Mix(sizes=SMALL).only("scenes"), Mix(sizes=SMALL, textures=0.5).only("scenes")
    pairs = [(render(4, index, plain), render(4, index, textured)) for index in range(40)]
    facts = [a.facts == b.facts for a, b in pairs]
    assert not all(facts)
    assert all(a.image.size == b.image.size for a, b in pairs)
    assert render(4, 0, Mix(sizes=SMALL, textures=0.0).only("scenes")).image.tobytes() == pairs[0][0].image.tobytes()
