"""What patches show, as the embedded model's vision tower is taught it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from preprocessing import Patcher
from vl.nano.mix import Mix
from vl.nano.patches import CLASSES, patch_labels
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.scenes import SceneFacts
from vl.nano.pictures.words import WordsFacts
from vl.nano.render import Sample, render
from vl.nano.source import NanoSource
from vl.training.dense import POINTS

NAMES = {index: name for name, index in CLASSES.items()}
SIZES = (SizeRange(300, 336, 0.5), SizeRange(900, 1300, 0.5))


def samples(kind: str, count: int) -> list[Sample]:
    return [render(5, index, Mix(sizes=SIZES).only(kind)) for index in range(count)]


def as_maps(labels: Tensor, patches: int) -> Tensor:
    """[tiles, patches**2, POINTS**2] laid out as they lie in a tile: [tiles, patches * POINTS, patches * POINTS]."""
    by_patch = labels.view(-1, patches, patches, POINTS, POINTS)
    return by_patch.transpose(2, 3).reshape(-1, patches * POINTS, patches * POINTS)


@pytest.mark.parametrize("patch", [14, 28])
def test_points_have_the_colour_that_their_label_names(patch: int) -> None:
    pitch, shares = patch // POINTS, []
    for sample in samples("scenes", 12):
        assert isinstance(sample.facts, SceneFacts)
        tiles, grid = Patcher(patch=patch)(sample.image)
        labels = as_maps(patch_labels(sample.boxes, grid), 336 // patch)
        assert labels.shape[0] == len(tiles)
        centres = tiles[:, :, pitch // 2 :: pitch, pitch // 2 :: pitch].permute(0, 2, 3, 1).float()
        for shape in sample.facts.shapes:
            if shape.shape not in ("square", "circle", "hexagon"):
                continue  # the others leave part of their box open
            named = labels == CLASSES[f"{shape.colour} {shape.shape}"]
            assert named[0].any()
            assert named[1:].any()
            distance = (centres[named] - torch.tensor(shape.rgb).float()).abs().amax(-1)
            twins = [s for s in sample.facts.shapes if (s.colour, s.shape) == (shape.colour, shape.shape)]
            if len(twins) == 1:
                shares.append((distance < 40).float().mean())
                assert shares[-1] > 0.4  # of a small square on a coarse grid, the border takes many
    assert torch.stack(shares).mean() > 0.75


@pytest.mark.parametrize("view", ["thumbnail", "tiles"])
def test_labels_spell_the_text(view: str) -> None:
    """Read line by line and left to right, with repeats dropped, large print spells itself on the feature map."""
    spelt = 0
    for sample in samples("words", 40):
        facts = sample.facts
        assert isinstance(facts, WordsFacts)
        grid = Patcher().grid(facts.width, facts.height)
        labels, across = as_maps(patch_labels(facts.boxes, grid), 24), 24 * POINTS
        if view == "thumbnail":
            canvas, pitch = labels[0], facts.width / across
        else:
            tiles = labels[1:].view(grid.tile_rows, grid.tile_cols, across, across)
            canvas = tiles.transpose(1, 2).reshape(grid.tile_rows * across, grid.tile_cols * across)
            width, height = grid.resolution
            pitch = 336 / across / min(width / facts.width, height / facts.height)  # of points, in the picture's pixels
        if min(right - left for _, (left, _, right, _) in facts.boxes) < 1.05 * pitch:
            continue  # some letter is narrower than the way from point to point
        expected = [line.replace(" ", "") for line in facts.lines]
        rows = ["".join(NAMES.get(int(v), "") for v in row) for row in canvas]
        read = [_collapse(row) for row in rows if row]
        for line in expected:
            assert _collapse(line) in read
        spelt += 1
    assert spelt >= 2


def _collapse(text: str) -> str:
    return "".join(c for i, c in enumerate(text) if i == 0 or text[i - 1] != c)


def test_every_class_has_a_number_below_the_sources_count() -> None:
    assert sorted(CLASSES.values()) == list(range(1, NanoSource.classes))
