"""Lightning attention's kernels with links, against the whole batch in one piece in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from text_backbone import Packed
from text_backbone.kernels.lightning import reference
from text_backbone.kernels.lightning import triton as kernels
from text_backbone.parallel import lasp
from text_backbone.parallel.context import ContextShard

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOPES = torch.tensor([0.0, 0.31])


def check(lengths: list[int], d: int, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the layout of context ranks: of one rank, which has both chunks and gets its own states back."""
    monkeypatch.setattr(lasp, "all_gather", lambda x, group: x[None])
    monkeypatch.setattr(lasp, "lightning_attention", kernels.lightning_attention)
    generator = torch.Generator(DEVICE).manual_seed(0)
    qkv, grad = (
        torch.randn(sum(lengths), len(SLOPES) * width, generator=generator, device=DEVICE).to(dtype)
        for width in (3 * d, d)
    )
    slopes, packed = SLOPES.to(DEVICE), Packed.of(lengths, device=DEVICE)
    exact, own = qkv.double().requires_grad_(), qkv.clone().requires_grad_()
    want = reference.lightning_attention(exact, slopes, packed)
    (by_exact,) = torch.autograd.grad(want, exact, grad.double())
    shard = ContextShard.share(lengths, 0, 1, device=DEVICE)
    assert torch.equal(shard.rows.cpu(), torch.arange(sum(lengths)))
    out = lasp.lasp_attention(own, slopes, shard, None)  # type: ignore[arg-type]
    (by_own,) = torch.autograd.grad(out, own, grad)
    for got, right in ((out, want), (by_own, by_exact)):
        assert (got.double() - right).norm() < bound * right.norm()
    with torch.no_grad():
        assert torch.equal(lasp.lasp_attention(own, slopes, shard, None), out)  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [[5, 64, 1, 90], [200], [70, 2, 60]])
@pytest.mark.parametrize("cut", [None, (64, 32)])
def test_sequences_that_begin_and_go_on_elsewhere(
    lengths: list[int], cut: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cut:
        whole = kernels.cut
        monkeypatch.setattr(kernels, "cut", lambda packed, size, piece, link: whole(packed, *cut, link))
    check(lengths, 32, torch.float32, 1e-5, monkeypatch)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("lengths", [[70_000, 1, 300], [130] * 40, [300, 9000, 64], [40, 40]])
def test_real_sizes(lengths: list[int], d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With d = 128 on a Hopper GPU by the kernels for it."""
    check(lengths, d, torch.bfloat16, 5e-3, monkeypatch)
