"""The decoder against transformers' `MiniMaxForCausalLM`, and against a float64 derivation with partial rotary."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig, released_tensors

VARIANTS: list[dict[str, Any]] = [
    {},
    {"attn_type_list": (0, 0, 0, 1), "num_key_value_heads": 1, "num_local_experts": 8, "num_experts_per_tok": 3},
    {"attn_type_list": (1, 0), "num_key_value_heads": 4, "num_experts_per_tok": 1, "rope_theta": 1e7},
    {"attn_type_list": (0,) * 5, "head_dim": 16, "num_attention_heads": 2, "rms_norm_eps": 1e-3},
    {"attn_type_list": (0, 1, 0, 1, 0, 1), "num_local_experts": 2, "linear_attention_beta": 0.3, "mlp_alpha": 3.55},
]


def weights_of(model: MiniMaxText) -> dict[str, Tensor]:
    """Values by their released names."""
    return {name: slot.read() for name, slot in released_tensors(model).items()}


def as_transformers(model: MiniMaxText) -> Any:
    transformers = pytest.importorskip("transformers")
    c = model.config
    peer = transformers.MiniMaxForCausalLM(
        transformers.MiniMaxConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            num_local_experts=c.num_local_experts,
            num_experts_per_tok=c.num_experts_per_tok,
            rms_norm_eps=c.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            layer_types=["full_attention" if kind else "linear_attention" for kind in c.attn_type_list],
            linear_attn_alpha_factor=c.linear_attention_alpha,
            linear_attn_beta_factor=c.linear_attention_beta,
            full_attn_alpha_factor=c.full_attention_alpha,
            full_attn_beta_factor=c.full_attention_beta,
            mlp_alpha_factor=c.mlp_alpha,
            mlp_beta_factor=c.mlp_beta,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    state = peer.state_dict()
    copied = 0
    for name, tensor in weights_of(model).items():
        name = name.replace("block_sparse_moe", "mlp")
        if expert := re.fullmatch(r"(.*experts)\.(\d+)\.w(\d)\.weight", name):
            up, down = state[f"{expert[1]}.gate_up_proj"], state[f"{expert[1]}.down_proj"]
            w1, w3 = up[int(expert[2])].split(c.intermediate_size)
            target = {"1": w1, "2": down[int(expert[2])], "3": w3}[expert[3]]
        else:
            target = state[name]
        assert target.shape == tensor.shape
        target.copy_(tensor)
        copied += tensor.numel()
    assert copied == sum(p.numel() for p in peer.parameters())
    return peer


@pytest.mark.parametrize("changes", VARIANTS)
def test_transformers_agrees(
    config: Callable[..., TextConfig], build: Callable[..., MiniMaxText], changes: dict[str, Any]
) -> None:
    model = build(config(**({"head_dim": 8} | changes | {"rotary_dim": changes.get("head_dim", 8)})))
    peer = as_transformers(model)
    lengths = [300, 7, 129]
    ids = [torch.randint(0, 50, (n,)) for n in lengths]
    with torch.no_grad():
        got = model.logits(model(model.embed(torch.cat(ids)), Packed.of(lengths)))
        for ours, tokens in zip(got.split(lengths), ids, strict=True):
            theirs = peer(tokens[None]).logits[0]
            assert (ours - theirs).abs().max().item() < 1e-4


def test_transformers_agrees_when_decoding(
    config: Callable[..., TextConfig], build: Callable[..., MiniMaxText]
) -> None:
    model = build(config(rotary_dim=8))
    peer = as_transformers(model)
    prompt = torch.randint(0, 50, (11,))
    want = peer.generate(prompt[None], max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)[0]
    cache = HybridCache(model.config, slots=1, pages=5, page_size=4)
    slot = cache.acquire()
    cache.reserve(slot, 20)
    tokens, new = prompt, prompt
    for _ in range(8):
        packed = Packed.of([len(new)], past=[len(tokens) - len(new)], slots=[slot])
        new = model.logits(model(model.embed(new), packed, cache)[-1:]).argmax(-1)
        tokens = torch.cat((tokens, new))
    assert tokens.tolist() == want.tolist()


def derived_logits(weights: dict[str, Tensor], c: TextConfig, ids: list[int]) -> Tensor:
    """The model's definition, one token after the other in float64, from the released names alone."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, d, r = c.num_attention_heads, c.head_dim, c.rotary_dim

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return x / (x.square().mean() + eps).sqrt() * w[name]

    def turned(x: Tensor, position: int) -> Tensor:  # [heads, d]
        x = x.clone()
        for i in range(r // 2):
            angle = position * c.rope_theta ** (-2 * i / r)
            a, b = x[:, i].clone(), x[:, i + r // 2].clone()
            x[:, i] = a * math.cos(angle) - b * math.sin(angle)
            x[:, i + r // 2] = a * math.sin(angle) + b * math.cos(angle)
        return x

    states: dict[int, Tensor] = {}
    cached: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def lightning(x: Tensor, i: int, p: str) -> Tensor:
        qkv = F.silu(w[p + "qkv_proj.weight"] @ x)
        depth = 1 - i / (c.num_hidden_layers - 1 + 1e-5) + 1e-5
        out = []
        for h in range(heads):
            q, k, v = qkv[h * 3 * d : (h + 1) * 3 * d].split(d)
            decay = math.exp(-(2 ** (-8 * (h + 1) / heads)) * depth)
            before = states.get(i * heads + h, torch.zeros(d, d, dtype=torch.float64))
            states[i * heads + h] = decay * before + torch.outer(k, v)
            out.append(q @ states[i * heads + h])
        gate = torch.sigmoid(w[p + "output_gate.weight"] @ x)
        return w[p + "out_proj.weight"] @ (gate * norm(torch.cat(out), p + "norm.weight", 1e-6))

    def softmax(x: Tensor, i: int, p: str, position: int) -> Tensor:
        q = turned((w[p + "q_proj.weight"] @ x).view(heads, d), position)
        k = turned((w[p + "k_proj.weight"] @ x).view(-1, d), position)
        cached.setdefault(i, []).append((k, (w[p + "v_proj.weight"] @ x).view(-1, d)))
        keys, values = (torch.stack(side) for side in zip(*cached[i], strict=True))
        out = []
        for h in range(heads):
            kv = h * c.num_key_value_heads // heads
            out.append((keys[:, kv] @ q[h] / math.sqrt(d)).softmax(0) @ values[:, kv])
        return w[p + "o_proj.weight"] @ torch.cat(out)

    def moe(x: Tensor, p: str) -> Tensor:
        scores = (w[p + "gate.weight"] @ x).softmax(0)
        best = scores.topk(c.num_experts_per_tok)
        total = torch.zeros_like(x)
        for score, e in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            w1, w2, w3 = (w[f"{p}experts.{e}.{n}.weight"] for n in ("w1", "w2", "w3"))
            total += score * (w2 @ (F.silu(w1 @ x) * (w3 @ x)))
        return total

    logits = []
    for position, token in enumerate(ids):
        x = w["model.embed_tokens.weight"][token]
        for i, kind in enumerate(c.attn_type_list):
            p = f"model.layers.{i}."
            x = norm(x, p + "input_layernorm.weight", c.rms_norm_eps)
            if kind:
                y = softmax(x, i, p + "self_attn.", position)
                x = c.full_attention_alpha * x + c.full_attention_beta * y
            else:
                y = lightning(x, i, p + "self_attn.")
                x = c.linear_attention_alpha * x + c.linear_attention_beta * y
            x = norm(x, p + "post_attention_layernorm.weight", c.rms_norm_eps)
            x = c.mlp_alpha * x + c.mlp_beta * moe(x, p + "block_sparse_moe.")
        logits.append(w["lm_head.weight"] @ norm(x, "model.norm.weight", c.rms_norm_eps))
    return torch.stack(logits)


@pytest.mark.parametrize("changes", [{"rotary_dim": 4}, {"rotary_dim": 2, "attn_type_list": (1, 0, 1)}, *VARIANTS[1:3]])
def test_float64_derivation_agrees(
    config: Callable[..., TextConfig], build: Callable[..., MiniMaxText], changes: dict[str, Any]
) -> None:
    model = build(config(**changes), seed=5)
    ids = torch.randint(0, 50, (25,))
    with torch.no_grad():
        got = model.logits(model(model.embed(ids), Packed.of([25])))
        want = derived_logits(weights_of(model), model.config, ids.tolist())
    assert (got.double() - want).abs().max().item() < 1e-4
