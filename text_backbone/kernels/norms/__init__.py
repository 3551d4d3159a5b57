"""Norms fused with their neighbours: residual sum before, output gate after."""

from text_backbone.kernels.norms.reference import gated_norm, residual_norm, rms_norm

__all__ = ["gated_norm", "residual_norm", "rms_norm"]
