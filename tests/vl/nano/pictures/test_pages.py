from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vl.evaluation.metrics import METRICS, read_text
from vl.nano.pictures import pages
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.fonts import PRINTED, Face, find_faces, open_face
from vl.nano.pictures.pages import PageFacts, ask_page, draw_pages
from vl.nano.pictures.words import caption_text

KINDS = ("page", "receipt", "sign", "screen")
SMALL = (SizeRange(64, 336, 1.0),)
MIDDLE = (SizeRange(337, 1007, 1.0),)
LARGE = (SizeRange(1008, 2016, 1.0),)
FACES = {face.name: face for face in find_faces()}

Drawn = tuple[Image.Image, PageFacts]


@lru_cache
def drawn(kind: str, sizes: tuple[SizeRange, ...] = SMALL, count: int = 40) -> list[Drawn]:
    return [draw_pages(np.random.default_rng((11, i)), sizes, kinds=(kind,)) for i in range(count)]


def everything() -> list[Drawn]:
    return [pair for kind in KINDS for pair in (*drawn(kind), *drawn(kind, MIDDLE, 8), *drawn(kind, LARGE, 6))]


def asked(facts: PageFacts, count: int = 30) -> list[tuple[str, str, str]]:
    return [ask_page(np.random.default_rng((5, i)), facts)[:3] for i in range(count)]


def luminance(image: Image.Image) -> np.ndarray:
    """Relative luminance [height, width], 0 to 1."""
    return (np.asarray(image) / 255.0) ** 2.2 @ np.array((0.2126, 0.7152, 0.0722))


def rows_of(facts: PageFacts) -> list[list[int]]:
    """The numbers of the boxes of each line, by the lines' lengths alone."""
    ends = np.cumsum([0] + [len(line.replace(" ", "")) for line in facts.lines])
    return [list(range(start, end)) for start, end in pairwise(ends)]


def amounts(facts: PageFacts) -> list[tuple[str, int]]:
    """(label, cents) of each line of a receipt that ends with an amount."""
    found = (re.fullmatch(r"(.+) [$£€]?(\d+)\.(\d\d)", line) for line in facts.lines)
    return [(m[1], 100 * int(m[2]) + int(m[3])) for m in found if m]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_draws_the_same_picture_and_question(kind: str) -> None:
    for image, facts in drawn(kind)[:5]:
        i = next(i for i, (_, other) in enumerate(drawn(kind)) if other is facts)
        again, same = draw_pages(np.random.default_rng((11, i)), SMALL, kinds=(kind,))
        assert same == facts
        assert again.tobytes() == image.tobytes()
        assert asked(same, 3) == asked(facts, 3)
    assert len({image.tobytes() for image, _ in drawn(kind)}) == len(drawn(kind))


def test_the_text_is_the_lines_and_the_boxes_are_its_letters() -> None:
    for image, facts in everything():
        assert image.mode == "RGB"
        assert image.size == (facts.width, facts.height)
        assert facts.text == " ".join(facts.lines) == " ".join(facts.text.split())
        assert set(facts.text) <= set(PRINTED)
        assert "".join(letter for letter, _ in facts.boxes) == facts.text.replace(" ", "")
        assert read_text(caption_text(facts)) == facts.text
        assert facts.size >= 14


def test_boxes_lie_in_the_picture_and_follow_the_reading_order() -> None:
    for _, facts in everything():
        for _, (left, top, right, bottom) in facts.boxes:
            assert 0 <= left < right <= facts.width
            assert 0 <= top < bottom <= facts.height
        rows = rows_of(facts)
        for row in rows:
            assert len({facts.boxes[i][1][1] for i in row}) == 1
            for a, b in pairwise(row):
                assert facts.boxes[a][1][2] <= facts.boxes[b][1][0] + 0.01
        breaks = 0
        for above, below in pairwise(rows):  # no line touches the one above, but for the first of a second column
            if facts.boxes[above[0]][1][3] > facts.boxes[below[0]][1][1]:
                breaks += 1
                ends = max(facts.boxes[row[-1]][1][2] for row in rows[: rows.index(below)])
                assert ends < min(facts.boxes[row[0]][1][0] for row in rows[rows.index(below) :])
        assert breaks <= (facts.kind == "page")


def test_some_pages_have_two_columns_and_some_windows_list_programs() -> None:
    columns = 0
    for _, facts in drawn("page", LARGE, 40):
        tops = [facts.boxes[row[0]][1][1] for row in rows_of(facts)]
        columns += any(below < above for above, below in pairwise(tops))
    assert 2 <= columns <= 22
    listed = [facts for _, facts in drawn("screen", LARGE, 24) if FACES[facts.face].monospaced]
    assert len(listed) >= 3
    assert any("=" in facts.text or "(" in facts.text for facts in listed)
    assert not FACES["DejaVuSans"].monospaced
    assert FACES["DejaVuSansMono"].monospaced


def test_letters_stand_out_where_their_boxes_are() -> None:
    for image, facts in everything():
        light = luminance(image)
        for letter, (left, top, right, bottom) in facts.boxes:
            if letter in ".,:;'!-il|_`":  # too thin for the small sizes to show their full colour
                continue
            part = light[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            assert (part.max() + 0.05) / (part.min() + 0.05) > 1.5, (facts.kind, facts.face, facts.size, letter)


def test_nothing_is_printed_between_the_columns_of_a_receipt() -> None:
    checked = 0
    for image, facts in (*drawn("receipt"), *drawn("receipt", LARGE, 6)):
        pixels = np.asarray(image)
        for row, line in zip(rows_of(facts), facts.lines, strict=True):
            if not re.search(r" [$£€]?\d+\.\d\d$", line):
                continue
            label = [facts.boxes[i][1] for i in row[: len(line.rpartition(" ")[0].replace(" ", ""))]]
            value = [facts.boxes[i][1] for i in row[len(label) :]]
            overhang = 3 + facts.size // 4  # of an italic letter out of its room
            top, bottom = int(label[0][1]) + 2, int(label[0][3])
            left, right = int(label[-1][2]) + overhang, int(value[0][0]) - overhang
            if left < right:
                gap = pixels[top:bottom, left:right].reshape(-1, 3)
                assert len(np.unique(gap, axis=0)) == 1
                checked += 1
    assert checked > 100


def test_boxes_are_where_the_font_puts_the_letters() -> None:
    """Pillow's own measure of each beginning of a line, kerning included, against the cached advances."""
    for _, facts in (pair for kind in KINDS for pair in drawn(kind)[:15]):
        font = open_face(FACES[facts.face], facts.size)
        for row, line in zip(rows_of(facts), facts.lines, strict=True):
            word = line.split()[0]
            left = facts.boxes[row[0]][1][0]
            if facts.boxes[row[len(word) - 1]][1][2] - left < font.getlength(word) - 1.5:
                pytest.fail(f"{word!r} of {facts.face} takes more room than its boxes")
            for end in range(1, len(word)) if facts.kind != "page" else ():
                assert facts.boxes[row[end]][1][0] - left == pytest.approx(font.getlength(word[:end]), abs=1.5)


def test_each_letter_of_a_receipt_is_the_one_that_the_facts_name() -> None:
    """Every letter drawn again, alone, on its box's corner: together they have the shape of what is printed."""
    for image, facts in drawn("receipt")[:20]:
        font = open_face(FACES[facts.face], facts.size)
        shapes = Image.new("L", image.size)
        for letter, (left, _, _, bottom) in facts.boxes:
            ImageDraw.Draw(shapes).text((left, bottom - 0.2 * facts.size), letter, 255, font=font, anchor="ls")
        pixels = np.asarray(image, float)
        for row in rows_of(facts):
            (left, top, _, bottom), (_, _, right, _) = facts.boxes[row[0]][1], facts.boxes[row[-1]][1]
            window = slice(int(top) + 2, int(bottom)), slice(int(left), int(right))
            paper = np.median(pixels[window], axis=(0, 1))
            ink, shape = np.abs(pixels - paper).sum(axis=2)[window], np.asarray(shapes, float)[window]
            assert np.corrcoef(ink.ravel(), shape.ravel())[0, 1] > 0.85, facts.face


def test_ink_fills_the_width_of_a_line_of_a_sign() -> None:
    """The ink found by colour alone begins and ends where the first and the last box do."""
    checked = 0
    for image, facts in drawn("sign", LARGE, 6):
        light = luminance(image)
        for row, line in zip(rows_of(facts), facts.lines, strict=True):
            (left, top, _, bottom), (_, _, right, _) = facts.boxes[row[0]][1], facts.boxes[row[-1]][1]
            lean = facts.size // 3
            x0, x1 = max(0, int(left) - lean), int(right) + lean
            band = light[int(top) : int(bottom), x0:x1]
            behind = np.median(band[:, 0])  # between frame and text, or outside
            columns = np.flatnonzero((np.abs(band - behind) > 0.5 * np.abs(band - behind).max()).any(axis=0)) + x0
            inside = columns[(columns >= left - lean) & (columns <= right + lean)]
            assert inside.min() < left + 0.4 * facts.size, line
            assert inside.max() > right - 0.6 * facts.size, line
            checked += 1
    assert checked >= 6


def test_receipts_add_up() -> None:
    kinds = Counter()
    for _, facts in (*drawn("receipt"), *drawn("receipt", MIDDLE, 8), *drawn("receipt", LARGE, 6)):
        rows = amounts(facts)
        labels = [label for label, _ in rows]
        at = next(
            i for i, label in enumerate(labels) if label.lower() in ("total", "total due", "amount due", "to pay")
        )
        total = rows[at][1]
        if at >= 2 and labels[at - 2] in ("Subtotal", "Sum"):
            assert rows[at - 2][1] == sum(cents for _, cents in rows[: at - 2])
            assert total == rows[at - 2][1] + rows[at - 1][1]
            kinds["taxed"] += 1
        else:
            assert total == sum(cents for _, cents in rows[:at])
            kinds["plain"] += 1
        if labels[-1] == "Change":
            assert rows[-2] == ("Cash", total + rows[-1][1])
            kinds["paid"] += 1
        words = [word for label in labels for word in label.lower().split()]
        assert len(labels) == len(set(labels))
        assert "total" not in words[: len(" ".join(labels[: at - 2]).split())]
    assert len(kinds) == 3


def test_questions_on_receipts_follow_from_the_printed_rows() -> None:
    seen = Counter()
    for _, facts in (*drawn("receipt"), *drawn("receipt", MIDDLE, 8)):
        rows = amounts(facts)
        prices = dict(rows)
        stop = next(
            i
            for i, (label, _) in enumerate(rows)
            if re.fullmatch(r"(?i)subtotal|sum|total|total due|amount due|to pay", label)
        )
        items = rows[:stop]
        for prompt, answer, _ in asked(facts):
            quoted = re.search(r'"(.+)"', prompt)
            price = re.search(r"\d+\.\d\d", prompt)
            if quoted and answer.startswith("There is no"):
                assert quoted[1] not in prices
                assert answer == f"There is no {quoted[1]}."
                seen["absent"] += 1
            elif quoted:
                assert round(100 * float(answer.lstrip("$£€"))) == prices[quoted[1]]
                seen["amount"] += 1
            elif price:
                assert [label for label, cents in items if cents == round(100 * float(price[0]))] == [answer]
                seen["whose"] += 1
            elif re.search("cheapest|lowest|least", prompt):
                assert answer == min(items, key=lambda row: row[1])[0]
                seen["cheapest"] += 1
            elif re.search("dearest|highest|most", prompt):
                assert answer == max(items, key=lambda row: row[1])[0]
                seen["dearest"] += 1
            elif "items" in prompt or "things" in prompt:
                assert int(answer) == len(items)
                seen["count"] += 1
            elif re.search("total|paid|come to", prompt):
                assert facts.lines.index(next(line for line in facts.lines if line.endswith(f" {answer}"))) > 1
                seen["total"] += 1
            else:
                assert read_text(answer) == facts.text
                seen["read"] += 1
    assert len(seen) == 8
    assert min(seen.values()) >= 5


def test_questions_on_windows_follow_from_the_printed_rows() -> None:
    seen = Counter()
    for _, facts in (*drawn("screen"), *drawn("screen", MIDDLE, 8)):
        for prompt, answer, _ in asked(facts):
            quoted = re.search(r'"(.+)"', prompt)
            if "title" in prompt:
                assert answer == facts.lines[0]
            elif quoted and answer in ("yes", "no") and "button" in prompt:
                assert (quoted[1] in facts.lines[-1].split()) == (answer == "yes")
            elif quoted and answer in ("yes", "no"):
                assert f"{quoted[1]} {'On' if answer == 'yes' else 'Off'}" in facts.lines
            elif quoted:
                assert f"{quoted[1]} {answer}" in facts.lines
            elif "leftmost" in prompt or "far left" in prompt:
                assert facts.lines[-1].split()[0] == answer
            elif "buttons" in prompt:
                assert len(facts.lines[-1].split()) == int(answer)
            elif "side" in prompt or "left or" in prompt:
                starts = [facts.boxes[row[0]][1][0] for row in rows_of(facts)[1:]]
                if "last" in prompt and len({entry.label for entry in facts.entries[1:]}) == 2:
                    assert (answer == "left") == (starts[-1] == pytest.approx(min(starts)))
            elif "message" in prompt:
                assert answer in facts.text
                assert facts.text.endswith(answer) or "first" in prompt
            else:
                assert read_text(answer) == facts.text
                continue
            seen[answer if answer in ("yes", "no", "left", "right") else prompt] += 1
    assert {"yes", "no", "left", "right"} <= set(seen)
    assert len(seen) >= 18


def test_lines_are_asked_of_pages_and_signs() -> None:
    seen = set()
    for kind in ("page", "sign"):
        for _, facts in (*drawn(kind), *drawn(kind, LARGE, 6)):
            for prompt, answer, metric in asked(facts, 40):
                if "first line" in prompt:
                    assert answer == facts.lines[0]
                elif "last line" in prompt:
                    assert answer == facts.lines[-1]
                elif metric == "counting":
                    assert int(answer) == len({box[1] for _, box in facts.boxes}) <= 9
                else:
                    assert answer == caption_text(facts)
                seen.add(prompt)
    assert len(seen) >= 14


def test_every_answer_is_right_by_its_metric() -> None:
    for _, facts in everything():
        for prompt, answer, name in asked(facts, 6):
            metric = METRICS[name]
            assert metric.right(metric.score([answer], answer)), prompt
            assert "{" not in prompt


def test_pages_hold_up_to_120_words_in_type_of_14_to_24_px() -> None:
    facts = [draw_pages(np.random.default_rng((3, i)), LARGE, kinds=("page",))[1] for i in range(40)]
    words = [len(f.text.split()) for f in facts]
    assert min(words) < 30 < 100 < max(words) <= 120
    assert min(len(f.lines) for f in facts) <= 2
    assert max(len(f.lines) for f in facts) >= 12
    assert {f.size for f in facts} <= set(range(14, 25))
    assert len({f.size for f in facts}) >= 6
    for f in facts:
        assert 1008 <= max(f.width, f.height) <= 2016


def test_small_pictures_hold_few_words() -> None:
    sizes = (SizeRange(336, 336, 1.0),)
    facts = [draw_pages(np.random.default_rng((3, i)), sizes, kinds=("page",))[1] for i in range(40)]
    words = [len(f.text.split()) for f in facts]
    assert max(words) <= 15
    assert np.median(words) >= 4


def test_max_words_is_kept() -> None:
    for limit, kind, i in product((1, 5, 60), ("page", "sign"), range(4)):
        facts = draw_pages(np.random.default_rng((4, i)), MIDDLE, kinds=(kind,), max_words=limit)[1]
        assert len(facts.text.split()) <= limit
    for kind in KINDS:
        assert max(len(facts.text.split()) for _, facts in drawn(kind, LARGE, 6)) <= 120


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(64, 700), st.sampled_from(KINDS), st.integers(1, 120))
def test_any_canvas_has_a_legible_picture(seed: int, side: int, kind: str, limit: int) -> None:
    sizes = (SizeRange(side, side, 1.0),)
    image, facts = draw_pages(np.random.default_rng(seed), sizes, kinds=(kind,), max_words=limit)
    least = {"page": (128, 48), "receipt": (176, 150), "sign": (64, 40), "screen": (200, 150)}[kind]
    assert facts.kind == kind
    assert facts.size >= 14
    assert facts.text
    assert max(image.size) <= max(side, *least)
    assert all(size >= low for size, low in zip(image.size, least, strict=True))
    for _, (left, top, right, bottom) in facts.boxes:
        assert 0 <= left < right <= facts.width
        assert 0 <= top < bottom <= facts.height


def tall(font: TTFont) -> None:
    """Line heights of up to 1.7 em are found among free fonts; these are 2 em high."""
    font["hhea"].ascent, font["hhea"].descent, font["hhea"].lineGap = 3072, -1024, 0


def wide(font: TTFont) -> None:
    """Keyboard faces, whose letters stand in keys, have letters of more than an em."""
    font["hmtx"].metrics.update({name: (2 * width, left) for name, (width, left) in font["hmtx"].metrics.items()})


@pytest.mark.parametrize("change", [tall, wide])
def test_tall_and_wide_faces_fit_too(change: Callable[[TTFont], None], tmp_path: Path, monkeypatch: Any) -> None:
    with TTFont(FACES["DejaVuSans"].path) as font:
        change(font)
        font.save(tmp_path / "Other.ttf")
    monkeypatch.setattr(pages, "find_faces", lambda fonts: (Face("Other", str(tmp_path / "Other.ttf")),))
    for i, kind in product(range(60), KINDS):
        image, facts = draw_pages(np.random.default_rng((7, i)), (SizeRange(64, 400, 1.0),), kinds=(kind,))
        assert facts.size >= 14
        for _, (left, top, right, bottom) in facts.boxes:
            assert min(left, top, image.width - right, image.height - bottom) >= 0, (kind, i)


def test_a_kind_is_drawn_only_where_it_fits() -> None:
    facts = [draw_pages(np.random.default_rng((6, i)), (SizeRange(110, 110, 1.0),))[1] for i in range(20)]
    assert {f.kind for f in facts} == {"sign"}
    facts = [draw_pages(np.random.default_rng((6, i)), (SizeRange(400, 400, 1.0),))[1] for i in range(40)]
    assert {f.kind for f in facts} == set(KINDS)


def test_faces_sizes_and_words_vary() -> None:
    facts = [facts for _, facts in everything()]
    assert len({f.face for f in facts}) >= 25
    assert len({f.size for f in facts}) >= 20
    assert len({f.text for f in facts}) > 0.95 * len(facts)
    assert len({ask_page(np.random.default_rng(i), facts[i % len(facts)]).prompt for i in range(600)}) >= 45
