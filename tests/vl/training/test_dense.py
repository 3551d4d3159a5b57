from __future__ import annotations

import pytest
import torch
from PIL import Image

import vision_encoder
from preprocessing import Patcher
from vision_encoder import VisionConfig, VisionEncoder
from vl.training.dense import POINTS, PatchHead, captured_features, dense_loss, supervised


def test_each_point_of_a_patch_has_a_logit_for_each_class() -> None:
    assert PatchHead(8, 5)(torch.zeros(3, 9, 8)).shape == (3, 9, POINTS**2, 5)


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
    tiles, grid = Patcher(patch=84)(Image.new("RGB", (400, 300), "red"))
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
