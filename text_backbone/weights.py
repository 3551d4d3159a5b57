"""The names under which MiniMax-Text-01 was released, and where our parameters keep them.

MiniMax-VL-01 has the same names behind `language_model.`. All are [out_features, in_features] matrices or norm vectors;
the experts, one tensor per expert and matrix, are slices of the stacked parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

from text_backbone.config import SOFTMAX, TextConfig
from text_backbone.model import MiniMaxText
from text_backbone.slot import Slot


def released_shapes(config: TextConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a checkpoint of this config has: what `released_tensors` of a model gives.

    Lazy, so that a config is held to a checkpoint's files before any memory is asked for, whatever it says.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    lightning = {"qkv_proj": (3 * heads, hidden), "output_gate": (heads, hidden), "norm": (heads,)}
    lightning["out_proj"] = (hidden, heads)
    softmax = {"q_proj": (heads, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden), "o_proj": (hidden, heads)}
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for i, kind in enumerate(config.attn_type_list):
        layer = f"model.layers.{i}"
        for name, shape in (softmax if kind == SOFTMAX else lightning).items():
            yield f"{layer}.self_attn.{name}.weight", shape
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.block_sparse_moe.gate.weight", (config.num_local_experts, hidden)
        for e in range(config.num_local_experts):
            expert = f"{layer}.block_sparse_moe.experts.{e}"
            yield f"{expert}.w1.weight", (inner, hidden)
            yield f"{expert}.w3.weight", (inner, hidden)
            yield f"{expert}.w2.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config.vocab_size, hidden)


def released_tensors(model: MiniMaxText) -> dict[str, Slot]:
    """Every tensor of a released checkpoint: its name -> the place that holds it."""
    slots: dict[str, Slot] = {}
    for name, parameter in model.named_parameters():
        released = name if name.startswith("lm_head.") else f"model.{name}"
        if name.endswith("experts.w13"):
            stem = released.removesuffix("w13")
            for e, (w1, w3) in enumerate(parameter.detach().unbind()):
                slots |= {f"{stem}{e}.w1.weight": Slot.of(w1), f"{stem}{e}.w3.weight": Slot.of(w3)}
        elif name.endswith("experts.w2"):
            stem = released.removesuffix("w2")
            slots |= {f"{stem}{e}.w2.weight": Slot.of(w2) for e, w2 in enumerate(parameter.detach().unbind())}
        else:
            slots[released] = Slot.of(parameter)
    return slots
