from __future__ import annotations

import colorsys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import vl
from vl.evaluation.metrics import named_shapes, read_text
from vl.model import DEFAULT_PROMPT
from vl.nano.mix import MIXED, SMALL, Mix
from vl.nano.pictures import fonts
from vl.nano.pictures.canvas import COLOURS, SizeRange
from vl.nano.pictures.english import word_list
from vl.nano.pictures.fonts import Fonts, find_faces, open_face
from vl.nano.pictures.placing import POSITIONS
from vl.nano.pictures.scenes import SHAPES, SceneFacts
from vl.nano.pictures.words import WordsFacts
from vl.nano.render import render

SCENES = [render(3, index, Mix(sizes=SMALL).only("scenes")) for index in range(120)]
WORDS = [render(3, index, Mix(sizes=SMALL).only("words")) for index in range(60)]


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    for index in range(6):
        a, b = render(7, index), render(7, index)
        assert (a.answer, a.prompt, a.facts) == (b.answer, b.prompt, b.facts)
        assert a.image.tobytes() == b.image.tobytes()
    assert len({render(7, index, Mix(sizes=SMALL)).image.tobytes() for index in range(20)}) == 20
    assert render(8, 0).image.tobytes() != render(7, 0).image.tobytes()


def test_every_object_shows_its_colour_where_the_facts_say() -> None:
    for sample in SCENES:
        for shape in sample.facts.shapes:
            box = sample.image.crop(tuple(round(edge) for edge in shape.middle))
            painted = max(box.getcolors(1 << 20), key=lambda found: (found[1] == shape.rgb, found[0]))
            assert painted[1] == shape.rgb, shape
            assert painted[0] > 0.15 * box.width * box.height, shape
            hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in shape.rgb))
            named = COLOURS[shape.colour]
            assert named.value[0] - 0.01 <= value <= named.value[1] + 0.01
            if value > 0.15:
                assert named.saturation[0] - 0.02 <= saturation <= named.saturation[1] + 0.02
            if saturation > 0.1 and value > 0.15:
                off = (hue * 360 - sum(named.hue) / 2 + 180) % 360 - 180
                assert abs(off) <= (named.hue[1] - named.hue[0]) / 2 + 2


def test_objects_are_whole_apart_and_in_their_named_cells() -> None:
    for sample in SCENES:
        width, height = sample.image.size
        for s in sample.facts.shapes:
            assert s.radius < s.x < width - s.radius
            assert s.radius < s.y < height - s.radius
            row, col = next((r, c) for r in range(3) for c in range(3) if POSITIONS[r][c] == s.position)
            # Well inside: nobody would name the neighbouring cell.
            assert 0.1 < s.x / (width / 3) - col < 0.9
            assert 0.1 < s.y / (height / 3) - row < 0.9
        for a, b in combinations(sample.facts.shapes, 2):
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
            assert a.position != b.position


def test_outlines_stay_in_the_unit_circle() -> None:
    for outline in SHAPES.values():
        assert np.linalg.norm(outline.points, axis=1).max() < 1.01


def test_every_scene_caption_parses_back_to_its_facts() -> None:
    for sample in SCENES:
        facts = sample.facts
        assert isinstance(facts, SceneFacts)
        assert named_shapes(sample.answer) == [(s.colour, s.shape, s.position) for s in facts.shapes]
        count = ("One", "Two", "Three", "Four", "Five", "Six")[len(facts.shapes) - 1]
        assert sample.answer.startswith(f"{count} shape")
    assert {len(sample.facts.shapes) for sample in SCENES} == {1, 2, 3, 4, 5, 6}
    assert {s.shape for sample in SCENES for s in sample.facts.shapes} == set(SHAPES)
    assert {s.colour for sample in SCENES for s in sample.facts.shapes} == set(COLOURS)


def test_every_word_caption_quotes_what_is_printed() -> None:
    for sample in WORDS:
        assert isinstance(sample.facts, WordsFacts)
        assert read_text(sample.answer) == sample.facts.text == " ".join(sample.facts.lines)
        assert sample.image.size == (sample.facts.width, sample.facts.height)
    assert len({sample.facts.face for sample in WORDS}) >= 5


def test_text_is_inked_inside_the_picture() -> None:
    """Printed alone on its own canvas, a block of text leaves the border as it was."""
    for sample in WORDS:
        pixels = np.asarray(sample.image.convert("L"), dtype=int)
        inside, border = pixels[2:-2, 2:-2], np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
        assert inside.max() - inside.min() > border.max() - border.min()


def test_half_of_the_prompts_are_the_default() -> None:
    prompts = [sample.prompt for sample in (*SCENES, *WORDS)]
    assert 0.35 < prompts.count(DEFAULT_PROMPT) / len(prompts) < 0.65
    assert len(set(prompts)) >= 6
    assert not any(sample.prompt.startswith("Read") for sample in SCENES)


@pytest.mark.parametrize("kind", ["scenes", "words"])
def test_sizes_follow_the_ranges(kind: str) -> None:
    mix = Mix(sizes=(SizeRange(2016, 2016, 1.0),)).only(kind)
    assert max(render(1, 0, mix).image.size) == 2016
    sides = [max(sample.image.size) for sample in (SCENES if kind == "scenes" else WORDS)]
    assert min(sides) >= 64
    assert max(sides) <= 340
    assert {max(r.high for r in MIXED)} == {2016}


def test_faces_are_sorted_distinct_and_draw_letters() -> None:
    faces = find_faces()
    assert list(faces) == sorted(faces)
    assert len(faces) >= 10
    for face in faces:
        font = open_face(face, 32)
        glyphs = {bytes(font.getmask(letter)) for letter in "agQR7"}
        assert len(glyphs) == 5, f"{face.name} has no glyphs of its own for these letters"


def test_a_folder_of_fonts_comes_first(tmp_path: Path) -> None:
    source = Path(find_faces()[0].path)
    (tmp_path / f"Mine{source.suffix}").write_bytes(source.read_bytes())
    assert str(tmp_path) in {str(Path(face.path).parent) for face in find_faces(Fonts(str(tmp_path)))}


def test_of_a_folder_only_what_prints_letters_is_taken(tmp_path: Path) -> None:
    """A system's folder holds fonts of symbols too, and now and then a broken file."""
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    plain = Path(find_faces()[0].path)
    (tmp_path / f"Letters{plain.suffix}").write_bytes(plain.read_bytes())
    (tmp_path / "Other.ttf").write_bytes((_matplotlib_fonts() / "STIXSizOneSymReg.ttf").read_bytes())
    found = find_faces(Fonts(str(tmp_path)))
    assert [Path(face.path).stem for face in found if str(tmp_path) in face.path] == ["Letters"]


def _matplotlib_fonts() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def test_words_are_printable_and_readable_by_case() -> None:
    words = word_list()
    assert len(words) > 3000
    assert list(words) == sorted(set(words))
    assert all(
        word.isascii() and word.isalpha() and word.islower() and not set(word) <= set("cosuvwxz") for word in words
    )


def test_missing_fonts_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fonts, "_in_packages", lambda: iter(()))
    monkeypatch.setattr(fonts, "_in_matplotlib", lambda: iter(()))
    with pytest.raises(vl.ConfigError, match=r"minimax-vl\[train\]"):
        fonts.find_faces(Fonts(str(tmp_path)))
