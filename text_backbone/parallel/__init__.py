"""The decoder split over several processes, one a GPU: applied from outside, the model's files do not know of it."""

from text_backbone.parallel.collectives import Collectives
from text_backbone.parallel.layout import PLACEMENTS, Layout
from text_backbone.parallel.model import SplitText, split_backbone

__all__ = ["PLACEMENTS", "Collectives", "Layout", "SplitText", "split_backbone"]
