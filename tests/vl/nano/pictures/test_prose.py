from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from fontTools.ttLib import TTFont

import vl
from vl.nano.pictures import english
from vl.nano.pictures.english import COMMON, belongs, familiar, followers, names, phrases, vocabulary
from vl.nano.pictures.fonts import LETTERS, PRINTED, find_faces
from vl.nano.pictures.prose import Prose

FUNCTION = {"the", "of", "and", "to", "a", "in", "is", "it", "for", "on", "as", "be", "at", "by", "or", "an", "its"}


def prose(seed: int, part: str = "all") -> Prose:
    return Prose(np.random.default_rng(seed), part)


def test_running_text_is_english_but_not_to_be_guessed() -> None:
    """Function words as often as in books or a little less, and most of the words that carry meaning rare."""
    words = prose(2).paragraph(6000)
    assert len(words) == 6000
    plain = [word for word in (re.sub(r"[^a-z]", "", word.lower()) for word in words) if word]
    share = sum(word in FUNCTION for word in plain) / len(plain)
    assert 0.1 < share < 0.4
    assert sum(len(word) <= 2 for word in plain) / len(plain) > 0.08
    common = set(vocabulary("all").texts[:COMMON])
    assert 0.3 < sum(word not in common for word in plain) / len(plain) < 0.7
    assert len(Counter(plain)) > 2000
    text = " ".join(words)
    assert set(text) <= set(PRINTED)
    assert 0.0005 < sum(letter in LETTERS for letter in text) / len(text) < 0.01
    assert text[-1] in ".!?:"
    for mark in ",;:()'%$&-/!?0123456789\"@_£€":
        assert mark in text
    assert {"I", "colour", "color"} <= set(vocabulary("all").texts) | {"I"}


def test_words_follow_one_another_as_in_books() -> None:
    after = followers("all")["kind"]
    assert after.texts[int(np.argmax(np.diff(after.ends, prepend=0)))] == "of"


def test_every_pattern_can_be_filled() -> None:
    for name in phrases():
        if name not in ("titles", "titles-by"):
            for pattern in phrases()[name]:
                text = prose(3).filled(pattern)
                assert set(text) <= set(PRINTED)
                assert not re.search(r"\{[A-Za-z-]+\}", text), pattern
                assert text == "" or text.strip("\n") == text


@pytest.mark.parametrize("part", ["learnt", "held-out"])
def test_texts_of_one_part_are_none_of_the_other(part: str) -> None:
    drawn = prose(4, part)
    lines = [" ".join(drawn.line(4)) for _ in range(200)]
    lines += [" ".join(drawn.sentence(7)) for _ in range(200)]
    assert all(belongs(line, part) for line in lines)
    other = "held-out" if part == "learnt" else "learnt"
    assert not any(belongs(line, other) for line in lines)


def test_rare_words_and_names_of_the_parts_differ_and_common_ones_do_not() -> None:
    learnt, kept = (set(vocabulary(part).texts) for part in ("learnt", "held-out"))
    assert len(learnt & kept) == COMMON
    assert learnt | kept == set(vocabulary("all").texts)
    assert len(kept) > 15000
    for kind in ("first", "last", "first-abroad", "last-abroad", "job", "country"):
        assert not set(names(kind, "learnt")) & set(names(kind, "held-out"))
        assert len(names(kind, "held-out")) > 40
    assert {"colour", "color", "organise", "organize"} <= learnt | kept
    assert set(familiar("learnt")) <= learnt


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(english.util, "find_spec", lambda name: None)
    with pytest.raises(vl.ConfigError, match=r"minimax-vl\[train\]"):
        list(english._read("frequency_dictionary_en_82_765.txt"))


def test_every_face_has_every_character() -> None:
    """Those of a folder are chosen by it; packages' faces are taken as they are."""
    lacking = {}
    for face in find_faces():
        with TTFont(face.path, lazy=True) as font:
            if missing := set(map(ord, PRINTED)) - set(font.getBestCmap()):
                lacking[face.name] = "".join(map(chr, sorted(missing)))
    assert not lacking


def test_no_line_is_longer_than_its_marks_and_all_letters_come_up() -> None:
    drawn = prose(6)
    lines = [word for _ in range(4000) for word in drawn.line(2)]
    alone = Counter(word for word in lines if len(set(word)) == 1 and not word.isalnum())
    assert {len(word) for word in alone} == {1, 2, 3, 4, 5, 6}
    assert {word[0] for word in alone} >= set("$#*!?+%&@£€~^")
    assert set(LETTERS) <= set("".join(drawn._random_string() for _ in range(20000)))
    assert not any(re.search("[a-z].*@.*[^ -~]", word) for word in lines), "addresses are in ASCII"
