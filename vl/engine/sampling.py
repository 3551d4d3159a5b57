"""From next-token logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vl.errors import InputError


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued.

    Attributes:
        max_new_tokens: tokens generated at most, the end token included.
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_p: keep the most likely tokens whose probabilities first sum to `top_p`.
        top_k: keep the `top_k` most likely tokens; 0 keeps all. Applied before `top_p`, as transformers does.
        seed: makes a sampled continuation reproducible, whatever else shares its batch.
        stop: the text ends before the first of these strings; a single string is taken as one.

    Raises:
        InputError: if a value is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        checks = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must be 0 (greedy) or more": self.temperature >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "top_k must be 0 (off) or more": self.top_k >= 0,
            "seed must be 0 or more": self.seed is None or self.seed >= 0,
            "stop strings must be non-empty strings": all(isinstance(s, str) and s for s in self.stop),
        }
        for rule, holds in checks.items():
            if not holds:
                raise InputError(f"{rule}, not {getattr(self, rule.split()[0])!r}")

    def generator(self, device: torch.device) -> torch.Generator | None:
        """A random source of this request's own; None when greedy needs none."""
        if self.temperature == 0:
            return None
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(logits: Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator | None]) -> Tensor:
    """Pick one token per row.

    Args:
        logits: float32 `[n, vocab]`.
        params, generators: one per row.

    Returns:
        int64 `[n]`.
    """
    tokens = logits.argmax(dim=-1)
    for row, (param, generator) in enumerate(zip(params, generators, strict=True)):
        if param.temperature > 0:
            probs = token_probabilities(logits[row], param)
            tokens[row] = torch.multinomial(probs, 1, generator=generator)[0]
    return tokens


def token_probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """The distribution that is drawn from: temperature, then top-k, then top-p. `[vocab]` -> `[vocab]`."""
    scaled, order = (logits / params.temperature).sort(descending=True, stable=True)
    if params.top_k:
        scaled[params.top_k :] = -torch.inf
    probs = scaled.softmax(dim=-1)
    # A token is kept while the mass before it is short of top_p, so the most likely one always is.
    probs[probs.cumsum(dim=-1) - probs >= params.top_p] = 0
    return torch.empty_like(probs).scatter_(0, order, probs / probs.sum())
