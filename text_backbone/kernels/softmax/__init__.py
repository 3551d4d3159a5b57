"""Causal softmax attention over packed sequences."""

from text_backbone.kernels.softmax.reference import paged_attention, softmax_attention

__all__ = ["paged_attention", "softmax_attention"]
