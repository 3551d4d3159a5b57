"""Parsing of the sections of a `config.json`: the released legacy schema and transformers' native one.

Both describe the same decoder with different key names, so each field is looked up under all of its names; two names
that disagree are an error. An option that this family of models does not use is refused by name rather than ignored.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from text_backbone.config import LIGHTNING, SOFTMAX, TextConfig
from vision_encoder.config import VisionConfig
from vl.errors import ConfigError

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
NATIVE_KEYS = {"layer_types", *(native for _, native in SCALES.values())}


class Section:
    """A JSON object that knows where it stands, for messages: the file and the key path."""

    def __init__(self, values: Mapping[str, Any], file: Path, path: str = "") -> None:
        self.values, self.file, self.path = values, file, path

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.path}{key} {problem}")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def child(self, key: str) -> Section:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, got {value!r}")
        return Section(value, self.file, f"{self.path}{key}.")

    def allow(self, key: str, *supported: Any) -> None:
        """Refuse the key unless it is absent or has one of the supported values."""
        if key in self.values and self.values[key] not in supported:
            wanted = " or ".join(repr(value) for value in supported)
            raise self.error(key, f"= {self.values[key]!r} is not supported: this implementation has {wanted} only")

    def find(self, *keys: str) -> tuple[str, Any]:
        """The one of `keys` that is present and its value, or the first key and None; null counts as absent."""
        found = [(key, self.values[key]) for key in keys if self.has(key)]
        for key, value in found[1:]:
            if value != found[0][1]:
                raise self.error(key, f"= {value!r} contradicts {found[0][0]} = {found[0][1]!r}: keep one of them")
        return found[0] if found else (keys[0], None)

    def integer(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        key, value = self.find(*keys)
        value = default if value is None else value
        if value is None:
            raise self.error(key, "is missing: it is needed to build the model")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(key, f"must be an integer of at least {least}, got {value!r}")
        return value

    def number(self, *keys: str, default: float) -> float:
        key, value = self.find(*keys)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < math.inf:
            raise self.error(key, f"must be a finite number, got {value!r}")
        try:
            return float(value)
        except OverflowError as error:
            raise self.error(key, "is too large") from error

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id, a list of them, or null."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self.error(key, f"must be a token id or a list of them, got {value!r}")
        return tuple(ids)


def read_text(section: Section) -> TextConfig:
    """The decoder's shape from a `text_config` section, or from the top level of a text-only `config.json`.

    Keys that both configuration classes default alike (key/value heads 8, top-2, eps 1e-5, rope_theta 1e6, residual
    scales 1) may be absent; `rotary_dim` defaults to the whole head.
    """
    _refuse_foreign_text(section)
    hidden, heads = section.integer("hidden_size"), section.integer("num_attention_heads")
    head_dim = section.integer("head_dim", default=hidden // heads)
    scales: dict[str, Any] = {field: section.number(*keys, default=1.0) for field, keys in SCALES.items()}
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
            rms_norm_eps=section.number("rms_norm_eps", default=1e-5),
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
            for name in ("rope_theta", "partial_rotary_factor"):
                if nested.has(name) and flat.setdefault(name, nested.values[name]) != nested.values[name]:
                    raise nested.error(name, f"= {nested.values[name]!r} contradicts {flat[name]!r} elsewhere")
    rope = Section(flat, section.file, section.path)
    rotary_dim = section.integer("rotary_dim", default=head_dim)
    if "partial_rotary_factor" in flat:
        partial = int(head_dim * rope.number("partial_rotary_factor", default=1.0))
        if section.has("rotary_dim") and partial != rotary_dim:
            raise rope.error(
                "partial_rotary_factor",
                f"= {flat['partial_rotary_factor']} makes {partial}, but rotary_dim is {rotary_dim}",
            )
        rotary_dim = partial
    return {"rope_theta": rope.number("rope_theta", default=1e6), "rotary_dim": rotary_dim}


def read_vision(top: Section, preprocessor: Section, text_hidden_size: int) -> VisionConfig:
    """The tower's shape from `vision_config`, whose activation defaults, as CLIP's does, to quick_gelu."""
    section = top.child("vision_config")
    section.allow("model_type", "clip_vision_model")
    section.allow("hidden_act", "gelu", "quick_gelu")
    section.allow("num_channels", 3)
    layers = section.integer("num_hidden_layers")
    top.allow("vision_feature_layer", -1, layers)
    top.allow("vision_feature_select_strategy", "default")
    top.allow("projector_hidden_act", "gelu")
    top.allow("multimodal_projector_bias", True)
    side, patch = section.integer("image_size"), section.integer("patch_size")
    preprocessor.allow("size", side, {"height": side, "width": side}, {"shortest_edge": side}, None)
    preprocessor.allow("patch_size", patch, None)
    preprocessor.allow("do_normalize", True, None)
    for place in (top, preprocessor):
        place.allow("process_image_mode", "anyres", None)
    try:
        return VisionConfig(
            hidden_size=section.integer("hidden_size"),
            intermediate_size=section.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=section.integer("num_attention_heads"),
            image_size=side,
            patch_size=patch,
            layer_norm_eps=section.number("layer_norm_eps", default=1e-5),
            hidden_act=section.values.get("hidden_act", "quick_gelu"),
            text_hidden_size=text_hidden_size,
            image_mean=_channels(preprocessor, "image_mean", VisionConfig.image_mean),
            image_std=_channels(preprocessor, "image_std", VisionConfig.image_std),
        )
    except ValueError as error:
        raise ConfigError(f"{section.file}: vision_config: {error}") from error


def _channels(section: Section, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    values = section.values.get(key, list(default))
    if not isinstance(values, list) or len(values) != 3:
        raise section.error(key, f"must list three numbers, got {values!r}")
    channels = Section(dict(zip("rgb", values, strict=True)), section.file, f"{section.path}{key}.")
    red, green, blue = (channels.number(name, default=math.nan) for name in "rgb")
    if key == "image_std" and min(red, green, blue) <= 0:
        raise section.error(key, f"must be positive, got {values!r}")
    return red, green, blue


def read_pinpoints(section: Section, tile: int) -> tuple[tuple[int, int], ...]:
    """`image_grid_pinpoints`, pairs of sides in pixels; some files store the list as the text of a Python literal."""
    key = "image_grid_pinpoints"
    values = section.values[key]
    if isinstance(values, str):
        try:
            values = ast.literal_eval(values)
        except (ValueError, SyntaxError, TypeError, RecursionError) as error:
            raise section.error(key, f"= {values!r} is not a list of pairs") from error
    if not isinstance(values, list | tuple) or not values:
        raise section.error(key, f"must be a list of (width, height) pairs, got {values!r}")
    for pair in values:
        sides = pair if isinstance(pair, list | tuple) else ()
        if len(sides) != 2 or any(type(side) is not int or side < tile or side % tile for side in sides):
            raise section.error(key, f"has {pair!r}: sides must be multiples of image_size {tile}")
    return tuple((width, height) for width, height in values)
