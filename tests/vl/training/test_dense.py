from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vision_encoder
from preprocessing import Patcher
from vision_encoder import VisionConfig, VisionEncoder
from vl.training.dense import (
    CLASSES,
    POINTS,
    PatchHead,
    captured_features,
    dense_loss,
    patch_labels,
    supervised,
)
from vl.training.pictures.canvas import SizeRange
from vl.training.pictures.scenes import SceneFacts
from vl.training.pictures.words import WordsFacts
from vl.training.render import Mix, Sample, render

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
    pitch = patch // POINTS
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
            assert len(twins) > 1 or (distance < 40).float().mean() > 0.5


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


def test_every_class_has_a_logit() -> None:
    head = PatchHead(8)
    assert sorted(CLASSES.values()) == list(range(1, head(torch.zeros(1, 8)).shape[-1]))


def test_captured_features_are_the_encoders_own() -> None:
    config = VisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=84,
        text_hidden_size=16,
    )
    encoder = VisionEncoder(config)
    vision_encoder.init_weights(encoder, generator=torch.Generator().manual_seed(0))
    tiles, grid = Patcher(patch=84)(samples("scenes", 1)[0].image)
    with captured_features(encoder) as features:
        encoder(tiles, [grid], max_tiles=2)
    torch.testing.assert_close(torch.cat(features), encoder.features(tiles))
    encoder(tiles, [grid])
    assert torch.cat(features).shape[0] == len(tiles), "nothing is captured outside"


def test_dense_loss_is_the_mean_over_the_points_named() -> None:
    logits = torch.randn(2, 5, 4, 7, generator=torch.Generator().manual_seed(0))
    points, labels = torch.tensor([3, 0, 39, 20]), torch.tensor([0, 6, 2, 2])
    logs = logits.double().log_softmax(-1).view(40, 7)
    expected = -sum(float(logs[point, label]) for point, label in zip(points, labels, strict=True)) / 4
    assert float(dense_loss(logits, points, labels)) == pytest.approx(expected, rel=1e-5)


def test_things_and_a_fifth_of_the_background_are_learnt() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[torch.tensor([1, 2, 500])] = torch.tensor([4, 5, 6])
    points = supervised(labels)
    assert {1, 2, 500} <= set(points.tolist())
    assert len(points) == 202
