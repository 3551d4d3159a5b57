"""Parsing of the sections of a `config.json`: the released legacy schema and transformers' native one.

Both describe the same decoder with different key names, so each field is looked up under all of its names; two names
that disagree are an error. An option that this family of models does not use is refused by name rather than ignored.
"""

from __future__ import annotations

from typing import Any

from text_backbone.config import LIGHTNING, SOFTMAX, TextConfig
from vision_encoder.config import VisionConfig
from vl.errors import ConfigError
from vl.preprocessor import Pinpoints, read_pixels
from vl.section import Section

TEXT_TYPES = ("minimax_text_01", "MiniMaxText01", "minimax_m1", "minimax", "minimax_vl_01_text")
LAYER_TYPES = {"linear_attention": LIGHTNING, "full_attention": SOFTMAX}
SCALES = {
    "linear_attention_alpha": ("layernorm_linear_attention_alpha", "linear_attn_alpha_factor"),
    "linear_attention_beta": ("layernorm_linear_attention_beta", "linear_attn_beta_factor"),
    "full_attention_alpha": ("layernorm_full_attention_alpha", "full_attn_alpha_factor"),
    "full_attention_beta": ("layernorm_full_attention_beta", "full_attn_beta_factor"),
    "mlp_alpha": ("layernorm_mlp_alpha", "mlp_alpha_factor"),
    "mlp_beta": ("layernorm_mlp_beta", "mlp_beta_factor"),
}
# What float32 can compute with: outside of these, activations are infinite or not numbers, whatever the weights.
EPS: dict[str, float] = {"least": 1e-30, "most": 1.0}
SCALE: dict[str, float] = {"least": -65504.0, "most": 65504.0}  # float16's range
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
NATIVE_KEYS = {"layer_types", *(native for _, native in SCALES.values())}


def read_text(section: Section) -> TextConfig:
    """The decoder's shape from a `text_config` section, or from the top level of a text-only `config.json`.

    Keys that both configuration classes default alike (key/value heads 8, top-2, eps 1e-5, rope_theta 1e6, residual
    scales 1) may be absent; `rotary_dim` defaults to the whole head.
    """
    _refuse_foreign_text(section)
    hidden, heads = section.integer("hidden_size"), section.integer("num_attention_heads")
    head_dim = section.integer("head_dim", default=hidden // heads)
    scales: dict[str, Any] = {field: section.number(*keys, default=1.0, **SCALE) for field, keys in SCALES.items()}
    try:
        return TextConfig(
            vocab_size=section.integer("vocab_size"),
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=section.integer("num_key_value_heads", default=8),
            head_dim=head_dim,
            intermediate_size=section.integer("intermediate_size"),
            num_local_experts=section.integer("num_local_experts", "num_experts"),
            num_experts_per_tok=section.integer("num_experts_per_tok", default=2),
            rms_norm_eps=section.number("rms_norm_eps", default=1e-5, **EPS),
            attn_type_list=_layers(section),
            **_rope(section, head_dim),
            **scales,
        )
    except ValueError as error:
        raise ConfigError(f"{section.file}: {section.path or 'the model'}: {error}") from error


def _refuse_foreign_text(section: Section) -> None:
    section.allow("model_type", *TEXT_TYPES)
    section.allow("hidden_act", "silu")
    section.allow("shared_intermediate_size", 0, [0], None)
    for key in ("tie_word_embeddings", "attention_bias", "use_qk_norm"):
        section.allow(key, False, None)
    for key in ("sliding_window", "quantization_config"):
        section.allow(key, None)
    section.allow("postnorm", True)
    if "postnorm" not in section.values and not NATIVE_KEYS & section.values.keys():
        # The native schema has no such key; in the legacy one its absence means false.
        raise section.error("postnorm", "is missing, which means false: only postnorm true is supported")


def _layers(section: Section) -> tuple[int, ...]:
    key, values = section.find("attn_type_list")
    if section.has("layer_types"):
        key, values = "layer_types", section.values["layer_types"]
        if not isinstance(values, list) or any(value not in list(LAYER_TYPES) for value in values):
            raise section.error(key, f"must list {' or '.join(LAYER_TYPES)} for each layer, got {values!r}")
        values = [LAYER_TYPES[value] for value in values]
        if section.values.get("attn_type_list") not in (None, values):
            raise section.error(key, "contradicts attn_type_list: keep one of them")
    if values is None:
        raise section.error(key, "is missing: it says which layers are lightning (0) and which softmax (1) attention")
    if not isinstance(values, list) or any(value not in (LIGHTNING, SOFTMAX) for value in values):
        raise section.error(key, f"must list 0 (lightning) or 1 (softmax) for each layer, got {values!r}")
    layers = section.integer("num_hidden_layers", default=len(values))
    if layers != len(values):
        raise section.error(key, f"has {len(values)} entries but num_hidden_layers is {layers}")
    return tuple(int(value) for value in values)


def _rope(section: Section, head_dim: int) -> dict[str, Any]:
    """`rope_theta` and `rotary_dim`, from flat keys or from `rope_parameters`."""
    flat = {key: section.values[key] for key in ("rope_theta", "partial_rotary_factor") if section.has(key)}
    for key in ("rope_parameters", "rope_scaling"):
        if section.has(key):
            nested = section.child(key)
            nested.allow("rope_type", "default", None)
            nested.allow("type", "default", None)
            for name in nested.values.keys() - _ROPE_KEYS:  # "factor", or a section per kind of layer
                nested.allow(name, None)
            for name in ("rope_theta", "partial_rotary_factor"):
                if nested.has(name) and flat.setdefault(name, nested.values[name]) != nested.values[name]:
                    raise nested.error(name, f"= {nested.values[name]!r} contradicts {flat[name]!r} elsewhere")
    rope = Section(flat, section.file, section.path)
    rotary_dim = section.integer("rotary_dim", default=head_dim)
    if "partial_rotary_factor" in flat:
        partial = int(head_dim * rope.number("partial_rotary_factor", default=1.0, least=0, most=1))
        if section.has("rotary_dim") and partial != rotary_dim:
            raise rope.error(
                "partial_rotary_factor",
                f"= {flat['partial_rotary_factor']} makes {partial}, but rotary_dim is {rotary_dim}",
            )
        rotary_dim = partial
    return {"rope_theta": rope.number("rope_theta", default=1e6, least=1, most=1e30), "rotary_dim": rotary_dim}


def read_vision(top: Section, text_hidden_size: int) -> tuple[VisionConfig, Pinpoints]:
    """The tower's shape from `vision_config`, whose activation defaults to CLIP's quick_gelu, and the pinpoints."""
    section = top.child("vision_config")
    section.allow("model_type", "clip_vision_model")
    section.allow("hidden_act", "gelu", "quick_gelu")
    section.allow("num_channels", 3)
    layers = section.integer("num_hidden_layers")
    top.allow("vision_feature_layer", -1, layers, [-1], [layers])
    top.allow("vision_feature_select_strategy", "default")
    top.allow("projector_hidden_act", "gelu")
    top.allow("multimodal_projector_bias", True)
    side, patch = section.integer("image_size"), section.integer("patch_size")
    pixels = read_pixels(top, side, patch)
    try:
        vision = VisionConfig(
            hidden_size=section.integer("hidden_size"),
            intermediate_size=section.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=section.integer("num_attention_heads"),
            image_size=side,
            patch_size=patch,
            layer_norm_eps=section.number("layer_norm_eps", default=1e-5, **EPS),
            hidden_act=section.values.get("hidden_act", "quick_gelu"),
            text_hidden_size=text_hidden_size,
            image_mean=pixels.mean,
            image_std=pixels.std,
        )
    except ValueError as error:
        raise ConfigError(f"{section.file}: vision_config: {error}") from error
    return vision, pixels.pinpoints
