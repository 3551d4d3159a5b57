"""Partial rotary position embedding."""

from text_backbone.kernels.rotary.reference import rotary, rotary_table, rotary_to_pages

__all__ = ["rotary", "rotary_table", "rotary_to_pages"]
