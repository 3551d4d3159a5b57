"""Reading and writing configurations: the released schema, transformers' native one, and what is refused."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, MiniMaxConfig

from preprocessing.grid import PINPOINTS
from text_backbone.config import TextConfig, hybrid_layers
from vision_encoder.config import VisionConfig
from vl.config import VLConfig, config_to_json, read_config, write_config
from vl.errors import ConfigError

RELEASE = Path(__file__).parents[1] / "release"
VL: dict[str, Any] = json.loads((RELEASE / "config.json").read_text())
TEXT: dict[str, Any] = VL["text_config"]
ALPHA = TEXT["layernorm_mlp_alpha"]
SCALES: dict[str, Any] = {f"{kind}_alpha_factor": ALPHA for kind in ("full_attn", "linear_attn", "mlp")}
NATIVE: dict[str, Any] = MiniMaxConfig(
    vocab_size=200064,
    hidden_size=6144,
    intermediate_size=9216,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    num_local_experts=32,
    layer_types=["full_attention" if (i + 1) % 8 == 0 else "linear_attention" for i in range(80)],
    rope_parameters={"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5},
    **SCALES,
).to_dict()


def put(folder: Path, contents: dict[str, Any], name: str = "config.json") -> Path:
    (folder / name).write_text(json.dumps(contents))
    return folder


def changed(contents: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with the dotted key set, or removed when the value is `...`."""
    copy: dict[str, Any] = json.loads(json.dumps(contents))
    *path, last = key.split(".")
    place = copy
    for step in path:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


def test_the_released_model_is_the_default(tmp_path: Path) -> None:
    config = read_config(put(tmp_path, VL))
    assert config == VLConfig(TextConfig(), VisionConfig(), PINPOINTS, 200025)
    assert len(config.pinpoints) == 28


def test_text_01_alone(tmp_path: Path) -> None:
    assert read_config(put(tmp_path, TEXT)) == VLConfig(TextConfig())


@pytest.mark.parametrize("nested", [False, True])
def test_native_schema_means_the_same(tmp_path: Path, nested: bool) -> None:
    contents = changed(VL, "text_config", NATIVE) if nested else NATIVE
    config = read_config(put(tmp_path, contents))
    assert config.text == TextConfig()
    assert (config.vision == VisionConfig()) is nested
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


def test_text_keys_beside_vision_config(tmp_path: Path) -> None:
    contents = {key: value for key, value in VL.items() if key != "text_config"}
    text = {key: value for key, value in TEXT.items() if key not in ("model_type", "architectures")}
    assert read_config(put(tmp_path, contents | text)) == read_config(put(tmp_path, VL))


@pytest.mark.parametrize("layer", [-1, [-1], 24, [24]])
def test_the_last_layer_however_it_is_written(tmp_path: Path, layer: Any) -> None:
    assert read_config(put(tmp_path, changed(VL, "vision_feature_layer", layer))).vision == VisionConfig()


def test_transformers_clip_config_is_understood(tmp_path: Path) -> None:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        layer_norm_eps=1e-3,
    ).to_dict()
    contents = changed(changed(VL, "vision_config", vision), "image_grid_pinpoints", [[28, 56]])
    tower = read_config(put(tmp_path, contents)).vision
    assert tower is not None
    assert (tower.hidden_act, tower.layer_norm_eps, tower.intermediate_size) == ("quick_gelu", 1e-3, 48)


@pytest.mark.parametrize(
    ("rope", "theta", "rotary_dim"),
    [
        ({"rope_theta": 5e5}, 5e5, 128),
        ({"rope_theta": 5e5, "rotary_dim": 32}, 5e5, 32),
        ({"rope_theta": 5e5, "partial_rotary_factor": 0.25}, 5e5, 32),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, 128),
        ({"rope_parameters": {"rope_theta": 5e5}, "rotary_dim": 64}, 5e5, 64),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}}, 2e4, 64),
        ({}, 1e6, 128),
    ],
)
def test_rotary_keys(tmp_path: Path, rope: dict[str, Any], theta: float, rotary_dim: int) -> None:
    contents = {key: value for key, value in NATIVE.items() if key != "rope_parameters"} | rope
    text = read_config(put(tmp_path, contents)).text
    assert (text.rope_theta, text.rotary_dim) == (theta, rotary_dim)


def test_generation_config_wins_for_token_ids(tmp_path: Path) -> None:
    contents = changed(changed(VL, "text_config.eos_token_id", 7), "text_config.bos_token_id", 5)
    config = read_config(put(tmp_path, contents))
    assert (config.bos_token_id, config.eos_token_ids) == (5, (7,))
    put(tmp_path, {"eos_token_id": [200020, 3]}, "generation_config.json")
    config = read_config(tmp_path)
    assert (config.bos_token_id, config.eos_token_ids) == (5, (200020, 3))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config.model_type", "llama"),
        ("text_config.postnorm", False),
        ("text_config.postnorm", ...),
        ("text_config.shared_intermediate_size", 1024),
        ("text_config.shared_intermediate_size", [1024]),
        ("text_config.hidden_act", "gelu"),
        ("text_config.tie_word_embeddings", True),
        ("text_config.attention_bias", True),
        ("text_config.sliding_window", 4096),
        ("text_config.rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("text_config.rope_scaling", {"type": "linear", "factor": 4.0}),
        ("text_config.rope_scaling", {"factor": 4.0}),
        ("text_config.rope_parameters", {"full_attention": {"rope_theta": 1e4}}),
        ("text_config.partial_rotary_factor", 0.25),
        ("text_config.attn_type_list", ...),
        ("text_config.attn_type_list", [0, 1]),
        ("text_config.attn_type_list", [0, 2] * 40),
        ("text_config.layer_types", ["full_attention"] * 80),
        ("text_config.layer_types", ["sliding_attention"] * 80),
        ("text_config.full_attn_alpha_factor", 1.0),
        ("text_config.layernorm_mlp_alpha", "large"),
        ("text_config.rms_norm_eps", float("nan")),
        ("text_config.hidden_size", ...),
        ("text_config.hidden_size", "6144"),
        ("text_config.vocab_size", 0),
        ("text_config.num_experts", 16),
        ("text_config.num_experts_per_tok", 64),
        ("text_config.num_key_value_heads", 7),
        ("text_config.rotary_dim", 63),
        ("text_config.quantization_config", {"quant_method": "fp8"}),
        ("quantization_config", {"quant_method": "gptq"}),
        ("tie_word_embeddings", True),
        ("text_config.eos_token_id", "</s>"),
        ("text_config.rms_norm_eps", -1),
        ("text_config.rms_norm_eps", 0),
        ("text_config.rms_norm_eps", 1e300),
        ("text_config.rope_theta", 0),
        ("text_config.rope_theta", -1e4),
        ("text_config.rope_theta", 1e308),
        ("text_config.layernorm_mlp_alpha", 1e308),
        ("text_config.layernorm_full_attention_beta", float("inf")),
        ("text_config.layernorm_linear_attention_alpha", float("nan")),
        ("text_config.hidden_size", -6144),
        ("text_config.hidden_size", 10**12),
        ("text_config.head_dim", 0),
        ("text_config.rotary_dim", 130),
        ("text_config.rotary_dim", 0),
        ("text_config.num_key_value_heads", 0),
        ("text_config.num_hidden_layers", 10**9),
        ("text_config.num_local_experts", 10**400),
        ("text_config.bos_token_id", 200064),
        ("text_config.eos_token_id", [200020, 10**9]),
        ("vision_config.layer_norm_eps", -1e-5),
        ("vision_config.image_size", 0),
        ("vision_config.patch_size", -14),
        ("vision_config.num_hidden_layers", 10**12),
        ("vision_feature_layer", [-2]),
        ("vision_feature_layer", [-2, -1]),
        ("vision_config.model_type", "siglip_vision_model"),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.num_channels", 1),
        ("vision_config.num_attention_heads", 15),
        ("vision_config.image_size", 335),
        ("vision_config", "clip"),
        ("text_config", []),
        ("vision_feature_layer", -2),
        ("vision_feature_select_strategy", "full"),
        ("projector_hidden_act", "relu"),
        ("multimodal_projector_bias", False),
        ("process_image_mode", "dynamic_res"),
        ("image_token_index", ...),
        ("image_token_index", 200064),
        ("image_grid_pinpoints", [[336, 500]]),
        ("image_grid_pinpoints", [[336]]),
        ("image_grid_pinpoints", []),
        ("image_grid_pinpoints", "__import__('os')"),
    ],
)
def test_unsupported_options_are_named(tmp_path: Path, key: str, value: Any) -> None:
    put(tmp_path, changed(VL, key, value))
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert key.split(".")[-1] in str(caught.value)
    if value is not ... and not isinstance(value, list | dict) and value != 10**400:
        assert repr(value) in str(caught.value) or str(value) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x80", "[" * 100_000])
def test_invalid_json_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        read_config(tmp_path)


def test_parts_must_fit_together() -> None:
    text, vision = TextConfig(hidden_size=256), VisionConfig(text_hidden_size=256)
    with pytest.raises(ConfigError, match="hidden_size"):
        VLConfig(text, VisionConfig(), PINPOINTS, 5)
    with pytest.raises(ConfigError, match="pinpoints"):
        VLConfig(text, vision, (), 5)
    with pytest.raises(ConfigError, match="image_token_index"):
        VLConfig(text, vision, PINPOINTS, None)
    with pytest.raises(ConfigError, match="text-only"):
        VLConfig(text, None, PINPOINTS)


positive = st.integers(1, 10**6)
epsilon, theta, factor, channel = (
    st.floats(1e-30, 1),
    st.floats(1, 1e30),
    st.floats(-65504, 65504),
    st.floats(1e-6, 1e9),
)
token = st.integers(0, 99)


@st.composite
def configs(draw: st.DrawFn) -> VLConfig:
    kv_heads, experts = draw(st.integers(1, 8)), draw(st.integers(1, 64))
    head_dim = 2 * draw(st.integers(1, 128))
    text = TextConfig(
        vocab_size=draw(st.integers(100, 10**6)),
        hidden_size=draw(positive),
        num_attention_heads=kv_heads * draw(st.integers(1, 8)),
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=draw(positive),
        num_local_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        rms_norm_eps=draw(epsilon),
        rope_theta=draw(theta),
        rotary_dim=2 * draw(st.integers(1, head_dim // 2)),
        attn_type_list=tuple(draw(st.lists(st.integers(0, 1), min_size=1, max_size=12))),
        linear_attention_alpha=draw(factor),
        linear_attention_beta=draw(factor),
        full_attention_alpha=draw(factor),
        full_attention_beta=draw(factor),
        mlp_alpha=draw(factor),
        mlp_beta=draw(factor),
    )
    tokens: dict[str, Any] = {
        "bos_token_id": draw(st.none() | token),
        "eos_token_ids": tuple(draw(st.lists(token, max_size=3))),
    }
    if draw(st.booleans()):
        return VLConfig(text, **tokens)
    heads, patch = draw(st.integers(1, 16)), draw(st.integers(1, 32))
    tile = patch * draw(st.integers(1, 32))
    sides = st.integers(1, 6).map(lambda tiles: tiles * tile)
    vision = VisionConfig(
        hidden_size=heads * draw(st.integers(1, 128)),
        intermediate_size=draw(positive),
        num_hidden_layers=draw(st.integers(1, 48)),
        num_attention_heads=heads,
        image_size=tile,
        patch_size=patch,
        layer_norm_eps=draw(epsilon),
        hidden_act=draw(st.sampled_from(["gelu", "quick_gelu"])),
        text_hidden_size=text.hidden_size,
        image_mean=draw(st.tuples(channel, channel, channel)),
        image_std=draw(st.tuples(channel, channel, channel)),
    )
    pinpoints = tuple(draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=5)))
    return VLConfig(text, vision, pinpoints, draw(token), **tokens)


@settings(deadline=None)
@given(configs())
def test_what_is_written_is_read_back(config: VLConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_config(config, folder)
        assert read_config(folder) == config


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "rope_theta"]), inner),
    max_leaves=4,
)
keys = [*VL, "rope_scaling", "quantization_config", "image_token_id"]
keys += [f"text_config.{key}" for key in [*TEXT, "layer_types", "rope_parameters", "partial_rotary_factor"]]
keys += [f"vision_config.{key}" for key in VL["vision_config"]]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(keys), json_values)
def test_any_value_is_read_or_refused(key: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ConfigError):
        assert isinstance(read_config(put(Path(folder), changed(VL, key, value))), VLConfig)


def test_written_keys_are_the_released_ones() -> None:
    config = VLConfig(TextConfig(), VisionConfig(), PINPOINTS, 200025)
    written = config_to_json(config)
    for key in written.keys() & VL.keys() - {"text_config", "vision_config"}:
        assert written[key] == VL[key], key
    for section in ("text_config", "vision_config"):
        for key in written[section].keys() & VL[section].keys():
            assert written[section][key] == VL[section][key], key
        assert written[section].keys() - VL[section].keys() <= {"layer_norm_eps", "tie_word_embeddings"}
    assert written["image_seq_length"] == 576
    assert VLConfig(TextConfig(attn_type_list=hybrid_layers(80))).text == config.text
