from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vl.nano.pictures.fonts import PRINTED, find_faces, open_face
from vl.nano.pictures.glyphs import draw_line
from vl.nano.pictures.pen import Pen, Type


@pytest.mark.parametrize("seed", range(3))
def test_lines_have_the_pixels_that_pillow_gives_them(seed: int) -> None:
    rng, faces, printed = np.random.default_rng(seed), find_faces(), 0
    for number in range(60):
        face, size = faces[int(rng.integers(len(faces)))], int(rng.integers(10, 60))
        text = "".join(PRINTED[int(i)] for i in rng.integers(len(PRINTED), size=int(rng.integers(1, 24))))
        # Halves of a pixel and whole ones are where roundings part ways.
        left, base = (float(at) for at in (30 * rng.random(), 40 + 40 * rng.random()))
        if number % 3 == 0:
            left, base = round(2 * left) / 2, round(2 * base) / 2
        ink = (int(rng.integers(256)), int(rng.integers(256)), int(rng.integers(256)))
        own, theirs = (Image.new("RGB", (500, 120), (10, 200, 30)) for _ in range(2))
        if draw_line(ImageDraw.Draw(own), text, face, size, ink, left, base):
            ImageDraw.Draw(theirs).text((left, base), text, fill=ink, font=open_face(face, size), anchor="ls")
            printed += 1
        assert own.tobytes() == theirs.tobytes(), (face.name, size, text, left, base)
    assert printed > 40


def test_what_pillow_is_left_to_print_is_printed() -> None:
    """Text that begins outside of the picture, and none at all, after so much that letters are drawn by themselves."""
    kind = Type(find_faces()[0], 20)
    pen, plain = Pen(Image.new("RGB", (300, 60))), Image.new("RGB", (300, 60))
    draw = ImageDraw.Draw(plain)
    for text, left, base in (("a" * 100, 5.5, 20.25), ("bcd", -7.75, 40.5), ("", 5.0, 5.0), ("efg", 40.3, -1.2)):
        pen.print(text, kind, (255, 0, 0), left, base)
        draw.text((left, base), text, fill=(255, 0, 0), font=kind.font, anchor="ls")
    assert pen.image.tobytes() == plain.tobytes()
