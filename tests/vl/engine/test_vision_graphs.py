"""CUDA graphs of the ViT: what they hold, and when they are dropped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

import vl
from vision_encoder import VisionConfig, VisionEncoder, init_weights
from vision_encoder.inference import encode
from vl.engine import vision_graphs
from vl.engine.vision_graphs import VisionGraphs, state


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


@pytest.fixture
def graphs() -> VisionGraphs:
    return VisionGraphs()


def agree(model: VisionEncoder, tiles: Tensor, graphs: VisionGraphs) -> bool:
    """Whether the features are those of the kernels launched one by one; a product may take another path, though."""
    expected = encode(model.vit, tiles)[:, 1:].double()
    return bool((model.features(tiles, graphs).double() - expected).norm() < 1e-2 * expected.norm())


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


def test_none_without_a_gpu(model: VisionEncoder, graphs: VisionGraphs) -> None:
    tiles = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    assert graphs(model.vit, tiles) is None


@pytest.mark.gpu
def test_sizes_alternate_and_weights_change_in_place(model: VisionEncoder, graphs: VisionGraphs) -> None:
    for count in (1, 3, 9, 16, 17):
        model.features(random_tiles(count), graphs)
    assert not set(graphs._graphs)  # a size that comes once is not worth a graph
    for _ in range(2):
        for count in (3, 1, 9, 10, 15, 17):
            assert agree(model, random_tiles(count), graphs)
        for parameter in model.vit.parameters():
            parameter.mul_(1.1).add_(0.01)
    assert set(graphs._graphs) == {1, 3, 10, 16}


@pytest.mark.gpu
def test_features_are_not_overwritten(model: VisionEncoder, graphs: VisionGraphs) -> None:
    first, second = random_tiles(2), random_tiles(2)
    for _ in range(3):
        a, b = model.features(first, graphs), model.features(second, graphs)
    assert not torch.equal(a, b)
    assert torch.equal(a, model.features(first, graphs))


@pytest.mark.gpu
def test_moved_weights_are_noticed(model: VisionEncoder, graphs: VisionGraphs) -> None:
    tiles = random_tiles(4)
    for _ in range(3):
        assert agree(model, tiles, graphs)
    assert set(graphs._graphs) == {4}
    weight = model.vit.blocks[1].mlp.fc2.weight  # type: ignore[union-attr]
    weight.data = weight.data * 2  # type: ignore[operator]
    assert agree(model, tiles, graphs)
    assert not set(graphs._graphs)
    model.to(torch.float16)
    for _ in range(3):
        assert agree(model, tiles, graphs)
    assert set(graphs._graphs) == {4}


@pytest.mark.gpu
def test_gradients_hooks_and_other_captures_go_without(model: VisionEncoder, graphs: VisionGraphs) -> None:
    tiles = random_tiles(1)
    for _ in range(3):
        model.features(tiles, graphs)
    with torch.inference_mode(False), torch.enable_grad():
        assert graphs(model.vit, tiles) is None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = model.features(tiles, graphs)
    graph.replay()
    torch.testing.assert_close(features, model.features(tiles, graphs))
    seen: list[Tensor] = []
    model.vit.blocks[0].attn.proj.register_forward_hook(lambda *_: seen.append(tiles))  # type: ignore[union-attr]
    for count in range(1, 4):
        model.features(tiles, graphs)
        assert len(seen) == count


@pytest.mark.gpu
def test_threads_share_the_graphs(model: VisionEncoder, graphs: VisionGraphs) -> None:
    batches = [random_tiles(2) for _ in range(4)]
    expected = [model.features(tiles, graphs) for _ in range(3) for tiles in batches][-4:]
    right: list[bool] = []

    def work(tiles: Tensor, out: Tensor) -> None:
        stream = torch.cuda.Stream()
        with torch.inference_mode(), torch.cuda.stream(stream):
            right.extend(torch.equal(model.features(tiles, graphs), out) for _ in range(50))

    torch.cuda.synchronize()
    threads = [Thread(target=work, args=pair) for pair in zip(batches, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200


@pytest.mark.gpu
def test_a_capture_that_fails_is_told_once(
    model: VisionEncoder, graphs: VisionGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = random_tiles(2)
    expected = model.features(tiles, graphs)

    def waits(*args: object) -> Tensor:
        features = encode(*args)  # type: ignore[arg-type]
        features.sum().item()
        return features

    monkeypatch.setattr(vision_graphs, "encode", waits)
    with pytest.warns(UserWarning, match="could not become a CUDA graph"):
        assert torch.equal(model.features(tiles, graphs), expected)
    assert torch.equal(model.features(tiles, graphs), expected)


@pytest.mark.gpu
def test_graphs_go_with_their_model(tiny_checkpoint: Path) -> None:
    """The second image is encoded with graphs, and they go with the engine that made them."""
    model = vl.load(tiny_checkpoint, device="cuda", dtype="bfloat16")
    for _ in range(2):  # another image: the features of one that comes again are known
        model.caption(torch.randint(0, 256, (50, 60, 3), dtype=torch.uint8).numpy(), max_new_tokens=4)
    graphs = model.engine._vision_graphs  # type: ignore[attr-defined]
    assert set(graphs._graphs) == {2}
    last = ref(graphs)
    del model, graphs
    gc.collect()
    assert last() is None


def test_encoders_keep_nothing_of_their_calls(model: VisionEncoder) -> None:
    before = set(vars(model))
    device = model.image_newline.device
    for _ in range(2):
        model.features(torch.zeros(1, 3, 112, 112, dtype=torch.uint8, device=device))
    assert set(vars(model)) == before
