"""The text backbone: embeddings in, logits out."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from text_backbone.cache import HybridCache, LayerCache
from text_backbone.config import TextConfig
from text_backbone.head import OutputHead
from text_backbone.kernels.rotary import rotary_table
from text_backbone.layer import DecoderLayer
from text_backbone.norms import ResidualNorm
from text_backbone.packed import Packed


class MiniMaxText(nn.Module):
    """The MiniMax-Text-01 decoder: hybrid lightning/softmax attention, mixture of experts, untied output head.

    Matrices are created on `device` (the meta device included) but not initialised: load a checkpoint through
    `weights.released_tensors`, or call `init.init_weights`.

    Attributes:
        capturable: whether a step can be a CUDA graph. Modules that wait for the device, put in the place of its own,
            say that it cannot.
    """

    capturable = True

    def __init__(
        self, config: TextConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        # Not `skip_init`: drawing normal values on the meta device imports torch's compiler, which takes a second.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size, device=device, dtype=dtype), freeze=False
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, device=device, dtype=dtype) for i in range(config.num_hidden_layers)
        )
        self.norm = ResidualNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)
        self.lm_head = OutputHead(config.hidden_size, config.vocab_size, device=device, dtype=dtype)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings: int64 [T] -> [T, hidden]."""
        return self.embed_tokens(input_ids)

    def forward(
        self,
        embeds: Tensor,
        packed: Packed,
        cache: HybridCache | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Tensor:
        """Run the decoder over a packed batch; prefill, chunked prefill, decode and training are this one function.

        Args:
            embeds: [T, hidden], the new tokens of all sequences end to end.
            packed: where each sequence lies, and what of it is in `cache`.
            cache: read and updated; the pass is then not differentiable. None starts every sequence from nothing.
            router_logits: receives each layer's router logits, float32 [T, E], for a balance loss.

        Returns:
            [T, hidden] after the final norm.

        Raises:
            ValueError: if `embeds` and `packed` disagree, tokens are said to be cached and there is no cache, or the
                cache has no room for the new tokens.
        """
        if len(embeds) != packed.tokens:
            raise ValueError(f"embeds has {len(embeds)} tokens but packed describes {packed.tokens}")
        if cache is None and any(packed.pasts):
            raise ValueError("packed counts cached tokens (past > 0) but no cache was given")
        differentiable = torch.is_grad_enabled() and cache is None
        # Triton launches on the current device, which need not be the one that the weights are on.
        with torch.set_grad_enabled(differentiable), torch.cuda.device_of(embeds):
            memories: Iterable[LayerCache | None]
            memories = [None] * len(self.layers) if cache is None else cache.layers(packed)
            table = rotary_table(packed.positions, self.config.rotary_dim, self.config.rope_theta)
            norms = [*(layer.get_submodule("input_layernorm") for layer in self.layers), self.norm]
            x = norms[0](embeds)
            for layer, memory, next_norm in zip(self.layers, memories, norms[1:], strict=True):
                x, logits = layer(x, packed, table, memory, next_norm)
                if router_logits is not None:
                    router_logits.append(logits)
            return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits: [..., hidden] -> float32 [..., vocab]."""
        return self.lm_head(hidden)
