"""Weights and cache of a share: numbers of values, and bytes."""

from __future__ import annotations

from text_backbone.config import LIGHTNING, SOFTMAX, TextConfig
from vision_encoder.config import VisionConfig
from vl.plan.formats import BF16, FORMATS, Format, Storage
from vl.plan.share import Share

VALUE, STATE, INDEX = 2, 4, 4  # bytes: bfloat16, float32, int32

Matrix = tuple[int, int]  # rows, columns


def projections(text: TextConfig, kind: int) -> list[Matrix]:
    """The matrices of one attention sub-layer."""
    hidden, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    if kind == LIGHTNING:
        return [(3 * heads, hidden), (heads, hidden), (hidden, heads)]
    return [(heads, hidden), (keys, hidden), (keys, hidden), (hidden, heads)]


def expert(text: TextConfig) -> list[Matrix]:
    """The matrices of one expert: w1, w3, w2."""
    hidden, inner = text.hidden_size, text.intermediate_size
    return [(inner, hidden), (inner, hidden), (hidden, inner)]


def layers_of(text: TextConfig, kind: int) -> int:
    return sum(each == kind for each in text.attn_type_list)


def stored(matrices: list[Matrix], storage: Storage) -> float:
    return sum(storage.bytes(*matrix) for matrix in matrices)


def attention_bytes(text: TextConfig, storage: Storage) -> float:
    """Of all layers' projections."""
    return sum(layers_of(text, kind) * stored(projections(text, kind), storage) for kind in (LIGHTNING, SOFTMAX))


def expert_bytes(text: TextConfig, storage: Storage) -> float:
    """Of all experts of all layers."""
    return text.num_hidden_layers * text.num_local_experts * stored(expert(text), storage)


def router_bytes(text: TextConfig) -> float:
    return text.num_hidden_layers * BF16.bytes(text.num_local_experts, text.hidden_size)


def table_bytes(text: TextConfig) -> float:
    """Of the embeddings; the output head is as large."""
    return BF16.bytes(text.vocab_size, text.hidden_size)


def norm_bytes(share: Share) -> float:
    text = share.text
    gated = layers_of(text, LIGHTNING) * text.num_attention_heads * text.head_dim
    return VALUE * (gated + (2 * text.num_hidden_layers + 1) * text.hidden_size)


def vision_values(config: VisionConfig) -> int:
    """Parameters of the ViT, the projector and the newline."""
    hidden, inner, text = config.hidden_size, config.intermediate_size, config.text_hidden_size
    block = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner  # biases and two norms of two vectors
    embedding = (3 * config.patch_size**2 + 1 + config.patches**2 + 1 + 2) * hidden
    projector = (hidden + 1) * text + (text + 1) * text
    return config.num_hidden_layers * block + embedding + projector + text


def weight_bytes(share: Share, form: Format) -> float:
    """All that a share holds of the model."""
    text = share.text
    vision = VALUE * vision_values(share.vision) if share.vision else 0
    matrices = attention_bytes(text, form.attention) + expert_bytes(text, form.experts) + router_bytes(text)
    return matrices + norm_bytes(share) + 2 * table_bytes(text) + vision


def parameters(text: TextConfig, vision: VisionConfig | None = None) -> int:
    """Values of a whole model."""
    return int(weight_bytes(Share(text, vision=vision), FORMATS["bf16"])) // VALUE


def state_bytes(text: TextConfig, slots: int = 1) -> int:
    """Lightning states of so many sequences, whatever their lengths."""
    return STATE * layers_of(text, LIGHTNING) * slots * text.num_attention_heads * text.head_dim**2


def kv_bytes(text: TextConfig, slots: int, pages: int, page_size: int) -> int:
    """Keys and values of so many pages, and the page table."""
    token = 2 * VALUE * layers_of(text, SOFTMAX) * text.num_key_value_heads * text.head_dim
    return token * pages * page_size + INDEX * slots * pages
