"""The memory of a GPU: its weights, the cache, and what a pass allocates at its peak.

The activations follow the code: which tensors are alive at once in `MiniMaxText.forward`, `DecoderLayer.forward` and
the kernels of each sub-layer, of T tokens in bfloat16, when nothing is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass

from text_backbone.config import LIGHTNING, SOFTMAX, TextConfig
from vision_encoder.config import VisionConfig
from vl.plan.formats import FORMATS, NF4, Format
from vl.plan.gpus import GIB
from vl.plan.share import Share
from vl.plan.sizes import INDEX, VALUE, kv_bytes, layers_of, state_bytes
from vl.plan.workload import TILES_AT_A_TIME, Workload

# What a process takes of a GPU beside PyTorch's tensors: the CUDA context (0.6 GiB for a bare process in
# the messages that torch's out-of-memory errors print on H200 and A100), and modules of cuBLAS, cuDNN and Triton with
# the instances of CUDA graphs (an estimate).
PROCESS = int(1.0 * GIB)
COMMUNICATOR = int(0.5 * GIB)  # NCCL's buffers and symmetric memory, where several GPUs work together; an estimate
FRAGMENTS = 0.02  # of the memory, which PyTorch's allocator cannot give out; chosen, not measured
CUBLAS = 32 * 2**20  # the workspace that PyTorch gives cuBLAS on Hopper and later (docs: CUBLAS_WORKSPACE_CONFIG)

SEGMENT = 512  # tokens at least between two states that lightning prefill keeps (kernels/lightning/triton.py)
# Cached tokens whose keys and values softmax attention copies at a time, and below which it takes all that are left
# (kernels/softmax/cached.py).
BLOCK, FEWEST = 65536, 4096
# Where pages are in host memory: buffers on the GPU that they pass through, and tokens of one, which is also what is
# taken of the host's memory at a time (offload/host.py).
BUFFERS, BUFFER_TOKENS = 2, 65536
LOGIT = 4  # float32, as the output head makes them
# What products of NF4 matrices write out in bf16: bytes of experts at a time (kernels/moe/nf4.py), and the rows beyond
# which they do, of each expert in the mean and of a projection (kernels/nf4/triton.py).
WRITTEN, EXPERT_ROWS, ROWS = 4 << 30, 20, 32
SAMPLING = 20  # bytes of a logit in a decode step: itself, a probability, and a float32 and an int64 of a sort


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU, the fullest of the placement.

    Attributes:
        weights: those that are on the GPU.
        states, kv: the cache: lightning states, and pages of keys and values.
        activations: at the peak of a pass.
        overhead: of the process, beside PyTorch's tensors.
        available: what may be taken of the GPU.
        host: weights, and keys and values, in the host's memory, of all GPUs together.
    """

    weights: int
    states: int
    kv: int
    activations: int
    overhead: int
    available: int
    host: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.states + self.kv + self.activations + self.overhead

    @property
    def fits(self) -> bool:
        return self.total <= self.available


def overhead(gpus: int) -> int:
    return PROCESS + (COMMUNICATOR if gpus > 1 else 0)


def cache_memory(text: TextConfig, work: Workload, tokens: int) -> tuple[int, int]:
    """States and pages of sequences of `tokens` tokens, with the engine's scratch slot and page.

    With the pages come the buffers of those in host memory.
    """
    slots, host = work.batch + 1, work.host_pages
    kv = kv_bytes(text, slots, work.near(tokens) + 1, work.page_size) + INDEX * slots * host
    if host and layers_of(text, SOFTMAX):
        kv += BUFFERS * _buffer_pages(work) * _page_bytes(text, work)
    return state_bytes(text, slots), kv


def host_cache_memory(text: TextConfig, work: Workload) -> int:
    """Pages in host memory, which is taken in pieces of a buffer's size."""
    if not work.host_pages:
        return 0
    pieces = -(-work.host_pages // _buffer_pages(work))
    return layers_of(text, SOFTMAX) * pieces * _buffer_pages(work) * _page_bytes(text, work)


def _buffer_pages(work: Workload) -> int:
    return max(1, min(work.host_pages, BUFFER_TOKENS // work.page_size))


def _page_bytes(text: TextConfig, work: Workload) -> int:
    """Keys and values of a page of one layer."""
    return 2 * VALUE * work.page_size * text.num_key_value_heads * text.head_dim


def activation_memory(share: Share, form: Format, work: Workload, tokens: int) -> int:
    """The peak over the passes of a workload of `tokens` tokens a sequence.

    Steps of writing are CUDA graphs, whose pool of memory nothing else may use: theirs comes on top.
    """
    chunk, text = min(work.prefill_tokens, work.batch * tokens), share.text
    peak = prefill_peak(text, chunk, max(0, tokens - chunk), form)
    if share.vision and work.images:
        held, encoding = vision_peaks(share.vision, work)
        peak = held + max(peak, VALUE * text.hidden_size * chunk + encoding)
    return peak + decode_peak(text, work.batch, form) + CUBLAS


def prefill_peak(text: TextConfig, tokens: int, past: int, form: Format = FORMATS["bf16"]) -> int:
    """Bytes of a pass over `tokens` new tokens, after `past` cached ones of the same sequence."""
    x = VALUE * text.hidden_size
    # The embeddings and a layer's input; the rotary table, five columns of numbers, and the last layer's router logits.
    alive = 2 * x + 4 * text.rotary_dim + 5 * 8 + 4 * text.num_local_experts
    stages = [_moe_peak(text, tokens) + written_experts(text, tokens, form), LOGIT * text.vocab_size]
    if layers_of(text, LIGHTNING):
        stages.append(_lightning_peak(text, tokens, form))
    if layers_of(text, SOFTMAX):
        stages.append(_softmax_peak(text, tokens, past, form))
    return alive * tokens + max(stages)


def written_experts(text: TextConfig, tokens: int, form: Format) -> int:
    """Bytes of experts that a pass writes out at a time."""
    if form.experts is not NF4 or tokens * text.num_experts_per_tok <= EXPERT_ROWS * text.num_local_experts:
        return 0
    pair = 2 * VALUE * text.hidden_size * text.intermediate_size  # w1 and w3
    return pair * max(1, min(text.num_local_experts, WRITTEN // pair))


def _written_projection(text: TextConfig, tokens: int, form: Format) -> int:
    """Bytes of a projection to or from all heads, if it is written out."""
    written = form.attention is NF4 and tokens > ROWS
    return VALUE * text.num_attention_heads * text.head_dim * text.hidden_size if written else 0


def _lightning_peak(text: TextConfig, tokens: int, form: Format) -> int:
    """The fused projection and the output, with the states between segments; later output, gate and their product.

    Each product has its matrix beside its output.
    """
    matrix = _written_projection(text, tokens, form)
    heads = VALUE * text.num_attention_heads * text.head_dim
    cells = -(-tokens // SEGMENT) * 4 * text.num_attention_heads * text.head_dim**2
    return max(
        tokens * 3 * heads + 3 * matrix,
        tokens * (3 + 1) * heads + cells,
        tokens * (3 * heads + VALUE * text.hidden_size) + matrix,
    )


def _softmax_peak(text: TextConfig, tokens: int, past: int, form: Format) -> int:
    """Queries, keys, values and output; with a past also its copies, a float32 sum and the part to be added to it.

    Then the last projection's output, and its matrix where that is written out.
    """
    projected = tokens * VALUE * (text.num_attention_heads * text.head_dim + text.hidden_size)
    heads, keys = (VALUE * n * text.head_dim for n in (text.num_attention_heads, text.num_key_value_heads))
    alone = max(tokens * (2 * heads + 3 * keys), projected + _written_projection(text, tokens, form))
    if not past:
        return alone
    return max(alone, tokens * (5 * heads + 2 * keys) + 2 * keys * copied_tokens(past))


def copied_tokens(past: int) -> int:
    """Cached tokens whose copies are alive at once: a block's live until those of the next are made."""
    first = _block(past)
    return first + _block(past - first)


def _block(past: int) -> int:
    """The largest block of so many cached tokens: a power of two, or all where they are few."""
    return past if past < FEWEST else min(BLOCK, 1 << past.bit_length() - 1)


def _moe_peak(text: TextConfig, tokens: int) -> int:
    """Attention's output and the normalised sum; router, sorted rows, both products' outputs, and their sum."""
    x, chosen = VALUE * text.hidden_size, text.num_experts_per_tok
    router = 4 * text.num_local_experts + chosen * (4 + 8 + 4 + 4)
    return tokens * (2 * x + router + chosen * (VALUE * text.intermediate_size + x) + x)


def decode_peak(text: TextConfig, batch: int, form: Format) -> int:
    """Bytes of a step of `batch` sequences: their logits and what sampling makes of them, beside a few rows."""
    return batch * SAMPLING * text.vocab_size + prefill_peak(text, batch, 0, form)


def vision_peaks(config: VisionConfig, work: Workload) -> tuple[int, int]:
    """Features that wait to be read, and beside them what encoding takes at its peak."""
    images = work.images * work.batch
    together = min(images, max(1, TILES_AT_A_TIME // max(1, work.image_tiles)))
    tiles = min(TILES_AT_A_TIME, together * work.image_tiles)
    features = VALUE * config.text_hidden_size * together * work.image_tokens
    tokens = tiles * (config.patches**2 + 1)
    hidden, inner = VALUE * config.hidden_size, VALUE * config.intermediate_size
    tower = tokens * max(6 * hidden, 2 * hidden + inner)  # stream, norm, q, k, v and output; or stream, norm and MLP
    projector = tokens * (3 * hidden + 2 * VALUE * config.text_hidden_size)
    pixels = 3 * config.image_size**2 * tiles
    return features, max(tower, projector) + pixels
