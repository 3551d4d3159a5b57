"""What the encoder runs on a GPU, against timm's modules: folded patch embedding, shifted norms, the whole ViT."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vision_encoder import VisionConfig, VisionEncoder, init_weights
from vision_encoder.inference import applies, encode, padded
from vision_encoder.kernels.norm import shifted_norm
from vision_encoder.kernels.norm import triton as triton_norm
from vision_encoder.patches import Normalisation, TilePatchEmbed, folded_embedding

SMALL = VisionConfig(
    hidden_size=32,
    intermediate_size=52,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=28,
    patch_size=7,
    text_hidden_size=24,
)
NORMALISATION = Normalisation(SMALL.image_mean, SMALL.image_std)


def encoder(
    config: VisionConfig = SMALL, dtype: torch.dtype = torch.float32, device: str = "cpu", *, scale: float = 0.3
) -> VisionEncoder:
    """A random encoder with biases of all sizes."""
    model = VisionEncoder(config, device=device)
    generator = torch.Generator(device).manual_seed(7)
    init_weights(model, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator, device=device), alpha=scale)
    return model.to(dtype)


def random_tiles(count: int, side: int, device: str = "cpu") -> Tensor:
    """Noise, plain colours and black, which make sums of the most and of the least cancellation."""
    generator = torch.Generator().manual_seed(count)
    tiles = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    tiles[1::3] = torch.randint(0, 256, (3, 1, 1), dtype=torch.uint8, generator=generator)
    tiles[2::3] = 0
    return tiles.to(device)


def convolved(tiles: Tensor, weight: Tensor) -> Tensor:
    """The embedding as it is defined, in float64: [n, patches**2, hidden]."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64, device=tiles.device).view(3, 1, 1)
        for v in (SMALL.image_mean, SMALL.image_std)
    )
    pixels = (tiles.double() / 255 - mean) / std
    return nn.functional.conv2d(pixels, weight.double(), stride=weight.shape[-1]).flatten(2).mT


def distance(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("patch", [7, 14])
def test_folded_embedding_in_float32(patch: int) -> None:
    weight = torch.randn(40, 3, patch, patch)
    tiles = random_tiles(6, 4 * patch)
    expected = convolved(tiles, weight)
    torch.testing.assert_close(folded_embedding(tiles, weight, NORMALISATION).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folding_rounds_less_than_normalised_pixels_do(dtype: torch.dtype) -> None:
    weight = (torch.randn(40, 3, 14, 14) * 0.04).to(dtype)
    tiles = random_tiles(6, 56)
    expected = convolved(tiles, weight)
    usual = nn.functional.conv2d(NORMALISATION(tiles, dtype), weight, stride=14).flatten(2).mT
    ours = folded_embedding(tiles, weight, NORMALISATION)
    assert ours.dtype == dtype
    assert distance(ours, expected) < distance(usual, expected)
    # No more than the rounding of the result, but for black tiles the constant is rounded as well.
    assert distance(ours, expected) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_folded_gradient(dtype: torch.dtype, limit: float) -> None:
    exact = torch.randn(24, 3, 14, 14).to(dtype).double().requires_grad_()
    weight = exact.detach().to(dtype).requires_grad_()
    tiles = random_tiles(5, 56)
    grad = torch.randn(5, 16, 24).to(dtype)
    convolved(tiles, exact).backward(grad.double())
    folded_embedding(tiles, weight, NORMALISATION).backward(grad)
    assert exact.grad is not None
    assert weight.grad is not None
    assert weight.grad.dtype == dtype
    assert distance(weight.grad, exact.grad) < limit


@pytest.mark.parametrize(("rows", "hidden"), [(1, 32), (5, 96), (9, 1024), (3, 1500)])
def test_norm_kernel(rows: int, hidden: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    norm = nn.LayerNorm(hidden, eps=1e-5, device=device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, shift = 3 + torch.randn(rows, hidden, device=device), torch.randn(hidden, device=device)
    with torch.no_grad():
        expected = norm(x + shift)
        torch.testing.assert_close(shifted_norm(x, shift, norm), expected)
        ours = triton_norm.shifted_norm(x, shift, norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, hidden_act="quick_gelu", layer_norm_eps=1e-3)])
@pytest.mark.parametrize("count", [1, 9])
def test_encode_equals_timm(config: VisionConfig, count: int) -> None:
    model = encoder(config)
    tiles = random_tiles(count, config.image_size)
    with torch.no_grad():
        expected = model.vit.forward_features(tiles)
        torch.testing.assert_close(encode(model.vit, tiles), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inner", [52, 56])  # without and with the activation in the product's epilogue
def test_the_whole_way_of_a_gpu(monkeypatch: pytest.MonkeyPatch, inner: int) -> None:
    """With every kernel, as on a GPU, though not there."""
    if torch.cuda.is_available():
        pytest.skip("the GPU tests cover this")
    model = encoder(replace(SMALL, num_attention_heads=2, intermediate_size=inner), torch.float16)
    tiles = random_tiles(3, SMALL.image_size)
    with torch.no_grad():
        usual = model.vit.forward_features(tiles)
        for module in ("norm", "patches", "mlp"):
            monkeypatch.setattr(f"vision_encoder.kernels.{module}.has_kernels", lambda device: True)
        for module in ("attention", "mlp"):
            monkeypatch.setattr(f"vision_encoder.kernels.{module}.is_hopper", lambda device: True)
        monkeypatch.setattr("vision_encoder.kernels.mlp._LARGE", 1)
        monkeypatch.setattr(
            TilePatchEmbed, "forward", lambda self, x: folded_embedding(x, self.proj.weight, self.normalisation)
        )
        ours = encode(model.vit, tiles)
        monkeypatch.undo()
        exact = model.double().vit.forward_features(tiles)
    assert distance(ours, exact) < 1.2 * distance(usual, exact)


def test_encode_in_bfloat16_is_as_precise_as_timm() -> None:
    model = encoder(dtype=torch.bfloat16)
    tiles = random_tiles(6, SMALL.image_size)
    with torch.no_grad():
        usual, ours = model.vit.forward_features(tiles), encode(model.vit, tiles)
        exact = model.double().vit.forward_features(tiles)
    assert ours.dtype == torch.bfloat16
    assert distance(ours, exact) < 1.2 * distance(usual, exact)


def test_sizes_are_few_and_near() -> None:
    sizes = [padded(count) for count in range(1, 513)]
    assert all(count <= size <= count * 1.18 for count, size in enumerate(sizes, 1))
    assert len(set(sizes[:64])) == 24
    assert len(set(sizes)) == 64
    assert padded(76) == 76


def test_foreign_projections_and_gradients_take_the_plain_way() -> None:
    model = encoder()
    assert not applies(model.vit, random_tiles(1, 28))  # on the CPU

    class OnGPU:
        is_cuda = True

        def __len__(self) -> int:
            return 1

    assert not applies(model.vit, OnGPU())  # type: ignore[arg-type]
    with torch.no_grad():
        assert applies(model.vit, OnGPU())  # type: ignore[arg-type]
        hook = model.vit.blocks[0].attn.proj.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
        assert not applies(model.vit, OnGPU())  # type: ignore[arg-type]
        hook.remove()
        model.vit.blocks[1].mlp.fc1 = nn.Sequential(model.vit.blocks[1].mlp.fc1)  # type: ignore[union-attr]
        assert not applies(model.vit, OnGPU())  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 6, 33])
def test_the_released_shape_on_a_gpu(count: int) -> None:
    """bfloat16, against float64 of the same weights; timm's own forward beside it."""
    config = VisionConfig(num_hidden_layers=8, text_hidden_size=64)
    model = encoder(config, torch.bfloat16, "cuda", scale=0.1)
    tiles = random_tiles(count, config.image_size, "cuda")
    with torch.no_grad():
        assert applies(model.vit, tiles)
        usual, ours = model.vit.forward_features(tiles)[:6], encode(model.vit, tiles)[:6]
        exact = model.double().vit.forward_features(tiles[:6])
    assert ours.isfinite().all()
    assert distance(ours, exact) < min(0.05, 1.2 * distance(usual, exact))


@pytest.mark.gpu
def test_float32_and_gradients_equal_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    tiles = random_tiles(9, SMALL.image_size)
    here, there = encoder(), encoder()
    there.to("cuda")
    with torch.no_grad():
        torch.testing.assert_close(there.features(tiles.cuda()).cpu(), here.features(tiles), rtol=1e-4, atol=1e-4)
    for model, batch in ((here, tiles), (there, tiles.cuda())):
        model.features(batch).square().sum().backward()
    for (name, mine), other in zip(here.vit.named_parameters(), there.vit.parameters(), strict=True):
        assert mine.grad is not None, name
        assert other.grad is not None, name
        assert distance(other.grad.cpu(), mine.grad.double()) < 1e-4, name
