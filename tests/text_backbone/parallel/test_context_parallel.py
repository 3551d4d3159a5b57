"""Two and four processes that share a batch or a cache out compute what one does."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed
from text_backbone.parallel import ContextShard, context_modules, context_parallel

CASES = {
    "ragged": [37, 1, 12, 130, 5],
    "one": [203],
    "two": [90, 91],
    "short": [3, 4, 1, 2, 6, 1, 3, 4],  # some chunks begin and end between sequences
    "apart": [24] * 8,  # none of which is on two ranks
}


@pytest.fixture(scope="module")
def told(context_worker: ModuleType) -> dict[str, dict[str, Any]]:
    return {name: context_worker.case(lengths) for name, lengths in CASES.items()}


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_what_one_process_does(
    told: Any, run_ranks: Any, context_worker: ModuleType, tmp_path: Any, ranks: int
) -> None:
    found = run_ranks(ranks, told, tmp_path, worker="context_worker")
    for name, lengths in CASES.items():
        model = context_worker.build(told[name], torch.device("cpu"))
        want = context_worker.results(model, told[name], Packed.of(lengths))
        parts = [rank[name] for rank in found]
        cache = HybridCache(model.config, slots=8, pages=128, page_size=4)
        read = context_worker.cached(model, told[name], cache)
        for rank, part in enumerate(parts):
            shard = ContextShard.share(lengths, rank, ranks)
            assert relative(part["hidden"], shard.take(want["hidden"])) < 1e-5
            assert torch.equal(part["whole"], want["hidden"])
            assert torch.equal(part["cached"], parts[0]["cached"])
            assert relative(part["cached"], read) < 1e-5
        assert sum(part["loss"] for part in parts).item() == pytest.approx(want["loss"].item(), rel=1e-5)
        assert want["grads"].keys() == {key for key, _ in model.named_parameters()}
        for key, grad in want["grads"].items():
            assert relative(sum(part["grads"][key] for part in parts), grad) < 1e-5, (name, key)
    one = context_worker.prefilled(context_worker.build(told["one"], torch.device("cpu")), told["one"])
    for rank in found:
        prefilled = rank["one"]["prefilled"]
        for key in ("hidden", "states", "pages"):
            assert relative(prefilled[key], one[key]) < 1e-5, key
            assert torch.equal(prefilled[key], found[0]["one"]["prefilled"][key]), key
        for got, kept in zip(prefilled["kept"], one["kept"], strict=True):
            assert relative(got, kept) < 1e-5


BF16 = [9000, 1, 300, 4097, 64]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_two_gpus_in_bfloat16(run_ranks: Any, context_worker: ModuleType, tmp_path: Any) -> None:
    """Through NCCL: as far from float32 as one GPU is, and gradients of the same norm."""
    # All experts of all tokens, or rounding would choose others.
    told = context_worker.case(BF16, torch.bfloat16, head_dim=128, hidden_size=256, num_experts_per_tok=4)
    parts = [rank["case"] for rank in run_ranks(2, {"case": told}, tmp_path, "cuda", worker="context_worker")]
    device = torch.device("cuda")
    one, exact = (
        context_worker.results(context_worker.build(told, device, dtype), told, Packed.of(BF16, device=device))
        for dtype in (torch.bfloat16, torch.float32)
    )

    def read(dtype: torch.dtype) -> Tensor:
        model = context_worker.build(told, device, dtype)
        cache = HybridCache(model.config, slots=8, pages=3400, page_size=4, device=device, dtype=dtype)
        return context_worker.cached(model, told, cache)

    near_read, far_read = read(torch.bfloat16), read(torch.float32)
    norms = []
    for key, grad in exact["grads"].items():
        got = sum(part["grads"][key].double() for part in parts)
        norms.append((got.norm(), one["grads"][key].double().norm()))
        assert relative(got.cuda(), grad) < 1.5 * relative(one["grads"][key], grad) + 1e-3, key
    ours, theirs = (torch.stack([n.cpu() for n in each]).norm() for each in zip(*norms, strict=True))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-3)
    for rank, part in enumerate(parts):
        shard = ContextShard.share(BF16, rank, 2, device=device)
        near, far = shard.take(one["hidden"]), shard.take(exact["hidden"])
        assert relative(part["hidden"].cuda(), far) < 1.5 * relative(near, far)
        assert torch.equal(part["cached"], parts[0]["cached"])
        assert relative(part["cached"].cuda(), far_read) < 1.5 * relative(near_read, far_read)


def test_a_split_decoder_is_refused(model: MiniMaxText, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(type(model.layers[0].self_attn)):  # type: ignore[misc]
        pass

    monkeypatch.setattr(context_modules, "Messages", lambda *args: None)
    monkeypatch.setattr(model.layers[0].self_attn, "__class__", Other)
    with pytest.raises(ValueError, match="Other is split already"):
        context_parallel(model, dist.group.WORLD, torch.device("cpu"))  # type: ignore[arg-type]
