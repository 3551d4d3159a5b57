from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from preprocessing import Grid
from vl.engine.boundaries import LEAST, SPAN, boundaries
from vl.engine.prompt import Prompt

END, IMAGE = 1, 2
GRID = Grid(336, 336, 1, 1, 0, 0, 24, 24)  # 1176 tokens


def prompt_of(*runs: int | str) -> Prompt:
    """Runs of text of so many tokens, ends of messages ("end") and images ("image")."""
    ids: list[int] = []
    for run in runs:
        ids += [END] if run == "end" else [IMAGE] * GRID.tokens if run == "image" else [0] * int(run)
    count = runs.count("image")
    input_ids = torch.tensor(ids)
    ends = [GRID.tokens * number for number in range(1, count + 1)]
    places = (input_ids == IMAGE).nonzero().flatten()
    return Prompt(input_ids, torch.empty(0), [GRID] * count, places, ends, ends)


def test_they_are_where_messages_and_images_end() -> None:
    prompt = prompt_of(30, "end", 10, "image", 40, "end", 50, "end", 8)
    image = 41 + GRID.tokens
    assert boundaries(prompt, {END}, 8) == (31, image, image + 41, image + 92)
    assert boundaries(prompt, {END}, 3) == (31, image + 41, image + 92)
    assert boundaries(prompt, {END}, 1) == (image + 92,)
    assert boundaries(prompt, {END}, 0) == ()
    assert boundaries(prompt, {}, 8) == (image, image + 99)


def test_long_texts_have_some_in_between() -> None:
    assert boundaries(prompt_of(3 * SPAN + 50), {END}, 8) == (SPAN, 2 * SPAN, 3 * SPAN, 3 * SPAN + 49)
    few = boundaries(prompt_of(100 * SPAN), {END}, 5)
    assert few == (20 * SPAN, 40 * SPAN, 60 * SPAN, 80 * SPAN, 100 * SPAN - 1)
    assert boundaries(prompt_of(20, "end", 2 * SPAN), {END}, 4) == (21, SPAN + 21, 2 * SPAN + 20)


def test_none_is_within_an_image() -> None:
    images = ["image"] * 20
    assert boundaries(prompt_of(*images, 5), {END}, 30) == tuple(GRID.tokens * number for number in range(1, 21))


@given(
    st.lists(st.one_of(st.integers(1, 5000), st.sampled_from(["end", "image"])), min_size=1, max_size=8),
    st.integers(0, 9),
)
def test_they_are_few_and_apart(runs: list[int | str], most: int) -> None:
    prompt = prompt_of(*runs)
    found = boundaries(prompt, {END}, most)
    assert len(found) <= most
    assert all(at < len(prompt) for at in found)
    assert all(later - at >= LEAST for at, later in zip((0, *found), found, strict=False))
    assert not any(first < at < last for at in found[:-1] for first, last in prompt.spans)
