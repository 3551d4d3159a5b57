"""Weights in fewer bits: int8, FP8 and NF4. Each format is a file; modules are swapped from outside of the model."""

from text_backbone.quantization.modules import (
    QuantizedExperts,
    QuantizedLinear,
    format_of,
    quantize_backbone,
    quantize_layer,
    quantized_backbone,
)
from text_backbone.quantization.stored import FORMATS, Quantized

__all__ = [
    "FORMATS",
    "Quantized",
    "QuantizedExperts",
    "QuantizedLinear",
    "format_of",
    "quantize_backbone",
    "quantize_layer",
    "quantized_backbone",
]
