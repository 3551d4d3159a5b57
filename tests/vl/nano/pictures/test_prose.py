from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import numpy as np

from vl.nano.pictures.prose import Prose


def test_running_text_looks_like_text_but_cannot_be_guessed() -> None:
    words = Prose(np.random.default_rng(2)).paragraph(4000)
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
