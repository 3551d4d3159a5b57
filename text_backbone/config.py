"""Shape of a MiniMax-Text-01 decoder."""

from __future__ import annotations

from dataclasses import dataclass

LIGHTNING, SOFTMAX = 0, 1


def hybrid_layers(layers: int, period: int = 8) -> tuple[int, ...]:
    """The released interleaving: softmax attention where `(i + 1) % period == 0`, lightning elsewhere."""
    return tuple(SOFTMAX if (i + 1) % period == 0 else LIGHTNING for i in range(layers))


@dataclass(frozen=True)
class TextConfig:
    """Hyper-parameters of the text backbone; the defaults are the released MiniMax-Text-01 (456 B parameters).

    Field names follow the released `config.json`. `attn_type_list` holds one entry per layer, `LIGHTNING` (0) or
    `SOFTMAX` (1). `*_alpha` scales the residual branch and `*_beta` the new output of a sub-layer.

    Raises:
        ValueError: if the widths do not fit together.
    """

    vocab_size: int = 200064
    hidden_size: int = 6144
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 9216
    num_local_experts: int = 32
    num_experts_per_tok: int = 2
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e7
    rotary_dim: int = 64
    attn_type_list: tuple[int, ...] = hybrid_layers(80)
    linear_attention_alpha: float = 3.5565588200778455
    linear_attention_beta: float = 1.0
    full_attention_alpha: float = 3.5565588200778455
    full_attention_beta: float = 1.0
    mlp_alpha: float = 3.5565588200778455
    mlp_beta: float = 1.0

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if not 0 < self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ValueError(f"rotary_dim {self.rotary_dim} must be even and at most head_dim {self.head_dim}")
        if not 0 < self.num_experts_per_tok <= self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} must lie between 1 and "
                f"num_local_experts {self.num_local_experts}"
            )
        if not self.attn_type_list or set(self.attn_type_list) - {LIGHTNING, SOFTMAX}:
            raise ValueError("attn_type_list needs one entry per layer, 0 (lightning) or 1 (softmax)")

    @property
    def num_hidden_layers(self) -> int:
        return len(self.attn_type_list)
