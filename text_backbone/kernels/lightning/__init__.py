"""Lightning attention: prefill, chunked prefill and decode."""

from text_backbone.kernels.lightning.reference import lightning_attention, lightning_recurrence

__all__ = ["lightning_attention", "lightning_recurrence"]
