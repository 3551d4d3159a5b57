"""In how many bits a model's weights are: what a user asks for, and what a checkpoint's `config.json` says.

Files are described in the words of others, so that their readers find their way: NF4 as bitsandbytes and transformers
do it, int8 and FP8 as compressed-tensors does it. What would change the result and is not had here is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vl.errors import ConfigError
from vl.section import Section

if TYPE_CHECKING:
    import torch

FORMATS = ("int8", "fp8", "nf4")
# What is never quantised; transformers' users may name any of these to be skipped.
KEPT = ("lm_head", "embed_tokens", "gate", "vision_tower", "multi_modal_projector", "image_newline")
# bitsandbytes' keys that have one value here: the first is what is written, and absent is the second.
_NF4: dict[str, tuple[Any, Any]] = {
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_use_double_quant": (True, False),
    "bnb_4bit_quant_storage": ("uint8", "uint8"),
}
_INT8: dict[str, tuple[Any, Any]] = {
    "llm_int8_threshold": (6.0, 6.0),
    "llm_int8_has_fp16_weight": (False, False),
    "llm_int8_enable_fp32_cpu_offload": (False, False),
}
_COMPUTE = ("bfloat16", "float16", "float32")
_KINDS = ("quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")
_WEIGHTS = {"num_bits": 8, "strategy": "channel", "symmetric": True, "dynamic": False}
_ACTIVATIONS = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
_COMPRESSED: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "int8": ("int-quantized", _WEIGHTS | {"type": "int"}, None),
    "fp8": ("float-quantized", _WEIGHTS | {"type": "float"}, _ACTIVATIONS),
}


class HasKeys(Protocol):
    """transformers' `BitsAndBytesConfig`."""

    def to_dict(self) -> dict[str, Any]: ...


Quantization = str | Mapping[str, Any] | HasKeys | None  # what `vl.load` takes


def read_quantization(value: Any, dtype: torch.dtype) -> str | None:
    """The format that the argument `quantization` of `vl.load` asks for.

    Args:
        value: None, "int8", "fp8", "nf4", or transformers' `BitsAndBytesConfig` or its dictionary.
        dtype: in which the model computes.

    Raises:
        ConfigError: if it is something else, or asks for what is not had; names the key.
    """
    if value is None or (isinstance(value, str) and value in FORMATS):
        return value
    made = not isinstance(value, type) and callable(getattr(value, "to_dict", None))  # and not the class itself
    keys = value.to_dict() if made else value
    if not isinstance(keys, Mapping):
        choices = ", ".join(map(repr, FORMATS))
        raise ConfigError(f"quantization={value!r:.200} is not known: use {choices} or None")
    where = Section(keys, Path("quantization"))
    found = _bitsandbytes(where)
    compute = keys.get("bnb_4bit_compute_dtype")
    if found == "nf4" and compute is not None and _name(compute) != _name(dtype):
        if _name(compute) not in _COMPUTE:
            raise where.error("bnb_4bit_compute_dtype", f"= {compute!r:.80} is not one of {', '.join(_COMPUTE)}")
        raise where.error(
            "bnb_4bit_compute_dtype",
            f"= {_name(compute)} is not what the model computes in: load it with dtype='{_name(compute)}'",
        )
    return found


def read_stored(top: Section) -> str | None:
    """The format of a checkpoint's files, by `quantization_config` of its `config.json`; None if it has none.

    Raises:
        ConfigError: if they are quantised in a way that is not had; names it.
    """
    if not top.has("quantization_config"):
        return None
    section = top.child("quantization_config")
    if not section.has("quant_method") and (section.has("load_in_4bit") or section.has("load_in_8bit")):
        section = Section({"quant_method": "bitsandbytes", **section.values}, section.file, section.path)
    section.allow("quant_method", "bitsandbytes", "compressed-tensors")
    if not section.has("quant_method"):
        raise section.error("quant_method", "is missing: it says how the files are to be read")
    if section.values["quant_method"] == "compressed-tensors":
        return _compressed(section)
    found = _bitsandbytes(section)
    if found != "nf4":
        raise section.error("load_in_8bit", "= True is not supported in files: of bitsandbytes' only NF4 is read")
    return found


def stored_to_json(format: str) -> dict[str, Any]:
    """`quantization_config` of files in a format."""
    if format == "nf4":
        return {
            "quant_method": "bitsandbytes",
            "_load_in_4bit": True,
            "_load_in_8bit": False,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            **{key: written for key, (written, _) in (_NF4 | _INT8).items()},
            "llm_int8_skip_modules": list(KEPT),
        }
    stored, weights, activations = _COMPRESSED[format]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*block_sparse_moe.gate$", "re:vision_tower.*", "re:multi_modal_projector.*"],
        "kv_cache_scheme": None,
    }


def _bitsandbytes(section: Section) -> str:
    """The format that bitsandbytes' keys mean here: NF4 with double quantization, or int8."""
    section.allow("quant_method", "bitsandbytes")
    four, eight = (_flag(section, key) for key in ("load_in_4bit", "load_in_8bit"))
    if four == eight:
        raise section.error("load_in_4bit", "or load_in_8bit must be true, and one of them only")
    for key, (only, absent) in ((_NF4 | _INT8) if four else _INT8).items():
        value = section.values.get(key, absent)
        value = value.value if hasattr(value, "value") else value  # some versions keep an enumeration
        if not _same(value, only):
            raise section.error(key, f"= {value!r} is not supported: this implementation has {only!r} only")
    skipped = section.values.get("llm_int8_skip_modules") or []
    skipped = skipped if isinstance(skipped, list | tuple | set) else [skipped]
    if foreign := [name for name in skipped if name not in KEPT]:
        raise section.error(
            "llm_int8_skip_modules", f"= {foreign!r} is not supported: {', '.join(KEPT)} are skipped, and no others"
        )
    known = {*_KINDS, *_NF4, *_INT8, "bnb_4bit_compute_dtype", "llm_int8_skip_modules"}
    for key, value in section.values.items():
        if key not in known and value not in (None, False):
            raise section.error(key, f"= {value!r:.200} is not supported: leave it out")
    return "nf4" if four else "int8"


def _flag(section: Section, key: str) -> bool:
    """A key that transformers writes twice, once behind a `_`. ConfigError if the two contradict each other."""
    given = [section.values[name] for name in (key, f"_{key}") if section.values.get(name) is not None]
    if any(not isinstance(value, bool) or value is not given[0] for value in given):
        raise section.error(key, f"= {' and '.join(map(repr, given)):.80} must be true or false, and _{key} the same")
    return bool(given and given[0])


def _same(value: Any, only: Any) -> bool:
    """Whether a value is the one that there is: a name, also as a dtype of torch; true or false; or a number."""
    if isinstance(only, str):
        return _name(value) == only
    return isinstance(value, bool | int | float) and isinstance(value, bool) == isinstance(only, bool) and value == only


def _compressed(section: Section) -> str:
    """int8 or FP8 with a scale for every channel; of activations, none or one for every token as they come."""
    formats = {stored: name for name, (stored, _, _) in _COMPRESSED.items()}
    if section.values.get("format") not in tuple(formats):
        raise section.error(
            "format",
            f"= {section.values.get('format')!r:.200} of compressed-tensors is not supported: "
            f"this implementation has {' or '.join(map(repr, formats))} only",
        )
    name = formats[section.values["format"]]
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        section.allow(key, None, {})
    groups = section.child("config_groups")
    if len(groups.values) != 1:
        raise section.error("config_groups", "must hold one group: all matrices are stored alike")
    group = groups.child(next(iter(groups.values)))
    group.allow("output_activations", None)
    for key, wanted in (("weights", _COMPRESSED[name][1]), ("input_activations", _COMPRESSED[name][2])):
        if wanted is None:
            group.allow(key, None)
            continue
        part = group.child(key)
        for what, value in wanted.items():
            if part.values.get(what) != value:
                raise part.error(what, f"= {part.values.get(what)!r:.200} is not supported: {name} has {value!r}")
        for what in ("actorder", "block_structure", "group_size"):
            part.allow(what, None)
    return name


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
