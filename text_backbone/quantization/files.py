"""How quantised matrices lie in a checkpoint's files: in place of `NAME.weight`, a few tensors of other dtypes.

NF4 is stored as bitsandbytes does it, so that its own reader takes the files: the codes as a column of bytes, beside
them scales, both maps, and a JSON object in bytes. int8 and FP8 are stored as compressed-tensors does it (its formats
`int-quantized` and `float-quantized` with a scale for every channel): `weight` and `weight_scale` [rows, 1].
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from text_backbone.kernels.nf4.reference import LEVELS, scale_map
from text_backbone.quantization import nf4
from text_backbone.quantization.finite import check, checked
from text_backbone.quantization.stored import Quantized
from text_backbone.slot import Slot, keep, room_of

QUANTISED = re.compile(
    r"(language_model\.)?model\.layers\.\d+\."
    r"(self_attn\.([qkvo]|qkv|out)_proj|self_attn\.output_gate|block_sparse_moe\.experts\.\d+\.w[123])\.weight"
)
STATE = ".quant_state.bitsandbytes__nf4"
_DTYPES = {"int8": "I8", "fp8": "F8_E4M3"}
_SCALES = ("F32", "BF16", "F16")  # of other writers; kept in float32

# suffix to the name of the weight -> the dtypes and the shape of a tensor; a shape of None is of any length
Parts = dict[str, tuple[tuple[str, ...], tuple[int, ...] | None]]


def is_quantised(name: str) -> bool:
    """Whether the tensor of a released name is one that `quantize_backbone` quantises."""
    return QUANTISED.fullmatch(name) is not None


def stored_parts(format: str, rows: int, columns: int) -> Parts:
    """What files hold of one matrix. Raises ValueError if the format cannot hold one of this size."""
    if format != "nf4":
        return {"": ((_DTYPES[format],), (rows, columns)), "_scale": (_SCALES, (rows, 1))}
    codes, scales, nested = nf4.sizes(rows, columns)
    return {
        "": (("U8",), (codes, 1)),
        ".absmax": (("U8",), (scales,)),
        ".nested_absmax": (("F32",), (nested,)),
        ".nested_quant_map": (("F32",), (256,)),
        ".quant_map": (("F32",), (16,)),
        STATE: (("U8",), None),
    }


def stored_slots(weight: Quantized, index: tuple[int, ...]) -> dict[str, Slot]:
    """Suffix to the place of a tensor of `stored_parts`; what is there is copied, not quantised again."""
    told = stored_parts(weight.format, *weight.part.whole)

    def field(suffix: str, name: str) -> Slot:
        return _field(weight, index, name, told[suffix][1] or ())

    if weight.format != "nf4":
        return {"": field("", "codes"), "_scale": field("_scale", "scales")}
    levels, steps, offset = torch.tensor(LEVELS), scale_map(torch.device("cpu")), weight.at(index).offset
    return {
        "": field("", "codes"),
        ".absmax": field(".absmax", "scales"),
        ".nested_absmax": field(".nested_absmax", "nested"),
        ".nested_quant_map": _constant(steps),
        ".quant_map": _constant(levels),
        STATE: Slot((-1,), partial(_load_state, weight, offset), partial(_state, weight, offset), True),
    }


def packed(matrix: Tensor, format: str) -> dict[str, Tensor]:
    """Suffix to tensor: what files hold of a matrix [rows, columns]. ValueError if it cannot be quantised."""
    weight = Quantized.of(matrix, format)
    return {suffix: slot.read() for suffix, slot in stored_slots(weight, ()).items()}


def _field(weight: Quantized, index: tuple[int, ...], name: str, shape: tuple[int, ...]) -> Slot:
    """The place of a field of a matrix that files hold as `shape`: with a last dimension of 1 more, or as it is."""
    stored: Tensor = getattr(weight, name)[index]
    column = stored.dim() < len(shape)

    def part(whole: Tensor) -> Tensor:
        return weight.cut(name, whole.squeeze(-1) if column else whole)

    def load(tensor: Tensor) -> None:
        keep(stored, part(tensor).reshape(stored.shape))
        check(stored)

    view = stored.unsqueeze(-1) if column else stored
    if view.shape != shape:
        return Slot(shape, load, lambda: view, True, part)
    return Slot(shape, load, lambda: view, True, room=room_of(view))


def _constant(values: Tensor) -> Slot:
    def load(tensor: Tensor) -> None:
        if not torch.allclose(tensor.cpu(), values, rtol=0, atol=1e-6):
            raise ValueError("a map of codes that is not NF4's")

    return Slot(tuple(values.shape), load, lambda: values.clone(), True)


def _state(weight: Quantized, offset: Tensor) -> Tensor:
    values = {
        "quant_type": "nf4",
        "blocksize": nf4.BLOCK,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.part.whole),
        "nested_blocksize": nf4.NESTED,
        "nested_dtype": "float32",
        "nested_offset": offset.item(),
    }
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def _load_state(weight: Quantized, offset: Tensor, tensor: Tensor) -> None:
    try:
        values: Any = json.loads(bytes(tensor.flatten().tolist()))
    except (ValueError, RecursionError) as error:
        raise ValueError("a quantization state that is not JSON") from error
    wanted = {
        "quant_type": "nf4",
        "blocksize": nf4.BLOCK,
        "shape": list(weight.part.whole),
        "nested_blocksize": nf4.NESTED,
    }
    for key, value in wanted.items():
        if not isinstance(values, Mapping) or values.get(key) != value:
            raise ValueError(f"a quantization state without {key} = {value}")
    number = values.get("nested_offset")
    if not isinstance(number, float | int) or isinstance(number, bool):
        raise ValueError("a quantization state without the number nested_offset")
    try:
        offset.fill_(checked(torch.tensor(float(number))))
    except OverflowError as error:  # a whole number of hundreds of digits
        raise ValueError("NaN or infinite values") from error
