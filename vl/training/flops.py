"""Floating-point operations of a training step, for its model FLOPs utilisation (arXiv:2204.02311, appendix B)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from preprocessing import Grid
from text_backbone import TextConfig
from text_backbone.config import SOFTMAX
from vision_encoder import VisionConfig
from vl.config import VLConfig
from vl.model import MiniMaxVL
from vl.training.batch import Batch


class StepFlops:
    """Counts what a step must compute, a multiply and an add being two operations; recomputation does not count.

    The forward pass counts once, the gradients of a part's inputs once more where something before it learns, and
    those of its weights once more where it learns itself. Norms, gates and other elementwise work are left out.
    """

    def __init__(self, model: MiniMaxVL) -> None:
        self.config: VLConfig = model.config
        learns = {name: p.requires_grad for name, p in model.named_parameters()}
        vision = any(value for name, value in learns.items() if name.startswith("vision.vit."))
        before_text = vision or any(value for name, value in learns.items() if name.startswith("vision."))
        text = any(value for name, value in learns.items() if name.startswith("language_model."))
        # Adapters have frozen matrices before and behind them, which pass gradients on.
        adapted = not any(learns.values())
        self.patches, self.blocks = 1 + vision, 1 + 2 * vision  # pixels need no gradient
        self.projector = 1 + vision + (before_text or adapted)
        passes = before_text or adapted or text  # gradients through the decoder
        self.matrices, self.attention = 1 + passes + text, 1 + 2 * passes

    def __call__(self, batch: Batch) -> float:
        """Operations of one batch, forward and backward."""
        matrices, attention = text_flops(self.config.text, batch.lengths, len(batch.scored))
        total = self.matrices * matrices + self.attention * attention
        if self.config.vision is not None:
            patches, blocks = vit_flops(self.config.vision, len(batch.tiles))
            total += self.patches * patches + self.blocks * blocks
            total += self.projector * projector_flops(self.config.vision, batch.grids)
        return total


def text_flops(config: TextConfig, lengths: Sequence[int], scored: int) -> tuple[float, float]:
    """Forward pass of the decoder over sequences of `lengths` tokens, with logits at `scored` positions.

    Returns:
        The operations with its matrices, and those of attention between activations, whose backward pass is twice as
        long whatever learns.
    """
    hidden, inner = config.hidden_size, config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    tokens, squares = float(sum(lengths)), sum(length * (length + 1) / 2 for length in lengths)
    softmax = sum(kind == SOFTMAX for kind in config.attn_type_list)
    lightning = config.num_hidden_layers - softmax
    experts = config.num_experts_per_tok * 3 * hidden * config.intermediate_size + hidden * config.num_local_experts
    projections = lightning * 5 * hidden * inner + softmax * 2 * hidden * (inner + shared)
    matrices = tokens * (projections + config.num_hidden_layers * experts) + scored * hidden * config.vocab_size
    # Lightning updates and reads the state of each head; softmax makes scores and sums values under the causal mask.
    attention = lightning * tokens * 2 * inner * config.head_dim + softmax * squares * 2 * inner
    return 2.0 * matrices, 2.0 * attention


def vit_flops(config: VisionConfig, tiles: int) -> tuple[float, float]:
    """Forward pass of the ViT: the operations of the patch embedding, and those of the blocks."""
    tokens, hidden = config.patches**2 + 1, config.hidden_size
    block = tokens * (4 * hidden**2 + 2 * hidden * config.intermediate_size) + 2 * tokens**2 * hidden
    patches = config.patches**2 * 3 * config.patch_size**2 * hidden
    return 2.0 * tiles * patches, 2.0 * tiles * config.num_hidden_layers * block


def projector_flops(config: VisionConfig, grids: Sequence[Grid]) -> float:
    """Forward pass of the projector over the features that images keep."""
    features = sum(grid.tokens - grid.rows for grid in grids)  # newlines are not projected
    return 2.0 * features * (config.hidden_size + config.text_hidden_size) * config.text_hidden_size


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on `device`: a peak that can be reached."""
    side, repeats = (8192, 8) if device.type == "cuda" else (1024, 2)
    a = torch.ones(side, side, device=device, dtype=dtype)
    torch.mm(a, a)
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, a)
    _wait(device)
    return repeats * 2 * side**3 / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
