from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig, init_weights


def small_config(**changes: object) -> TextConfig:
    fields: dict[str, object] = {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 20,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rotary_dim": 4,
        "rope_theta": 1e4,
        "attn_type_list": (0, 1, 0),
        "linear_attention_alpha": 1.7,
        "linear_attention_beta": 0.9,
        "full_attention_alpha": 1.4,
        "full_attention_beta": 1.1,
        "mlp_alpha": 1.3,
        "mlp_beta": 1.2,
    }
    return TextConfig(**(fields | changes))  # type: ignore[arg-type]


def random_model(config: TextConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> MiniMaxText:
    """A model with weights large enough for every part of it to matter, and norms that are not all 1."""
    model = MiniMaxText(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    init_weights(model, std=0.3, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def config() -> Callable[..., TextConfig]:
    return small_config


@pytest.fixture(scope="session")
def build() -> Callable[..., MiniMaxText]:
    return random_model


@pytest.fixture(scope="session")
def model() -> MiniMaxText:
    return random_model(small_config())


@pytest.fixture(scope="session")
def feed() -> Callable[..., list[Tensor]]:
    """Run each step's pieces of sequences through a model and a cache: the outputs of each sequence, joined."""

    def run(
        model: MiniMaxText, cache: HybridCache, ids: Sequence[Tensor], cuts: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """`cuts[i]` are the lengths in which sequence i is fed; sequences with pieces left share one batch."""
        slots = [cache.acquire() for _ in ids]
        done, outs = [0] * len(ids), [[] for _ in ids]  # type: ignore[var-annotated]
        for step in range(max(map(len, cuts))):
            live = [i for i in range(len(ids)) if step < len(cuts[i])]
            lengths = [cuts[i][step] for i in live]
            for i, length in zip(live, lengths, strict=True):
                cache.reserve(slots[i], done[i] + length)
            tokens = torch.cat([ids[i][done[i] : done[i] + n] for i, n in zip(live, lengths, strict=True)])
            past, rows = [done[i] for i in live], [slots[i] for i in live]
            packed = Packed.of(lengths, past=past, slots=rows, device=tokens.device)
            hidden = model(model.embed(tokens), packed, cache)
            for i, piece in zip(live, hidden.split(lengths), strict=True):
                outs[i].append(piece)
                done[i] += len(piece)
        for slot in slots:
            cache.release(slot)
        return [torch.cat(pieces) for pieces in outs]

    return run
