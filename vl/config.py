"""The model's configuration: read from and written to a checkpoint folder in the released schema."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text_backbone.config import TextConfig
from vision_encoder.config import VisionConfig
from vl.errors import ConfigError
from vl.files import write_file
from vl.preprocessor import PREPROCESSOR, preprocessor_to_json
from vl.quantization import FORMATS, read_stored, stored_to_json
from vl.saving import CONFIG, unfinished
from vl.schema import SCALES, read_text, read_vision
from vl.section import Section

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class VLConfig:
    """What a checkpoint folder says about its model.

    `vision` is None for a text-only model (MiniMax-Text-01), which has no pinpoints and no image token either.
    `pinpoints` are the (width, height) in pixels that an image may be resized to. `eos_token_ids` stop generation;
    empty when no file names them, as in the release, where the tokenizer's `<end_of_sentence>` does. `quantization` is
    the format of the matrices of the text model's layers ("int8", "fp8", "nf4"), None as in the release.

    Raises:
        ConfigError: if the parts do not fit together.
    """

    text: TextConfig
    vision: VisionConfig | None = None
    pinpoints: tuple[tuple[int, int], ...] = ()
    image_token_index: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    quantization: str | None = None

    def __post_init__(self) -> None:
        if self.quantization not in (None, *FORMATS):
            raise ConfigError(f"quantization {self.quantization!r} is not known: use {', '.join(FORMATS)} or None")
        for key, ids in (("bos_token_id", (self.bos_token_id,)), ("eos_token_id", self.eos_token_ids)):
            beyond = [i for i in ids if i is not None and i >= self.text.vocab_size]
            if beyond:
                raise ConfigError(f"{key} {beyond[0]} is not in the vocabulary of {self.text.vocab_size}")
        if self.vision is None:
            if self.pinpoints or self.image_token_index is not None:
                raise ConfigError("a text-only model has no pinpoints and no image_token_index: drop them")
            return
        if self.vision.text_hidden_size != self.text.hidden_size:
            raise ConfigError(
                f"the projector makes {self.vision.text_hidden_size} features, the text model takes "
                f"{self.text.hidden_size}: make text_hidden_size equal to hidden_size"
            )
        if not self.pinpoints:
            raise ConfigError("a vision model needs at least one (width, height) in pinpoints")
        if self.image_token_index is None or not 0 <= self.image_token_index < self.text.vocab_size:
            raise ConfigError(
                f"image_token_index {self.image_token_index} is not in the vocabulary of {self.text.vocab_size}"
            )


def read_config(folder: str | Path) -> VLConfig:
    """Read `config.json` of a checkpoint folder, and beside it what exists of the preprocessor's and generation's.

    Understands the released MiniMax-VL-01 and MiniMax-Text-01 files and transformers' native `minimax` schema, the
    text model's keys nested in `text_config` or at the top level. The preprocessor's files give mean, standard
    deviation and pinpoints (see `vl.preprocessor`); the generation file's token ids win over `config.json`'s. Keys
    that do not change the computation are ignored.

    Raises:
        ConfigError: if a file is missing or malformed, or an option is not supported; names the file and the key.
    """
    folder = Path(folder)
    if earlier := unfinished(folder):
        raise ConfigError(
            f"{folder} holds no model: a save into it was cut short. Save again, or move the earlier model's files "
            f"back from {earlier}"
        )
    top = Section.read(folder / CONFIG)
    top.allow("tie_word_embeddings", False, None)
    quantization = read_stored(top)
    text = top.child("text_config") if top.has("text_config") else _flat_text(top)
    tokens = (Section.read(folder / GENERATION, optional=True), top, text)
    bos = next((place.integer("bos_token_id", least=0) for place in tokens if place.has("bos_token_id")), None)
    eos = next((place.token_ids("eos_token_id") for place in tokens if place.has("eos_token_id")), ())
    text_config = read_text(text)
    if not top.has("vision_config"):
        return VLConfig(text_config, bos_token_id=bos, eos_token_ids=eos, quantization=quantization)
    vision, pinpoints = read_vision(top, text_config.hidden_size)
    return VLConfig(
        text=text_config,
        vision=vision,
        pinpoints=pinpoints,
        image_token_index=top.integer("image_token_index", "image_token_id", least=0),
        bos_token_id=bos,
        eos_token_ids=eos,
        quantization=quantization,
    )


def config_to_json(config: VLConfig) -> dict[str, Any]:
    """The contents of `config.json` in the released schema: nested for a vision model, flat for a text-only one."""
    text = _text_to_json(config.text)
    tokens = _tokens(config)
    stored = {} if config.quantization is None else {"quantization_config": stored_to_json(config.quantization)}
    if config.vision is None:
        return text | tokens | stored
    vision = config.vision
    return {
        "architectures": ["MiniMaxVL01ForConditionalGeneration"],
        "model_type": "minimax_vl_01",
        **tokens,
        "image_grid_pinpoints": [list(pinpoint) for pinpoint in config.pinpoints],
        "image_seq_length": vision.patches**2,
        "image_token_index": config.image_token_index,
        "multimodal_projector_bias": True,
        "process_image_mode": "anyres",
        "projector_hidden_act": "gelu",
        **stored,
        "text_config": text,
        "tie_word_embeddings": False,
        "vision_config": {
            "hidden_act": vision.hidden_act,
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "model_type": "clip_vision_model",
            "num_attention_heads": vision.num_attention_heads,
            "num_hidden_layers": vision.num_hidden_layers,
            "patch_size": vision.patch_size,
            "projection_dim": vision.text_hidden_size,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def write_config(config: VLConfig, folder: str | Path) -> None:
    """Write `config.json`, `generation_config.json` and, for a vision model, `preprocessor_config.json`."""
    files = {CONFIG: config_to_json(config), GENERATION: _tokens(config)}
    if config.vision is not None:
        files[PREPROCESSOR] = preprocessor_to_json(config.vision, config.pinpoints)
    for name, contents in files.items():
        write_file(Path(folder, name), json.dumps(contents, indent=2) + "\n")


def _text_to_json(text: TextConfig) -> dict[str, Any]:
    shared = (
        "vocab_size hidden_size num_attention_heads num_key_value_heads head_dim intermediate_size num_hidden_layers "
        "num_local_experts num_experts_per_tok rms_norm_eps rope_theta rotary_dim"
    )
    return {
        "architectures": ["MiniMaxText01ForCausalLM"],
        "model_type": "minimax_text_01",
        "attn_type_list": list(text.attn_type_list),
        "hidden_act": "silu",
        **{key: getattr(text, key) for key in shared.split()},
        **{legacy: getattr(text, field) for field, (legacy, _) in SCALES.items()},
        "postnorm": True,
        "shared_intermediate_size": [0],
        "sliding_window": None,
        "tie_word_embeddings": False,
    }


def _tokens(config: VLConfig) -> dict[str, Any]:
    eos = config.eos_token_ids
    return {"bos_token_id": config.bos_token_id, "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None}


def _flat_text(top: Section) -> Section:
    """The text model's keys at the top level, but those that are the whole model's.

    Those are how its files are quantised, and, with a vision tower, the model type.
    """
    whole = {"quantization_config", *(("model_type",) if top.has("vision_config") else ())}
    return Section({key: value for key, value in top.values.items() if key not in whole}, top.file)
