"""Experts in host memory: the most used are on the device, the others are copied to it when tokens choose them."""

from text_backbone.spill.modules import SpilledExperts, host_bytes, place_spilled, spill_backbone, spilled_backbone
from text_backbone.spill.residents import Group, Residents

__all__ = ["Group", "Residents", "SpilledExperts", "host_bytes", "place_spilled", "spill_backbone", "spilled_backbone"]
