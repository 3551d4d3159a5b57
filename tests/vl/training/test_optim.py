from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch import nn

from vl.training.config import OptimizerConfig
from vl.training.losses import balance_loss, load_spread
from vl.training.optim import MasterOptimizer, learning_rate
from vl.training.shards import Shards


def test_schedule_warms_up_and_falls_to_the_end() -> None:
    config = OptimizerConfig(lr=1.0, final_lr=0.1, warmup_steps=10)
    assert learning_rate(0, 0.0, config) == pytest.approx(0.1)
    assert learning_rate(9, 0.0, config) == pytest.approx(1.0)
    assert learning_rate(1000, 0.5, config) == pytest.approx(0.55)
    assert learning_rate(1000, 1.0, config) == pytest.approx(0.1)
    falling = [learning_rate(100, p / 20, config) for p in range(21)]
    assert falling == sorted(falling, reverse=True)


def test_balance_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    layers = [torch.randn(50, 4) for _ in range(3)]
    loss, load = balance_loss(layers, top_k=2)
    expected = 0.0
    for number, logits in enumerate(layers):
        mean, counts = [0.0] * 4, [0.0] * 4
        for row in logits.tolist():
            total = sum(math.exp(x) for x in row)
            for expert in range(4):
                mean[expert] += math.exp(row[expert]) / total / 50
            for expert in sorted(range(4), key=lambda e: -row[e])[:2]:
                counts[expert] += 1 / 100
        expected += 4 * sum(m * c for m, c in zip(mean, counts, strict=True)) / 3
        assert load[number].tolist() == pytest.approx(counts)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_balance_loss_bounds_and_gradient() -> None:
    even, load = balance_loss([torch.eye(4).repeat(5, 1)], top_k=1)
    assert float(even) == pytest.approx(1.0)
    assert load_spread(load) == pytest.approx((1.0, 1.0))
    logits = torch.tensor([[9.0, 0, 0, 0]]).repeat(8, 1).requires_grad_()
    crowded, _ = balance_loss([logits], top_k=1)
    assert crowded.item() > 3.9
    crowded.backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all(), "descent takes probability from the crowded expert"


class Toy(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4, dtype=dtype)
        self.image_newline = nn.Parameter(torch.ones(4, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.image_newline


def test_updates_equal_torchs_adamw() -> None:
    config = OptimizerConfig(weight_decay=0.1, clip=1e9)
    ours, theirs = Toy(torch.float32), Toy(torch.float32)
    optimizer = MasterOptimizer(ours, config)
    groups = [
        {"params": [theirs.linear.weight], "weight_decay": 0.1},
        {"params": [theirs.linear.bias, theirs.image_newline], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=config.betas)
    x = torch.randn(8, 4)
    for step in range(5):
        lr = 0.01 / (step + 1)
        ours(x).square().sum().backward()
        optimizer.step(lr)
        theirs(x).square().sum().backward()
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        reference.zero_grad()
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))


def test_masters_keep_what_bfloat16_would_lose() -> None:
    model = Toy(torch.float32)
    optimizer = MasterOptimizer(model, OptimizerConfig(weight_decay=0.0))
    model.to(torch.bfloat16)
    for _ in range(200):
        model.image_newline.sum().backward()
        optimizer.step(1e-4)
    # 200 updates of 1e-4 are 0.02; each alone is less than half a bfloat16 step below 1 (0.002).
    torch.testing.assert_close(model.image_newline.float(), torch.full((4,), 0.98), atol=4e-3, rtol=0)
    assert model.linear.weight.dtype == torch.bfloat16


def test_gradients_are_clipped() -> None:
    model = Toy(torch.float32)
    optimizer = MasterOptimizer(model, OptimizerConfig(clip=1e-3))
    (1e3 * model(torch.ones(2, 4))).sum().backward()
    assert float(optimizer.step(1e-3)) > 1e3
    first = optimizer.state()["linear.weight/exp_avg"]
    assert float(first.norm()) <= 1e-3


def test_wsd_is_level_and_then_falls_in_a_line() -> None:
    config = OptimizerConfig(lr=1.0, final_lr=0.2, warmup_steps=10, schedule="wsd", decay_share=0.25)
    assert learning_rate(4, 0.0, config) == pytest.approx(0.5)
    assert [learning_rate(100, p, config) for p in (0.1, 0.5, 0.75)] == pytest.approx([1.0, 1.0, 1.0])
    assert learning_rate(100, 0.875, config) == pytest.approx(0.6)
    assert learning_rate(100, 1.0, config) == pytest.approx(0.2)


def test_a_process_that_only_helps_to_save_has_one_gathered_tensor_at_a_time() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    class Gathering(Shards):
        def gather(self, name: str, part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            assert not any(whole() is not None for whole in made)
            whole = part.clone()
            made.append(weakref.ref(whole))
            return whole

    model = Toy(torch.float32)
    optimizer = MasterOptimizer(model, OptimizerConfig(), Gathering())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step(0.1)
    assert optimizer.state(keep=False) == {}
    assert len(made) == 9  # of three parameters


def test_frozen_parameters_have_no_state() -> None:
    model = Toy(torch.float32)
    model.linear.requires_grad_(False)
    optimizer = MasterOptimizer(model, OptimizerConfig())
    before = model.linear.weight.clone()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step(0.1)
    assert {name.rpartition("/")[0] for name in optimizer.state()} == {"image_newline"}
    assert torch.equal(model.linear.weight, before)


class Layer(nn.Module):
    """Two hidden matrices, one of them of two experts, and a matrix that is none."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.self_attn = nn.Module()
        self.self_attn.q_proj = nn.Linear(4, 6, bias=False)
        self.experts = nn.Module()
        self.experts.w2 = nn.Parameter(torch.randn(2, 6, 5, generator=generator))
        self.lm_head = nn.Linear(6, 3, bias=False)
        with torch.no_grad():
            self.self_attn.q_proj.weight.copy_(torch.randn(6, 4, generator=generator))
            self.lm_head.weight.copy_(torch.randn(3, 6, generator=generator))

    def loss(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(8, 4, generator=generator), torch.randn(8, 5, generator=generator)
        return self.lm_head(self.self_attn.q_proj(x) + y @ (self.experts.w2[0] - self.experts.w2[1]).T).square().mean()


def test_muon_updates_each_hidden_matrix_as_torchs_does() -> None:
    config = OptimizerConfig(weight_decay=0.1, clip=1e9, muon=True)
    ours, theirs = Layer(), Layer()
    optimizer = MasterOptimizer(ours, config)
    experts = [nn.Parameter(theirs.experts.w2[i].detach().clone()) for i in range(2)]
    matrices = [theirs.self_attn.q_proj.weight, *experts]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([theirs.lm_head.weight], lr=0.01, betas=config.betas, weight_decay=0.1)
    for step in range(4):
        ours.loss(step).backward()
        optimizer.step(0.01)
        theirs.loss(step).backward()
        assert theirs.experts.w2.grad is not None
        for expert, grad in zip(experts, theirs.experts.w2.grad, strict=True):
            expert.grad = grad
        muon.step()
        adamw.step()
        with torch.no_grad():
            theirs.experts.w2.copy_(torch.stack(experts))
        theirs.zero_grad()
    # Muon works in bfloat16, where the order of a sum shows.
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()), rtol=1e-3, atol=1e-4)


def test_muons_state_is_restored() -> None:
    config = OptimizerConfig(muon=True)
    whole = Layer()
    optimizer = MasterOptimizer(whole, config)
    for step in range(2):
        whole.loss(step).backward()
        optimizer.step(0.01)
    tensors = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    resumed = Layer()
    other = MasterOptimizer(resumed, config)
    other.load(tensors)
    for model, its in ((whole, optimizer), (resumed, other)):
        model.loss(7).backward()
        its.step(0.01)
    torch.testing.assert_close(dict(resumed.named_parameters()), dict(whole.named_parameters()), rtol=0, atol=0)
    assert {name for name in tensors if name.endswith("/momentum")} == {
        "self_attn.q_proj.weight/momentum",
        "experts.w2/momentum",
    }
