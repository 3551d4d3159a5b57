from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from vl.nano.pictures.english import word_list
from vl.nano.pictures.fonts import find_faces
from vl.nano.pictures.pen import Pen, Type, smallest_size

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
KIND = Type(next(face for face in find_faces() if face.name == "DejaVuSans"), 40)


def printed(text: str, x: float, align: float) -> tuple[Pen, tuple[int, int, int, int]]:
    """A pen that has written a line at y = 100, and the box around its ink."""
    pen = Pen(Image.new("RGB", (600, 200), WHITE))
    pen.write(text, KIND, BLACK, x, 100.0, align)
    box = pen.image.convert("L").point(lambda value: 255 * (value < 128)).getbbox()
    assert box
    return pen, box


def test_widths_are_those_that_pillow_measures_letter_by_letter() -> None:
    font = ImageFont.truetype(KIND.face.path, 40, layout_engine=ImageFont.Layout.BASIC)
    assert KIND.width("AV 1.5") == pytest.approx(sum(font.getlength(letter) for letter in "AV 1.5"))
    assert KIND.widest(("ab", "abc", "b")) == KIND.width("abc")
    assert KIND.holds(("ab", "abc"), KIND.width("abc"), 2 * KIND.height)
    assert not KIND.holds(("ab", "abc"), KIND.width("abc") - 1, 2 * KIND.height)
    assert not KIND.holds(("ab", "abc"), KIND.width("abc"), 2 * KIND.height - 1)


@pytest.mark.parametrize(("align", "at"), [(0.0, 0), (0.5, 0.5), (1.0, 1)])
def test_lines_begin_are_centred_or_end_where_they_should(align: float, at: float) -> None:
    pen, (left, top, right, bottom) = printed("HOH", 300.0, align)
    assert left + at * (right - left) == pytest.approx(300, abs=5)
    assert (top + bottom) / 2 == pytest.approx(100, abs=2)
    assert pen.boxes[0][1][0] == pytest.approx(left, abs=5)
    assert pen.boxes[-1][1][2] == pytest.approx(right, abs=5)


def test_boxes_hold_the_letters_and_leave_out_spaces() -> None:
    pen, _ = printed("I W", 200.0, 0.0)
    assert [letter for letter, _ in pen.boxes] == ["I", "W"]
    for _, (left, top, right, bottom) in pen.boxes:
        ink = np.asarray(pen.image.convert("L"))[round(top) : round(bottom), round(left) : round(right)] < 128
        assert ink.any()
    inside = sum(
        (np.asarray(pen.image.convert("L"))[round(t) : round(b), round(x0) : round(x1)] < 128).sum()
        for _, (x0, t, x1, b) in pen.boxes
    )
    assert inside >= 0.97 * (np.asarray(pen.image.convert("L")) < 128).sum()


def test_a_stretched_line_shares_its_room_by_advances() -> None:
    plain, wide = KIND.letters("iW", 10.0, 50.0), KIND.letters("iW", 10.0, 50.0, 2.0)
    for (_, (a0, *_, a_bottom)), (_, (b0, *_, b_bottom)) in zip(plain, wide, strict=True):
        assert b0 - 10 == pytest.approx(2 * (a0 - 10))
        assert a_bottom == b_bottom


def test_panels_end_before_their_right_and_bottom_edges() -> None:
    pen = Pen(Image.new("RGB", (20, 20), WHITE))
    pen.panel((5, 6, 10, 9), BLACK)
    assert pen.image.convert("L").point(lambda value: 255 - value).getbbox() == (5, 6, 10, 9)


def test_type_grows_with_the_canvas() -> None:
    assert smallest_size(14, 300, 200) == 14
    assert smallest_size(14, 600, 2000) == 24


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(60, 600), st.integers(0, 40))
def test_lines_are_broken_as_late_as_they_fit(seed: int, count: int, width: int, indent: int) -> None:
    rng = np.random.default_rng(seed)
    kind = Type(find_faces()[int(rng.integers(len(find_faces())))], 16)
    words = [word_list()[int(i)] for i in rng.integers(len(word_list()), size=count)]
    lines = kind.wrap(words, width, indent)
    assert [word for line in lines for word in line] == words
    for number, line in enumerate(lines):
        taken = kind.width(" ".join(line)) + (indent if number == 0 else 0)
        assert taken <= width or len(line) == 1
        if number + 1 < len(lines):
            assert taken + kind.width(" " + lines[number + 1][0]) > width
