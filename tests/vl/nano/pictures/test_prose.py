from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vl.nano.pictures.fonts import find_faces
from vl.nano.pictures.pen import Type
from vl.nano.pictures.prose import paragraph
from vl.nano.pictures.words import word_list


def test_running_text_looks_like_text_but_cannot_be_guessed() -> None:
    words = paragraph(np.random.default_rng(2), 4000)
    assert len(words) == 4000
    plain = [re.sub(r"[^a-z]", "", word.lower()) for word in words]
    counts = Counter(plain)
    assert counts.most_common(2)[1][1] < 200  # beside numbers, which are all ""
    assert len(counts) > 1500
    assert max(n for pair, n in Counter(pairwise(plain)).items() if all(pair)) < 12
    text = " ".join(words)
    assert re.match(r"\W?[A-Z0-9$]", text)
    assert text[-1] in ".!?"
    for mark in ",;:()'%$&-/!?0123456789":
        assert mark in text
    for start in re.findall(r"(?<=[a-z][.!?] )\w", text):
        assert not start.islower()


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
