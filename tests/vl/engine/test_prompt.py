"""Prompts are checked whole before they are queued, and know where their images lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from preprocessing import Inputs
from vl.engine.prompt import Prompt


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def inputs(tiny_model: vl.MiniMaxVL) -> Inputs:
    """Of two images, of 2 and of 5 tiles."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture(*size)} for size in ((60, 50), (640, 480))]
    parts.insert(1, {"type": "text", "text": "and"})
    return tiny_model.processor([{"role": "user", "content": [*parts, {"type": "text", "text": "Compare them."}]}])


@dataclass(frozen=True)
class Contradiction:
    """A grid whose counts are not those of its rows."""

    tile_cols: int = 1
    tile_rows: int = 1
    left: int = 0
    top: int = 0
    cols: int = 6
    rows: int = 6
    tiles: int = 2
    tokens: int = 77


BAD: dict[str, tuple[Callable[[Inputs], dict[str, Any]], str]] = {
    "none": (lambda i: {"input_ids": i.input_ids[:0]}, "the prompt is empty"),
    "two rows": (
        lambda i: {"input_ids": i.input_ids[None]},
        r"input_ids must be int64 \[tokens\], not torch.int64 \[1, ",
    ),
    "int32": (lambda i: {"input_ids": i.input_ids.int()}, "input_ids must be int64"),
    "floats": (lambda i: {"input_ids": i.input_ids.float()}, "input_ids must be int64"),
    "a list": (lambda i: {"input_ids": i.input_ids.tolist()}, "not list"),
    "negative": (lambda i: {"input_ids": i.input_ids - 5}, "input_ids holds -[0-9]+, but"),
    "beyond": (lambda i: {"input_ids": i.input_ids + 10**6}, "vocabulary ends at"),
    "a placeholder too few": (lambda i: {"input_ids": i.input_ids[-len(i) + 80 :]}, "placeholders: make them with"),
    "no grids": (lambda i: {"grids": [], "tiles": i.tiles[:0]}, "the images make 0 tokens, but input_ids has"),
    "tiles without grids": (lambda i: {"grids": []}, "the 0 grids describe 0 tiles, but tiles has 7"),
    "a tile too few": (lambda i: {"tiles": i.tiles[1:]}, "the 2 grids describe 7 tiles, but tiles has 6"),
    "small tiles": (
        lambda i: {"tiles": i.tiles[..., :200, :200]},
        r"tiles must be uint8 \[n, 3, 336, 336\], not torch",
    ),
    "grey tiles": (lambda i: {"tiles": i.tiles[:, :1]}, r"\[7, 1, 336, 336\]"),
    "float tiles": (lambda i: {"tiles": i.tiles.float()}, "not torch.float32"),
    "no tensor": (lambda i: {"tiles": i.tiles.numpy()}, "not ndarray"),
    "a number": (lambda i: {"tiles": torch.tensor(3)}, r"not torch.int64 \[\]"),
    "no grid": (lambda i: {"grids": [None, *i.grids[1:]]}, "make grids with processor"),
    "a wrong grid": (lambda i: {"grids": [Contradiction(), *i.grids[1:]]}, "grid 0: says 2 tiles and 77 tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_the_model_is_refused_at_once(tiny_model: vl.MiniMaxVL, inputs: Inputs, case: str) -> None:
    change, words = BAD[case]
    bad = replace(inputs, **change(inputs))
    calls: tuple[Callable[[], object], ...] = (
        lambda: tiny_model.stream(bad),  # type: ignore[arg-type]
        lambda: tiny_model.generate([inputs, bad]),
        lambda: tiny_model.engine.submit(bad, vl.SamplingParams()),
        lambda: tiny_model.logits(bad),
    )
    for call in calls:
        with pytest.raises(vl.InputError, match=words):
            call()
    assert not tiny_model.engine.scheduler.waiting  # type: ignore[attr-defined]
    assert not tiny_model.engine.scheduler.running  # type: ignore[attr-defined]


def test_other_things_are_no_prompts(tiny_model: vl.MiniMaxVL, inputs: Inputs) -> None:
    engine: Any = tiny_model.engine
    with pytest.raises(vl.InputError, match="not dict"):
        engine.submit({"input_ids": inputs.input_ids}, vl.SamplingParams())
    with pytest.raises(vl.InputError, match="params must be SamplingParams, not dict"):
        engine.submit(inputs, {"top_k": 5})


def test_a_text_only_model_names_itself(tiny_text_checkpoint: Any, inputs: Inputs) -> None:
    model = vl.load(tiny_text_checkpoint, device="cpu")
    with pytest.raises(vl.InputError, match=r"tiny-text.* is a text-only checkpoint and takes no images"):
        model.generate([inputs])


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_images_are_found_in_any_chunk(tiny_model: vl.MiniMaxVL, inputs: Inputs, data: st.DataObject) -> None:
    prompt = Prompt.of(inputs, tiny_model.config)
    token = tiny_model.config.image_token_index
    owner, image = [-1] * len(prompt), 0
    left = inputs.grids[0].tokens
    for at, id_ in enumerate(inputs.input_ids.tolist()):
        if id_ == token:
            if not left:
                image, left = image + 1, inputs.grids[image + 1].tokens
            owner[at], left = image, left - 1
    edges = [at for at in range(1, len(owner)) if owner[at] != owner[at - 1]]
    near = st.sampled_from([min(max(edge + step, 0), len(prompt)) for edge in edges for step in (-1, 0, 1)])
    cut = st.one_of(near, st.integers(0, len(prompt)))
    start, stop = sorted((data.draw(cut), data.draw(cut)))
    assert list(prompt.images_in(start, stop)) == sorted(set(owner[start:stop]) - {-1})
    first, last = prompt.ranks_in(start, stop)
    assert prompt.places[first:last].tolist() == [at for at in range(start, stop) if owner[at] >= 0]


def test_tiles_of_an_image(tiny_model: vl.MiniMaxVL, inputs: Inputs) -> None:
    prompt = Prompt.of(inputs, tiny_model.config)
    assert torch.equal(torch.cat([prompt.tiles_of(0), prompt.tiles_of(1)]), inputs.tiles)
    assert [len(prompt.tiles_of(image)) for image in (0, 1)] == [2, 5]
