"""The decoder over several processes, one a GPU, split or with batches that they share: applied from outside, the
model's files do not know of it."""

from text_backbone.parallel.collectives import Collectives
from text_backbone.parallel.context import ContextShard
from text_backbone.parallel.context_modules import context_parallel
from text_backbone.parallel.dispatch import expert_parallel
from text_backbone.parallel.layout import PLACEMENTS, Layout
from text_backbone.parallel.model import SplitText, split_backbone
from text_backbone.parallel.pages import ShardedCache
from text_backbone.parallel.tensor import tensor_parallel

__all__ = [
    "PLACEMENTS",
    "Collectives",
    "ContextShard",
    "Layout",
    "ShardedCache",
    "SplitText",
    "context_parallel",
    "expert_parallel",
    "split_backbone",
    "tensor_parallel",
]
