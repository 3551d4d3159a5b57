"""Router and experts of the mixture-of-experts MLP."""

from text_backbone.kernels.moe.reference import expert_mlp, route

__all__ = ["expert_mlp", "route"]
