"""Checkpoints go both ways between transformers and us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MiniMaxConfig, MiniMaxForCausalLM

from text_backbone import MiniMaxText, Packed, init_weights, released_tensors
from vl.checkpoint import load_weights, write_weights
from vl.config import read_config
from vl.manifest import expected_shapes, read_manifest

from .tiny import TEXT


def native_config(**changes: Any) -> MiniMaxConfig:
    return MiniMaxConfig(
        vocab_size=TEXT.vocab_size,
        hidden_size=TEXT.hidden_size,
        intermediate_size=TEXT.intermediate_size,
        num_hidden_layers=TEXT.num_hidden_layers,
        num_attention_heads=TEXT.num_attention_heads,
        num_key_value_heads=TEXT.num_key_value_heads,
        head_dim=TEXT.head_dim,
        num_local_experts=TEXT.num_local_experts,
        layer_types=[("linear_attention", "full_attention")[kind] for kind in TEXT.attn_type_list],
        rope_parameters={"rope_type": "default", "rope_theta": TEXT.rope_theta},
        full_attn_alpha_factor=TEXT.full_attention_alpha,
        linear_attn_alpha_factor=TEXT.linear_attention_alpha,
        mlp_alpha_factor=TEXT.mlp_alpha,
        block_size=4,
        **changes,
    )


def our_logits(text: MiniMaxText, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return text.logits(text(text.embed(torch.tensor(ids)), Packed.of([len(ids)])))


def test_transformers_reads_what_we_save(tmp_path: Path) -> None:
    """Same names, same numbers: its loader finds every tensor of ours, and its model gives our logits."""
    text = MiniMaxText(TEXT)
    init_weights(text, std=0.2, generator=torch.Generator().manual_seed(1))
    write_weights(released_tensors(text), tmp_path, max_shard_bytes=30_000)
    native_config().save_pretrained(tmp_path)
    read: Any = MiniMaxForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    theirs, info = read
    derived = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
    assert all(name.endswith(derived) for name in info["missing_keys"])
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    ids = [3, 14, 15, 9, 26, 5, 35]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(our_logits(text, ids), expected, rtol=0, atol=1e-4)


def test_we_read_what_transformers_saves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = MiniMaxForCausalLM(native_config(initializer_range=0.2)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    config = read_config(tmp_path)
    assert config.text == TEXT
    assert config.vision is None
    text = MiniMaxText(config.text)
    load_weights(released_tensors(text), read_manifest(tmp_path, expected_shapes(config)))
    ids = [3, 14, 15, 9, 26, 5, 35]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(our_logits(text, ids), expected, rtol=0, atol=1e-4)
