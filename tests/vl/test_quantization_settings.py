"""What users and files say of how a model is quantised, and what is refused by its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vl
from vl.quantization import FORMATS, read_quantization, read_stored, stored_to_json
from vl.section import Section

BNB = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
F32 = torch.float32


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, None),
        ("nf4", "nf4"),
        (BNB, "nf4"),
        (BNB | {"llm_int8_threshold": 6, "bnb_4bit_quant_storage": torch.uint8}, "nf4"),
        (BNB | {"bnb_4bit_compute_dtype": "float32", "quant_method": "bitsandbytes"}, "nf4"),
        (BNB | {"bnb_4bit_compute_dtype": F32, "llm_int8_skip_modules": ["lm_head", "vision_tower"]}, "nf4"),
        ({"load_in_8bit": True}, "int8"),
        ({"load_in_8bit": True, "llm_int8_threshold": 6.0, "load_in_4bit": False}, "int8"),
    ],
)
def test_what_is_understood(value: Any, form: str | None) -> None:
    assert read_quantization(value, F32) == form


def test_transformers_own_object_is_understood() -> None:
    config = pytest.importorskip("transformers").BitsAndBytesConfig
    four = config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=F32
    )
    assert read_quantization(four, F32) == "nf4"
    assert read_quantization(config(load_in_8bit=True), F32) == "int8"
    with pytest.raises(vl.ConfigError, match=r"bnb_4bit_quant_type.*fp4"):
        read_quantization(config(load_in_4bit=True), F32)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("int4", "'int8', 'fp8', 'nf4'"),
        (4, "quantization=4"),
        ([], "quantization="),
        ({}, "load_in_4bit"),
        (BNB | {"load_in_8bit": True}, "load_in_4bit"),
        ({"load_in_4bit": True}, "bnb_4bit_quant_type = 'fp4'"),
        (
            BNB | {"_load_in_4bit": False},
            "load_in_4bit = True and False must be true or false, and _load_in_4bit the same",
        ),
        (BNB | {"load_in_4bit": 1}, "load_in_4bit = 1 must be true or false"),
        ({"load_in_8bit": "true"}, "load_in_8bit = 'true' must be true or false"),
        (BNB | {"bnb_4bit_compute_dtype": 5}, "bnb_4bit_compute_dtype = 5 is not one of bfloat16"),
        (BNB | {"bnb_4bit_use_double_quant": "True"}, "bnb_4bit_use_double_quant = 'True'"),
        (BNB | {"bnb_4bit_use_double_quant": np.ones(2)}, "bnb_4bit_use_double_quant"),
        (BNB | {"llm_int8_threshold": True}, "llm_int8_threshold = True"),
        (BNB | {"bnb_4bit_use_double_quant": False}, "bnb_4bit_use_double_quant = False"),
        (BNB | {"bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage"),
        (BNB | {"bnb_4bit_compute_dtype": "bfloat16"}, "bnb_4bit_compute_dtype = bfloat16.*dtype='bfloat16'"),
        (BNB | {"llm_int8_skip_modules": ["self_attn"]}, "llm_int8_skip_modules.*self_attn"),
        (BNB | {"llm_int8_skip_modules": 5}, "llm_int8_skip_modules"),
        (BNB | {"quant_method": "gptq"}, "quant_method = 'gptq'"),
        (BNB | {"group_size": 128}, "group_size = 128"),
        ({"load_in_8bit": True, "llm_int8_threshold": 0.0}, "llm_int8_threshold"),
        ({"load_in_8bit": True, "llm_int8_enable_fp32_cpu_offload": True}, "llm_int8_enable_fp32_cpu_offload"),
    ],
)
def test_what_is_refused_by_its_key(value: Any, words: str) -> None:
    with pytest.raises(vl.ConfigError, match=words):
        read_quantization(value, F32)


def config_json(quantization: Any) -> Section:
    return Section({"quantization_config": quantization}, Path("config.json"))


@pytest.mark.parametrize("form", FORMATS)
def test_what_we_write_is_what_we_read(form: str) -> None:
    assert read_stored(config_json(json.loads(json.dumps(stored_to_json(form))))) == form
    assert read_stored(config_json(None)) is None


def test_what_transformers_writes_of_nf4() -> None:
    config = pytest.importorskip("transformers").BitsAndBytesConfig
    theirs = config(**BNB, bnb_4bit_compute_dtype=torch.bfloat16).to_dict()
    assert read_stored(config_json(theirs)) == "nf4"
    ours = stored_to_json("nf4")
    assert ours.keys() == theirs.keys()
    assert {k: v for k, v in ours.items() if k != "llm_int8_skip_modules"} == {
        k: v for k, v in theirs.items() if k != "llm_int8_skip_modules"
    }


FP8 = stored_to_json("fp8")
GROUP = FP8["config_groups"]["group_0"]


def fp8(**changes: Any) -> dict[str, Any]:
    return FP8 | {"config_groups": {"group_0": GROUP | changes}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nf4", "quantization_config"),
        ({}, "quant_method is missing"),
        *(({"quant_method": name}, name) for name in ("gptq", "awq", "fp8", "quanto", "compressed-tensors", "hqq")),
        ({"quant_method": 5}, "quant_method"),
        (BNB | {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type = 'fp4'"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "load_in_8bit"),
        (FP8 | {"format": "pack-quantized"}, "pack-quantized"),
        (FP8 | {"format": ["x"]}, "format"),
        (FP8 | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        (FP8 | {"config_groups": {}}, "config_groups"),
        (fp8(weights=GROUP["weights"] | {"strategy": "block"}), "strategy = 'block'"),
        (fp8(weights=GROUP["weights"] | {"block_structure": [128, 128]}), "block_structure"),
        (fp8(input_activations=None), "input_activations"),
        (fp8(input_activations=GROUP["input_activations"] | {"dynamic": False}), "dynamic = False"),
        (fp8(output_activations={"num_bits": 8}), "output_activations"),
    ],
)
def test_files_of_a_scheme_that_we_do_not_have_are_refused_by_its_name(value: Any, words: str) -> None:
    with pytest.raises(vl.ConfigError, match=words):
        read_stored(config_json(value))
