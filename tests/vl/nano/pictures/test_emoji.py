"""DejaVu Sans comes with matplotlib; the other faces are tested where VL_EMOJI_FONTS or the system has them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib.tables._g_l_y_f import Glyph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

import vl
from vl.evaluation.metrics import METRICS
from vl.nano.pictures import emoji, emoji_faces
from vl.nano.pictures.canvas import Background, SizeRange
from vl.nano.pictures.emoji import (
    EMOJI_KINDS,
    EmojiFacts,
    Item,
    ask_emoji,
    caption_emoji,
    draw_emoji,
)
from vl.nano.pictures.emoji_faces import EmojiFace, draw_glyph, emoji_list, find_emoji_faces
from vl.nano.pictures.placing import POSITIONS

FOLDER = os.environ.get("VL_EMOJI_FONTS")
FACES = {face.name: face for face in find_emoji_faces(FOLDER)}
SIZES = (SizeRange(64, 336, 1.0),)
PICTURES = [draw_emoji(np.random.default_rng((2, i)), SIZES, fonts=FOLDER) for i in range(120)]
WHITE = (255, 255, 255)


def installed(name: str) -> EmojiFace:
    if name not in FACES:
        pytest.skip(f"{name} is not installed; VL_EMOJI_FONTS can name a folder that holds it")
    return FACES[name]


def item(name: str, position: str = "in the center") -> Item:
    return Item(name, position, 50, 50, 20, 0.0, "DejaVuSans", (40, 40, 60, 60))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without fonts of emoji."""
    monkeypatch.setattr(emoji_faces, "_FOLDERS", ())
    emoji_faces._find_emoji_faces.cache_clear()
    yield
    emoji_faces._find_emoji_faces.cache_clear()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """White backdrops, so that ink is whatever is not white."""
    monkeypatch.setattr(Background, "draw", classmethod(lambda cls, rng, textures: cls(WHITE, WHITE, 0.0, 0, 1)))


def test_the_list_has_600_emoji_with_their_unicode_names() -> None:
    listed = emoji_list()
    assert len(listed) == len({e.code for e in listed}) == len({e.name for e in listed}) == 600
    typographic = re.compile(r"\b(black|white|medium) ")
    renamed = []
    for code, name, _ in listed:
        official = unicodedata.name(chr(code)).lower()
        if name != official:
            renamed.append(name)
            assert name == typographic.sub("", official) or (code, name) == (0x2764, "red heart")
        assert re.fullmatch(r"[a-z-]+( [a-z-]+)*", name)
        assert not 0x1F1E6 <= code <= 0x1F1FF  # flags
        assert not 0x1F3FB <= code <= 0x1F3FF  # skin tones
        assert not 0x1F550 <= code <= 0x1F567, "the clock faces differ too little"
        assert "arrow" not in name or name in ("bow and arrow", "heart with arrow")
    assert len(renamed) < 20


def test_names_of_colours_want_a_colour_face() -> None:
    colours = re.compile(r"\b(red|orange|yellow|green|blue|purple|brown|black|white)\b")
    assert all(e.needs_colour for e in emoji_list() if colours.search(e.name))
    assert sum(e.needs_colour for e in emoji_list()) < 300


@pytest.mark.parametrize("name", ["DejaVuSans", "Symbola", "NotoColorEmoji", "Twemoji"])
def test_a_face_shows_each_of_its_emoji_differently(name: str) -> None:
    face = installed(name)
    assert len(face.codes) == {"DejaVuSans": 78, "Symbola": 343, "NotoColorEmoji": 600, "Twemoji": 600}[name]
    em = face.em(64)
    missing = draw_glyph(face, 0x10FFFE, 64).picture.tobytes() if not face.colour else b""
    seen = {draw_glyph(face, code, em).picture.tobytes() for code in face.codes}
    assert len(seen) == len(face.codes)
    assert missing not in seen
    assert not face.colour or all(draw_glyph(face, code, em).colours for code in face.codes[::10])


def layered(path: Path, *, outlines: bool) -> None:
    """A font in which the dog face is a red square above a blue one; `outlines`: whether Pillow can measure it."""

    def square(low: int, high: int) -> Glyph:
        pen = TTGlyphPen(None)
        pen.moveTo((100, low))
        for corner in ((100, high), (900, high), (900, low)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    font = FontBuilder(1000)
    names = [".notdef", "dog", "red", "blue"]
    font.setupGlyphOrder(names)
    font.setupCharacterMap({0x1F436: "dog"})
    empty = TTGlyphPen(None).glyph()
    whole = square(0, 800) if outlines else empty
    font.setupGlyf({".notdef": empty, "dog": whole, "red": square(400, 800), "blue": square(0, 400)})
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupPost()
    font.setupCOLR({"dog": [("red", 0), ("blue", 1)]}, version=0)
    font.setupCPAL([[(1, 0, 0, 1), (0, 0, 1, 1)]])
    font.save(path)


@pytest.mark.usefixtures("bare")
def test_a_font_of_layers_is_a_second_style(tmp_path: Path) -> None:
    layered(tmp_path / "Twemoji.ttf", outlines=True)
    face = find_emoji_faces(tmp_path)[0]
    assert (face.name, face.colour, face.bitmaps, face.codes) == ("Twemoji", True, False, (0x1F436,))
    assert (face.em(30), face.em(200), face.em(900)) == (128, 256, 256)
    picture = draw_glyph(face, 0x1F436, 256).picture
    assert picture.size == (205, 205)  # 800 of 1000 units
    assert picture.getpixel((100, 30)) == (255, 0, 0, 255)
    assert picture.getpixel((100, 170)) == (0, 0, 255, 255)


@pytest.mark.usefixtures("bare")
def test_a_font_of_layers_that_would_draw_nothing_is_not_used(tmp_path: Path) -> None:
    layered(tmp_path / "Twemoji.ttf", outlines=False)
    assert "Twemoji" not in [face.name for face in find_emoji_faces(tmp_path)]


@pytest.mark.usefixtures("plain")
def test_some_emoji_are_mirrored_but_none_that_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "_TURN", 0.0)
    monkeypatch.setattr(emoji, "_MIRRORED", 0.0)
    seeds, sided = range(60), emoji._SIDED
    upright = [draw_emoji(np.random.default_rng(seed), SIZES, max_emoji=1, fonts=FOLDER) for seed in seeds]
    monkeypatch.setattr(emoji, "_MIRRORED", 1.0)
    turned = [draw_emoji(np.random.default_rng(seed), SIZES, max_emoji=1, fonts=FOLDER) for seed in seeds]
    changed = 0
    for (image, facts), (other, same) in zip(upright, turned, strict=True):
        (one,), (two,) = facts.items, same.items
        left, top, right, bottom = (round(edge) for edge in one.ink)
        ink = np.asarray(image, int)[top:bottom, left:right]
        assert one.name == two.name
        if sided.search(one.name):
            assert one == two
            continue
        left, top, right, bottom = (round(edge) for edge in two.ink)
        assert np.abs(np.asarray(other, int)[top:bottom, left:right][:, ::-1] - ink).max() <= 8, one.name
        changed += one != two or image.tobytes() != other.tobytes()
    assert changed > 20
    assert sided.search("left pointing backhand index")


def test_a_picture_is_a_function_of_the_generator() -> None:
    for seed in range(6):
        (a, facts), (b, again) = (draw_emoji(np.random.default_rng(seed), SIZES, fonts=FOLDER) for _ in range(2))
        assert facts == again
        assert a.tobytes() == b.tobytes()
        asked = [ask_emoji(np.random.default_rng(seed), facts) for _ in range(2)]
        assert asked[0] == asked[1]
    assert len({image.tobytes() for image, _ in PICTURES}) == len(PICTURES)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(64, 64), (64, 336), (600, 1000)]), st.integers(1, 5))
def test_emoji_are_whole_apart_and_in_their_named_cells(seed: int, size: tuple[int, int], most: int) -> None:
    image, facts = draw_emoji(np.random.default_rng(seed), (SizeRange(*size, 1.0),), max_emoji=most, fonts=FOLDER)
    width, height = image.size
    assert (width, height) == (facts.width, facts.height)
    assert 1 <= len(facts.items) <= most
    cells = [(r, c) for one in facts.items for r in range(3) for c in range(3) if POSITIONS[r][c] == one.position]
    assert cells == sorted(set(cells))
    for one, (row, col) in zip(facts.items, cells, strict=True):
        left, top, right, bottom = one.ink
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        # A cell's eighth off its borders, but for the half pixel by which a glyph moves to lie on whole ones.
        assert (col + 0.12) * width / 3 - 0.5 <= one.x <= (col + 0.88) * width / 3 + 0.5
        assert (row + 0.12) * height / 3 - 0.5 <= one.y <= (row + 0.88) * height / 3 + 0.5
        smallest = 24 if FACES[one.face].colour else 48
        assert max(right - left, bottom - top) >= 0.8 * smallest
        assert one.size >= max(smallest, round(0.03 * size[0]))
        assert abs(one.angle) <= 15
    for a, b in combinations(facts.items, 2):
        assert np.hypot(a.x - b.x, a.y - b.y) > (a.size + b.size) / 2
    assert [name for name, _ in facts.boxes] == [one.name for one in facts.items]


@pytest.mark.usefixtures("plain")
def test_the_ink_is_in_its_boxes_and_nowhere_else() -> None:
    for seed in range(40):
        image, facts = draw_emoji(np.random.default_rng(seed), SIZES, fonts=FOLDER)
        depth = 255 - np.asarray(image, dtype=int).min(axis=2)
        for (_, middle), one in zip(facts.boxes, facts.items, strict=True):
            left, top, right, bottom = (round(edge) for edge in one.ink)
            assert (depth[top:bottom, left:right] > 24).mean() > 0.1, one
            x0, y0, x1, y1 = (round(edge) for edge in middle)
            assert (depth[y0:y1, x0:x1] > 24).any()
        for one in facts.items:
            left, top, right, bottom = (round(edge) for edge in one.ink)
            depth[top:bottom, left:right] = 0
        assert depth.max() < 100


def painted(face: EmojiFace, code: int, size: tuple[int, int]) -> np.ndarray:
    """The glyph as Pillow paints it in black on white, or in its colours, scaled to its ink: float [height, width]."""
    font = ImageFont.truetype(face.path, face.em(128), layout_engine=ImageFont.Layout.BASIC)
    page = Image.new("RGBA", (400, 400), (255, 255, 255, 0))
    ImageDraw.Draw(page).text((100, 100), chr(code), font=font, fill=(0, 0, 0), embedded_color=face.colour)
    page = page.crop(page.getchannel("A").getbbox()).resize(size)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", size, WHITE), page).convert("L"), dtype=float)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ["DejaVuSans", "Symbola", "NotoColorEmoji", "Twemoji"])
def test_what_is_drawn_is_what_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of forty emoji of the face, the one named looks most like the pixels in its box."""
    face = installed(name)
    monkeypatch.setattr(emoji, "find_emoji_faces", lambda *_, **__: (face,))
    monkeypatch.setattr(emoji, "_TURN", 0.0)
    monkeypatch.setattr(emoji, "_MIRRORED", 0.0)
    codes = {e.name: e.code for e in emoji_list()}
    checked = 0
    for seed in range(100):
        image, facts = draw_emoji(np.random.default_rng(seed), (SizeRange(300, 336, 1.0),), max_emoji=1)
        (one,) = facts.items
        if one.size < 70:
            continue
        grey = image.convert("L").crop(tuple(round(edge) for edge in one.ink))
        seen = np.asarray(grey, dtype=float)
        if not face.colour:  # the ink has any colour
            seen = 255 * (seen - seen.min()) / (255 - seen.min())
        rivals = [code for code in face.codes if code != codes[one.name]][seed % 7 :: 7]
        errors = {code: np.abs(painted(face, code, grey.size) - seen).mean() for code in (codes[one.name], *rivals)}
        assert min(errors, key=errors.__getitem__) == codes[one.name], one
        checked += 1
        if checked == 12:
            break
    assert checked == 12


def named_emoji(caption: str) -> list[tuple[str, str]]:
    """The (name, position) pairs that a caption names, in its order."""
    places = "|".join(sorted(sum(POSITIONS, ()), key=len, reverse=True))
    one = rf"(?:^[^:]*: |, | and )?(?P<name>.+?) (?P<place>{places})(?=,| and |\.|$)"
    return [(found["name"], found["place"]) for found in re.finditer(one, caption)]


def test_captions_parse_back_to_their_facts() -> None:
    for _, facts in PICTURES:
        named = [(one.name, one.position) for one in facts.items]
        assert named_emoji(caption_emoji(facts)) == named
        assert caption_emoji(facts).startswith(("", "One", "Two", "Three", "Four", "Five")[len(named)] + " emoji: ")
    facts = EmojiFacts(
        90, 90, (item("fork and knife", "at the top"), item("bow and arrow"), item("eyes", "at the bottom"))
    )
    caption = "Three emoji: fork and knife at the top, bow and arrow in the center and eyes at the bottom."
    assert caption_emoji(facts) == caption
    assert named_emoji(caption) == [
        ("fork and knife", "at the top"),
        ("bow and arrow", "in the center"),
        ("eyes", "at the bottom"),
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from([e.name for e in emoji_list()]), st.sampled_from(sum(POSITIONS, ()))),
        min_size=1,
        max_size=6,
    )
)
def test_every_name_parses_next_to_every_other(named: list[tuple[str, str]]) -> None:
    assert named_emoji(caption_emoji(EmojiFacts(9, 9, tuple(item(*pair) for pair in named)))) == named


@pytest.mark.parametrize("kind", EMOJI_KINDS)
def test_answers_follow_from_the_picture(kind: str) -> None:
    answers = Counter()
    for number, (_, facts) in enumerate(PICTURES * 3):
        names = [one.name for one in facts.items]
        try:
            asked = ask_emoji(np.random.default_rng(number), facts, kinds=[kind])
        except ValueError:
            continue
        assert METRICS[asked.metric].right(METRICS[asked.metric].score([asked.answer], asked.answer))
        quoted = re.search(r'(?:emoji|Is) "([^"]+)"', asked.prompt)
        name = quoted[1] if quoted else ""
        if kind == "name":
            places = [one for one in facts.items if re.search(rf"\b{one.position}\b(?! (left|right))", asked.prompt)]
            (one,) = places or facts.items
            assert asked.answer == one.name
        elif kind == "place":
            assert [one.position for one in facts.items if one.name == name] == [asked.answer]
        elif kind == "counting":
            assert int(asked.answer) == (names.count(name) if name else len(names))
            assert asked.metric == "counting"
        else:
            assert asked.answer == ("yes" if name in names else "no")
        answers[asked.answer] += 1
    assert len(answers) >= {"name": 50, "place": 9, "counting": 6, "presence": 2}[kind]
    if kind == "presence":
        assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_names_that_another_emoji_answers_to_are_not_asked() -> None:
    long = "smiling face with open mouth and smiling eyes"
    facts = EmojiFacts(90, 90, (item(long, "on the left"), item("dog face", "on the right")))
    asked = (ask_emoji(np.random.default_rng(seed), facts, kinds=["presence", "counting"]) for seed in range(600))
    names = Counter(found[1] for one in asked if (found := re.search(r'emoji "([^"]+)"', one.prompt)))
    assert not {"dog", "smiling face with open mouth", "smiling face with smiling eyes"} & set(names)
    assert min(names[long], names["dog face"], names["smiling face with sunglasses"]) > 0


def test_wrong_kinds_of_question_are_refused() -> None:
    facts = EmojiFacts(90, 90, (item("star", "on the left"), item("star", "on the right")))
    with pytest.raises(ValueError, match="no such kind of question: where; there are name, place"):
        ask_emoji(np.random.default_rng(0), facts, kinds=["where"])
    with pytest.raises(ValueError, match="admits no question of place"):
        ask_emoji(np.random.default_rng(0), facts, kinds=["place"])


@pytest.mark.usefixtures("bare")
def test_without_a_colour_font_dejavu_still_draws(tmp_path: Path) -> None:
    (tmp_path / "NotoColorEmoji.ttf").write_bytes(b"no font")
    assert [face.name for face in find_emoji_faces(tmp_path)] == ["DejaVuSans"]
    names = set()
    for seed in range(60):
        _, facts = draw_emoji(np.random.default_rng(seed), SIZES, fonts=tmp_path)
        names |= {one.name for one in facts.items}
    assert len(names) > 40
    with pytest.raises(vl.ConfigError, match=r"no colour font of emoji: apt-get install fonts-noto-color-emoji"):
        draw_emoji(np.random.default_rng(0), SIZES, fonts=tmp_path, require_colour=True)


def test_no_font_at_all_is_named(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_faces, "find_faces", lambda: ())
    with pytest.raises(vl.ConfigError, match=r"minimax-vl\[train\]"):
        find_emoji_faces()


def test_colour_faces_draw_all_600_evenly() -> None:
    installed("NotoColorEmoji")
    assert find_emoji_faces(FOLDER, require_colour=True)[0].colour
    rng = np.random.default_rng(0)
    drawn = Counter(one.name for _ in range(500) for one in draw_emoji(rng, SIZES, fonts=FOLDER)[1].items)
    assert len(drawn) > 450
    assert max(drawn.values()) < 0.02 * drawn.total()


def test_colour_glyphs_stand_out_from_the_backdrop() -> None:
    face = installed("NotoColorEmoji")
    black = next(e for e in emoji_list() if e.name == "black heart")
    dark, light = (Background(tone, tone, 0.0, 0, 1) for tone in ((10, 10, 10), (240, 240, 240)))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        assert emoji._choose(rng, (face,), dark).emoji != black
        for backdrop in (dark, light):
            colours = emoji._choose(rng, (face,), backdrop).glyph(50).colours
            far = [max(abs(a - b) for a, b in zip(c, backdrop.start, strict=True)) > 25 for c in colours]
            assert np.mean(far) > 0.5


@pytest.mark.parametrize("longer", [64, 2016])
def test_edge_sizes(longer: int) -> None:
    for seed in range(4):
        image, facts = draw_emoji(np.random.default_rng(seed), (SizeRange(longer, longer, 1.0),), fonts=FOLDER)
        assert longer <= max(image.size) <= max(longer, 100)
        assert facts.items
