"""CUDA graphs of the ViT: what they hold, and when they are dropped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vision_encoder import VisionConfig, VisionEncoder, graphs, init_weights
from vision_encoder.graphs import replayed, state
from vision_encoder.inference import encode


@pytest.fixture
def model() -> Iterator[VisionEncoder]:
    gpu = torch.cuda.is_available()
    config = VisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=112,
        text_hidden_size=32,
    )  # fmt: skip
    model = VisionEncoder(config, device="cuda" if gpu else "cpu", dtype=torch.bfloat16)
    init_weights(model)
    with torch.inference_mode():
        yield model


def random_tiles(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8, device="cuda")


def sizes(model: VisionEncoder) -> set[int]:
    """Of the graphs there are."""
    return set(graphs._known[model.vit]._graphs)


def agree(model: VisionEncoder, tiles: Tensor) -> bool:
    """Whether the features are those of the kernels launched one by one; a product may take another path, though."""
    expected = encode(model.vit, tiles)[:, 1:].double()
    return bool((model.features(tiles).double() - expected).norm() < 1e-2 * expected.norm())


def test_what_a_graph_takes_for_granted() -> None:
    vit: Any = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.GELU()))
    known = state(vit)
    with torch.no_grad():
        vit[0].weight.add_(1)
    assert state(vit) == known

    def moved() -> None:
        vit[0].weight.data = vit[0].weight.data.clone()

    def replaced() -> None:
        vit[1][1] = nn.SiLU()

    changes: tuple[Callable[[], object], ...] = (
        moved, replaced, lambda: vit[1].register_forward_hook(lambda *_: None), vit.double,
    )  # fmt: skip
    for change in changes:
        change()
        assert state(vit) != known
        known = state(vit)


def test_none_without_a_gpu(model: VisionEncoder) -> None:
    tiles = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    assert replayed(model.vit, tiles) is None


@pytest.mark.gpu
def test_sizes_alternate_and_weights_change_in_place(model: VisionEncoder) -> None:
    for count in (1, 3, 9, 16, 17):
        model.features(random_tiles(count))
    assert not sizes(model)  # a size that comes once is not worth a graph
    for _ in range(2):
        for count in (3, 1, 9, 10, 15, 17):
            assert agree(model, random_tiles(count))
        for parameter in model.vit.parameters():
            parameter.mul_(1.1).add_(0.01)
    assert sizes(model) == {1, 3, 10, 16}


@pytest.mark.gpu
def test_features_are_not_overwritten(model: VisionEncoder) -> None:
    first, second = random_tiles(2), random_tiles(2)
    for _ in range(3):
        a, b = model.features(first), model.features(second)
    assert not torch.equal(a, b)
    assert torch.equal(a, model.features(first))


@pytest.mark.gpu
def test_moved_weights_are_noticed(model: VisionEncoder) -> None:
    tiles = random_tiles(4)
    for _ in range(3):
        assert agree(model, tiles)
    assert sizes(model) == {4}
    weight = model.vit.blocks[1].mlp.fc2.weight  # type: ignore[union-attr]
    weight.data = weight.data * 2  # type: ignore[operator]
    assert agree(model, tiles)
    assert not sizes(model)
    model.to(torch.float16)
    for _ in range(3):
        assert agree(model, tiles)
    assert sizes(model) == {4}


@pytest.mark.gpu
def test_gradients_hooks_and_other_captures_go_without(model: VisionEncoder) -> None:
    tiles = random_tiles(1)
    for _ in range(3):
        model.features(tiles)
    with torch.inference_mode(False), torch.enable_grad():
        assert replayed(model.vit, tiles) is None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = model.features(tiles)
    graph.replay()
    torch.testing.assert_close(features, model.features(tiles))
    seen: list[Tensor] = []
    model.vit.blocks[0].attn.proj.register_forward_hook(lambda *_: seen.append(tiles))  # type: ignore[union-attr]
    for count in range(1, 4):
        model.features(tiles)
        assert len(seen) == count


@pytest.mark.gpu
def test_threads_share_the_graphs(model: VisionEncoder) -> None:
    batches = [random_tiles(2) for _ in range(4)]
    expected = [model.features(tiles) for _ in range(3) for tiles in batches][-4:]
    right: list[bool] = []

    def work(tiles: Tensor, out: Tensor) -> None:
        stream = torch.cuda.Stream()
        with torch.inference_mode(), torch.cuda.stream(stream):
            right.extend(torch.equal(model.features(tiles), out) for _ in range(50))

    torch.cuda.synchronize()
    threads = [Thread(target=work, args=pair) for pair in zip(batches, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200


@pytest.mark.gpu
def test_a_capture_that_fails_is_told_once(model: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = random_tiles(2)
    expected = model.features(tiles)

    def waits(*args: object) -> Tensor:
        features = encode(*args)  # type: ignore[arg-type]
        features.sum().item()
        return features

    monkeypatch.setattr(graphs, "encode", waits)
    with pytest.warns(UserWarning, match="could not become a CUDA graph"):
        assert torch.equal(model.features(tiles), expected)
    assert torch.equal(model.features(tiles), expected)


@pytest.mark.gpu
def test_graphs_go_with_their_model(model: VisionEncoder) -> None:
    other = VisionEncoder(model.config, device="cuda", dtype=torch.bfloat16)
    init_weights(other)
    for _ in range(3):
        other.features(random_tiles(1))
    count = len(graphs._known)
    del other
    gc.collect()
    assert len(graphs._known) == count - 1
