"""The names under which MiniMax-Text-01 was released, and where our parameters keep them.

MiniMax-VL-01 has the same names behind `language_model.`. All are [out_features, in_features] matrices or norm vectors;
the experts, one tensor per expert and matrix, are slices of the stacked parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from text_backbone.config import SOFTMAX, TextConfig
from text_backbone.model import MiniMaxText
from text_backbone.parallel.model import SplitText
from text_backbone.parallel.slots import whole_slots
from text_backbone.quantization.files import is_quantised, stored_parts, stored_slots
from text_backbone.quantization.stored import Quantized
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
    """Every tensor of a released checkpoint: its name -> the place that holds it. A quantised one packs in `load`.

    Of a model that is split over ranks they are the whole model's; `parallel.slots` says who may read them when.
    """
    here = {
        name: _plain(model, name, weight[index]) if isinstance(weight, Tensor) else weight.slot(index)
        for name, weight, index in _places(model)
    }
    if not isinstance(model, SplitText):
        return here
    return whole_slots(model, here, ((*named, False) for named in released_shapes(model.layout.config)))


def stored_tensors(model: MiniMaxText) -> dict[str, Slot]:
    """Every tensor of a checkpoint in the model's own storage: `released_tensors`, but quantised matrices as they are.

    Each is then a few tensors, as `quantization.files` says.
    """
    here: dict[str, Slot] = {}
    format = None
    for name, weight, index in _places(model):
        if isinstance(weight, Tensor):
            here[name] = _plain(model, name, weight[index])
        else:
            here |= {name + suffix: slot for suffix, slot in stored_slots(weight, index).items()}
            format = weight.format
    return whole_slots(model, here, _stored(model.layout.config, format)) if isinstance(model, SplitText) else here


def _stored(config: TextConfig, format: str | None) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name and shape of every tensor of a checkpoint in a format, and whether it is part of a quantised matrix."""
    for name, shape in released_shapes(config):
        if format is None or not is_quantised(name):
            yield name, shape, False
        else:
            parts = stored_parts(format, *shape)
            yield from ((name + suffix, size or (-1,), True) for suffix, (_, size) in parts.items())


def _plain(model: MiniMaxText, name: str, view: Tensor) -> Slot:
    part = model.layout.part(name, tuple(view.shape)) if isinstance(model, SplitText) else None
    return Slot.of(view, part)


def _places(model: MiniMaxText) -> Iterator[tuple[str, Tensor | Quantized, tuple[int, ...]]]:
    """Released name, what holds it, and where in that it lies."""
    whole = model.layout.whole_name if isinstance(model, SplitText) else str
    return ((whole(name), weight, index) for name, weight, index in _own_places(model))


def _own_places(model: MiniMaxText) -> Iterator[tuple[str, Tensor | Quantized, tuple[int, ...]]]:
    """`_places` by the numbers that layers and experts have in this model, which may be a part of one."""
    places: dict[str, Tensor | Quantized] = dict(model.named_parameters())
    places |= {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}
    for name, weight in places.items():
        released = name if name.startswith("lm_head.") else f"model.{name}"
        stem, _, matrix = released.rpartition(".")
        if matrix == "w13":
            for e in range(_experts(weight)):
                yield from ((f"{stem}.{e}.{w}.weight", weight, (e, i)) for i, w in enumerate(("w1", "w3")))
        elif matrix == "w2":
            yield from ((f"{stem}.{e}.w2.weight", weight, (e,)) for e in range(_experts(weight)))
        else:
            yield released, weight, ()


def _experts(weight: Tensor | Quantized) -> int:
    return len(weight) if isinstance(weight, Tensor) else weight.lead[0]
