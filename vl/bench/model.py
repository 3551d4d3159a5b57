"""Eight layers of the backbone end to end, seven lightning and one softmax: reading a prompt and writing tokens.

The weights are random. On a GPU the widths are the released ones; one that cannot hold 32 experts a layer gets 16 or
8, which changes no token's work while prompts are read, but the weights that a step of writing has to read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig
from text_backbone.config import LIGHTNING, hybrid_layers
from text_backbone.quantization import quantized_backbone
from vl.bench.formats import NAMES, fill, product_work
from vl.bench.ops.attention import decode_work
from vl.bench.ops.attention import prefill_work as softmax_work
from vl.bench.ops.lightning import prefill_work as lightning_work
from vl.bench.ops.moe import moe_work
from vl.bench.records import OURS, Call, Case, Ceilings, Contest, Setting, Work
from vl.engine import Request, SamplingParams
from vl.engine.choosing import Chooser
from vl.engine.decode import DecodeStep
from vl.engine.graphs import GraphRecorder

CHUNK = 8192  # prompt tokens of one pass, as the engine reads them
CONTEXT = 1024  # tokens in the cache of a sequence being written
PAGE = 256
_SPARE = 16 * 2**30  # bytes beyond the weights, for cache and activations
_LAYERS = hybrid_layers(8)


def cases(setting: Setting) -> list[Case]:
    config, label = slice_config(setting)
    lengths, batches = [2048, 8192, 32768, 131072], [1, 8, 64]
    if setting.small:
        lengths, batches = [128, 256, 512], [1, 4]
    made = []
    for peer in (False, True) if setting.quantization is None else (False,):
        group = "model, transformers" if peer else "model"
        for n in lengths:
            if peer and n > 4 * CHUNK:
                continue  # in one pass, its activations would not fit
            build = partial(_prefill_peer if peer else _prefill, setting, config, n)
            made.append(Case(f"prefill, {label}", f"{n} tokens", n, "tokens", build, group))
        for n in batches:
            build = partial(_decode_peer if peer else _decode, setting, config, n)
            made.append(Case(f"decode, {label}", f"batch {n}", n, "sequences", build, group))
    return made


def slice_config(setting: Setting) -> tuple[TextConfig, str]:
    """The largest slice that the device holds, and what to call it."""
    if not setting.small:
        for experts in (32, 16, 8):
            config = TextConfig(attn_type_list=_LAYERS, num_local_experts=experts)
            if held_bytes(config, setting.quantization) + _SPARE <= setting.memory:
                return config, f"8 layers of {experts} experts, full width{_in(setting)}"
    return small_config(), f"8 layers, scaled down{_in(setting)}"


def small_config() -> TextConfig:
    """The slice, scaled down to what a CPU reads in seconds."""
    return TextConfig(
        vocab_size=512, hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, rotary_dim=16,
        intermediate_size=96, num_local_experts=4, attn_type_list=_LAYERS,
    )  # fmt: skip


def _in(setting: Setting) -> str:
    return "" if setting.quantization is None else f", {NAMES[setting.quantization]}"


def held_bytes(config: TextConfig, form: str | None) -> int:
    """What the weights take on a GPU: in bfloat16, but for those that the format quantises."""
    model = _shaped(config, form, torch.device("meta"), torch.bfloat16)
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _shaped(config: TextConfig, form: str | None, device: torch.device, dtype: torch.dtype) -> MiniMaxText:
    """The model, with weights uninitialised."""
    if form is None:
        return MiniMaxText(config, device=device, dtype=dtype)
    return quantized_backbone(config, form, device=device, dtype=dtype)


# Floors


def projections(config: TextConfig) -> int:
    """Weights of all layers' attention projections."""
    inner, kv_inner = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    widths = [5 * inner if kind == LIGHTNING else 2 * inner + 2 * kv_inner for kind in config.attn_type_list]
    return config.hidden_size * sum(widths)


def prefill_floor(config: TextConfig, tokens: int, itemsize: int, form: str | None, ceilings: Ceilings) -> float:
    """Seconds to read a prompt and know its next token: the sum of the ops' floors."""
    heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    weights, head = projections(config), config.vocab_size * config.hidden_size
    moe = moe_work(
        tokens,
        _used(config, tokens),
        config.hidden_size,
        config.intermediate_size,
        itemsize,
        config.num_experts_per_tok,
        form,
    )
    works = [product_work(weights, tokens, 0, itemsize, form), Work(head * itemsize, 2 * head)]
    for kind in config.attn_type_list:
        lightning = kind == LIGHTNING
        works += [
            moe,
            lightning_work(tokens, 1, heads, d, itemsize)
            if lightning
            else softmax_work(tokens, heads, kv_heads, d, itemsize),
        ]
    return sum(work.floor(ceilings) for work in works)


def decode_floor(config: TextConfig, batch: int, itemsize: int, form: str | None, ceilings: Ceilings) -> float:
    """Seconds of one token for each of `batch` sequences, their experts drawn at random."""
    heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    weights, head = projections(config), config.vocab_size * config.hidden_size
    moe = moe_work(
        batch,
        _used(config, batch),
        config.hidden_size,
        config.intermediate_size,
        itemsize,
        config.num_experts_per_tok,
        form,
    )
    works = [product_work(weights, batch, 0, itemsize, form), Work(head * itemsize, 2 * batch * head)]
    for kind in config.attn_type_list:
        lightning = kind == LIGHTNING
        works += [
            moe,
            lightning_work(batch, batch, heads, d, itemsize)
            if lightning
            else decode_work(batch * CONTEXT, batch, heads, kv_heads, d, itemsize),
        ]
    return sum(work.floor(ceilings) for work in works)


def _used(config: TextConfig, tokens: int) -> float:
    """Experts of a layer that are expected to get one of so many tokens."""
    count = config.num_local_experts
    return count * (1 - (1 - config.num_experts_per_tok / count) ** tokens)


# Ours


@cache
def _model(setting: Setting, config: TextConfig) -> tuple[MiniMaxText, int]:
    """The model with random weights, and the bytes that it holds."""
    model = _shaped(config, setting.quantization, setting.device, setting.dtype).eval().requires_grad_(False)
    for module in model.modules():
        fill(module)
    return model, _held(setting)


def _held(setting: Setting) -> int:
    return torch.cuda.memory_allocated(setting.device) if setting.device.type == "cuda" else 0


def _prefill(setting: Setting, config: TextConfig, tokens: int) -> Contest:
    model, held = _model(setting, config)
    ids = torch.randint(config.vocab_size, (tokens,), device=setting.device)
    cache, _ = _filled_cache(setting, config, 1, tokens)
    slots = [0]
    chunk = 64 if setting.small else CHUNK

    def read(step: int) -> Tensor:
        cache.states.zero_()
        for past in range(0, tokens, step):
            part = ids[past : past + step]
            packed = Packed.of([len(part)], past=[past], slots=slots, device=setting.device)
            hidden = model(model.embed(part), packed, cache)
        return model.logits(hidden[-1:]).argmax(dim=-1)

    def ours(step: int) -> Sequence[Call]:
        return [partial(read, step)]

    contenders: dict[str, Callable[[], Sequence[Call]]]
    if tokens > 4 * CHUNK:
        contenders = {OURS: partial(ours, chunk)}
    else:
        contenders = {OURS: partial(ours, tokens)}
        if chunk < tokens:
            contenders[f"{OURS}, {chunk} a pass"] = partial(ours, chunk)
    floor = partial(prefill_floor, config, tokens, setting.dtype.itemsize, setting.quantization)
    return Contest(floor, contenders, how="wall", held=held)


def _decode(setting: Setting, config: TextConfig, batch: int) -> Contest:
    model, held = _model(setting, config)
    gpu = setting.device.type == "cuda"
    cache, slots = _filled_cache(setting, config, batch, CONTEXT + 1)
    for memory in (cache.states, cache.keys, cache.values):
        memory.normal_()
    ids = torch.randint(config.vocab_size, (batch,)).tolist()
    requests = [_writer(slot, token) for slot, token in zip(slots, ids, strict=True)]

    def steps(recorder: GraphRecorder | None) -> Sequence[Call]:
        step = DecodeStep(model, cache, Chooser(batch), recorder)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="the decode step could not")  # become a graph: that is a failure
            step(requests)
        return [partial(step, requests)]

    contenders: dict[str, Callable[[], Sequence[Call]]]
    contenders = {OURS: lambda: steps(GraphRecorder(setting.device) if gpu else None)}
    if gpu:
        contenders[f"{OURS}, no graph"] = lambda: steps(None)
    floor = partial(decode_floor, config, batch, setting.dtype.itemsize, setting.quantization)
    return Contest(floor, contenders, how="wall", held=held)


def _writer(slot: int, token: int) -> Request:
    """A sequence that is being written: `token` is its last, and the cache holds `CONTEXT` before it."""
    nothing: Any = None
    params = SamplingParams()
    return Request(
        prompt_tokens=CONTEXT, max_new_tokens=1, prompt=nothing, params=params, stream=nothing, key=params.key(),
        slot=slot, computed=CONTEXT, written=1, token_ids=[token],
    )  # fmt: skip


def _filled_cache(setting: Setting, config: TextConfig, slots: int, tokens: int) -> tuple[HybridCache, list[int]]:
    """A cache with `slots` sequences that may hold `tokens` tokens each, and their slots."""
    pages = slots * -(-tokens // PAGE)
    cache = HybridCache(
        config, slots=slots, pages=pages, page_size=PAGE, device=setting.device, dtype=setting.dtype, scratch=True
    )
    taken = [cache.acquire() for _ in range(slots)]
    for slot in taken:
        cache.reserve(slot, tokens)
    return cache, taken


# transformers


@cache
def _peer(setting: Setting, config: TextConfig) -> tuple[Any, int]:
    """transformers' model of the same shape, and the bytes that it holds."""
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    shape = MiniMaxConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        num_local_experts=config.num_local_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        max_position_embeddings=2**20,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        layer_types=["linear_attention" if kind == LIGHTNING else "full_attention" for kind in config.attn_type_list],
        linear_attn_alpha_factor=config.linear_attention_alpha,
        full_attn_alpha_factor=config.full_attention_alpha,
        mlp_alpha_factor=config.mlp_alpha,
    )
    with setting.device:
        model = MiniMaxForCausalLM._from_config(shape, dtype=setting.dtype)
    return model.eval(), _held(setting)


def _prefill_peer(setting: Setting, config: TextConfig, tokens: int) -> Contest:
    def calls() -> Sequence[Call]:
        model, _ = _peer(setting, config)
        ids = torch.randint(config.vocab_size, (1, tokens), device=setting.device)
        return [lambda: model(ids, use_cache=True, logits_to_keep=1).logits.argmax(dim=-1)]

    floor = partial(prefill_floor, config, tokens, setting.dtype.itemsize, setting.quantization)
    return Contest(floor, {"transformers": calls}, how="wall")


def _decode_peer(setting: Setting, config: TextConfig, batch: int) -> Contest:
    def calls() -> Sequence[Call]:
        model, _ = _peer(setting, config)
        ids = torch.randint(config.vocab_size, (batch, CONTEXT), device=setting.device)
        cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
        last = ids[:, -1:]
        return [lambda: model(last, past_key_values=cache, use_cache=True).logits.argmax(dim=-1).tolist()]

    floor = partial(decode_floor, config, batch, setting.dtype.itemsize, setting.quantization)
    return Contest(floor, {"transformers": calls}, how="wall")
