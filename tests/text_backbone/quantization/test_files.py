"""Quantised matrices in files: bitsandbytes' own reader takes NF4's, and what is read back is what was written."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from text_backbone import MiniMaxText, released_tensors, stored_tensors
from text_backbone.quantization import FORMATS, Quantized, quantize_backbone, quantized_backbone
from text_backbone.quantization.files import STATE, is_quantised, packed, stored_parts, stored_slots

FORMAT = pytest.mark.parametrize("form", FORMATS)
NAMES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
}


@FORMAT
@pytest.mark.parametrize("shape", [(6, 64), (130, 192), (5, 6)])
def test_parts_are_as_announced(form: str, shape: tuple[int, int]) -> None:
    parts = packed(torch.randn(shape), form)
    told = stored_parts(form, *shape)
    assert parts.keys() == told.keys()
    for suffix, (dtypes, size) in told.items():
        assert NAMES[parts[suffix].dtype] in dtypes
        assert size is None or tuple(parts[suffix].shape) == size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(6, 64), (130, 192), (5, 6)])
def test_nf4_is_what_bitsandbytes_writes_and_reads(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    bnb = pytest.importorskip("bitsandbytes.functional")
    matrix = torch.randn(shape).to(dtype)
    parts = packed(matrix, "nf4")
    codes, state = bnb.quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4")
    theirs = {"": codes} | {f".{key}": value for key, value in state.as_dict(packed=True).items()}
    assert parts.keys() == theirs.keys()
    for suffix, tensor in parts.items():
        assert tensor.dtype == theirs[suffix].dtype
        assert torch.equal(tensor, theirs[suffix]), suffix
    read = {suffix.removeprefix("."): tensor for suffix, tensor in parts.items() if suffix}
    again = bnb.QuantState.from_dict(read, device=torch.device("cpu"))
    values = bnb.dequantize_4bit(parts[""], again)
    assert values.dtype == dtype
    torch.testing.assert_close(values, Quantized.of(matrix, "nf4").read(), rtol=8e-3, atol=1e-6)


@FORMAT
def test_a_model_comes_back_bit_for_bit(form: str, model: MiniMaxText) -> None:
    made = copy.deepcopy(model)
    quantize_backbone(made, form)
    again = quantized_backbone(model.config, form, device="cpu", dtype=torch.float32)
    source, target = stored_tensors(made), stored_tensors(again)
    assert source.keys() == target.keys()
    for name, slot in source.items():
        target[name].load(slot.read())
    for (name, a), b in zip(made.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8)), name
    released = released_tensors(made)
    assert {name for name in released if is_quantised(name)} == {
        n for n in released if not source[n].read().is_floating_point() or source[n].exact
    }


def test_what_is_quantised_by_its_released_name() -> None:
    assert is_quantised("language_model.model.layers.7.self_attn.q_proj.weight")
    assert is_quantised("model.layers.0.self_attn.output_gate.weight")
    assert is_quantised("model.layers.79.block_sparse_moe.experts.31.w3.weight")
    for name in (
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.self_attn.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ):
        assert not is_quantised(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quant_type": "fp4"}, "quant_type = nf4"),
        ({"blocksize": 128}, "blocksize = 64"),
        ({"nested_blocksize": 64}, "nested_blocksize = 256"),
        ({"shape": [64, 4]}, "shape"),
        ({"nested_offset": "1"}, "nested_offset"),
        ({"nested_offset": math.nan}, "NaN or infinite"),
        ({"nested_offset": 10**400}, "NaN or infinite"),
    ],
)
def test_a_state_of_another_kind_is_refused(change: dict[str, object], words: str) -> None:
    weight = Quantized.of(torch.randn(4, 64), "nf4")
    slot = stored_slots(weight, ())[STATE]
    state = json.loads(bytes(slot.read().tolist())) | change
    with pytest.raises(ValueError, match=words):
        slot.load(torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8))


@pytest.mark.parametrize("contents", [b"", b"{", b"[]", b"\xff"])
def test_a_state_that_is_none(contents: bytes) -> None:
    slot = stored_slots(Quantized.of(torch.randn(4, 64), "nf4"), ())[STATE]
    with pytest.raises(ValueError, match="quantization state"):
        slot.load(torch.tensor(list(contents), dtype=torch.uint8))


def test_a_state_in_a_column_is_read() -> None:
    slot = stored_slots(Quantized.of(torch.randn(4, 64), "nf4"), ())[STATE]
    slot.load(slot.read()[:, None])


def test_another_map_and_scales_that_are_not_finite_are_refused() -> None:
    slots = stored_slots(Quantized.of(torch.randn(4, 64), "nf4"), ())
    with pytest.raises(ValueError, match="not NF4's"):
        slots[".quant_map"].load(torch.linspace(-1, 1, 16))
    with pytest.raises(ValueError, match="NaN or infinite"):
        slots[".nested_absmax"].load(torch.tensor([math.inf]))
    for form in ("int8", "fp8"):
        with pytest.raises(ValueError, match="NaN or infinite"):
            stored_slots(Quantized.of(torch.randn(4, 64), form), ())["_scale"].load(torch.full((4, 1), math.nan))
    codes = torch.full((4, 64), math.nan).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="NaN or infinite"):
        stored_slots(Quantized.of(torch.randn(4, 64), "fp8"), ())[""].load(codes)
