"""Seconds to read a prompt and to write a token: the sum of the operations' times, and of what goes between GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from text_backbone.config import LIGHTNING, SOFTMAX, TextConfig
from vision_encoder.config import VisionConfig
from vl.plan.efficiency import (
    DENSE,
    ELEMENTWISE,
    EXPERTS,
    KERNELS,
    LIGHTNING_DECODE,
    LIGHTNING_PREFILL,
    MESSAGES,
    QUANTISED,
    SOFTMAX_DECODE,
    SOFTMAX_PREFILL,
    SPLIT_KERNELS,
    START,
    VISION,
    Codes,
    Efficiency,
)
from vl.plan.formats import BF16, Format, Storage
from vl.plan.gpus import Gpu
from vl.plan.share import CONTEXT, LAYERS, Placement, Share
from vl.plan.sizes import (
    VALUE,
    Matrix,
    expert,
    expert_bytes,
    kv_bytes,
    layers_of,
    projections,
    state_bytes,
    stored,
    table_bytes,
    vision_values,
)
from vl.plan.workload import Workload

# Tokens for each GPU below which a pass is not shared out (`text_backbone.parallel.ContextText.least`), and the runs of
# tokens that each has of one sequence (`ContextShard`).
SHARED_TOKENS, RUNS = 256, 2


@dataclass(frozen=True, slots=True)
class Speed:
    """Predicted times.

    Attributes:
        prefill: seconds to read one sequence's prompt, of all its tokens.
        vision: seconds to encode its images.
        decode: seconds of one step, a token for each sequence.
        prefill_tokens, decode_tokens: tokens a second, those of a step for all sequences together.
    """

    prefill: float
    vision: float
    decode: float
    prefill_tokens: float
    decode_tokens: float

    @property
    def first_token(self) -> float:
        """Seconds until a sequence's first token, if it is alone."""
        return self.vision + self.prefill


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: `tokens` new ones of `sequences` sequences, each with `past` cached ones."""

    tokens: int
    past: float
    sequences: int = 1

    @property
    def decode(self) -> bool:
        return self.tokens == self.sequences


@dataclass(frozen=True, slots=True)
class Estimate:
    """Times of a placement of a model in one format on one kind of GPU.

    Attributes:
        spilled: the part of the experts that is in host memory alone.
        near: tokens of each sequence, its first, whose keys and values are on the GPU; None: all are.
    """

    placement: Placement
    form: Format
    gpu: Gpu
    spilled: float = 0.0
    near: float | None = None

    def speed(self, work: Workload) -> Speed:
        tokens, vision = work.tokens, 0.0
        tower = self.placement.shares[0].vision
        if tower and work.images:
            vision = vision_seconds(self.gpu, tower, work.images * work.image_tiles)
        prefill, decode = self.prefill(tokens, work.prefill_tokens), self.decode(tokens, work.batch)
        return Speed(prefill, vision, decode, tokens / (prefill + vision), work.batch / decode)

    def prefill(self, tokens: int, chunk: int) -> float:
        """Seconds to read a prompt, in passes of `chunk` tokens.

        Attention grows evenly from pass to pass, and what comes from host memory does from the first one that has it.
        """
        chunk = min(chunk, tokens)
        full, rest = divmod(tokens, chunk)
        alone = full if self.near is None else min(full, math.ceil(self.near / chunk))
        runs = ((first, stop) for first, stop in ((0, alone), (alone, full)) if first < stop)
        seconds = sum((stop - first) * self.run(Pass(chunk, (first + stop - 1) * chunk / 2)) for first, stop in runs)
        return seconds + (self.run(Pass(rest, full * chunk)) if rest else 0.0)

    def decode(self, context: int, batch: int) -> float:
        """Seconds of a token for each of `batch` sequences, each with `context` tokens in the cache."""
        return self.run(Pass(batch, context, batch))

    def run(self, step: Pass) -> float:
        """Seconds of a pass."""
        if self._shares_tokens(step):
            return self._shared_pass(step)
        compute = sum(self._share(share, step) for share in self.placement.shares)
        moved = self._spilled_bytes(step) / self.gpu.host_bandwidth
        keys = self._far_bytes(step) / self.gpu.host_bandwidth  # which come while others, or other layers, are at work
        # Reading a prompt needs all experts, which can come while others work; a step waits for those it chose.
        local = moved + max(compute, keys) if step.decode else max(compute, moved + keys)
        return local + self._communication(step)

    def _shares_tokens(self, step: Pass) -> bool:
        """Whether each GPU computes some of the tokens; passes that are too short for it all of them compute whole."""
        gpus = self.placement.gpus
        return self.placement.kind == CONTEXT and step.sequences == 1 and step.tokens >= SHARED_TOKENS * gpus

    def _shared_pass(self, step: Pass) -> float:
        """Of the tokens that one GPU has, which attend to as many as all do in the mean, and of the messages: states of
        runs of tokens in lightning layers, new keys and values in softmax layers, and hidden states at the end."""
        gpus, link, text = self.placement.gpus, self.gpu.link, self.placement.shares[0].text
        own = -(-step.tokens // gpus)
        seconds = self._share(self.placement.shares[0], Pass(own, step.past + (step.tokens - own) / 2)) + MESSAGES
        lightning, softmax = (layers_of(text, kind) for kind in (LIGHTNING, SOFTMAX))
        states = RUNS * gpus * state_bytes(text)  # of all layers
        sent = states + kv_bytes(text, 0, step.tokens, 1) + VALUE * step.tokens * text.hidden_size
        return seconds + (lightning + softmax + 1) * link.latency + (gpus - 1) / gpus * sent / link.bandwidth

    def _far_bytes(self, step: Pass) -> float:
        """Keys and values that come from host memory to each GPU; with `layers`, to one after the other."""
        if self.near is None:
            return 0.0
        far = step.sequences * max(0.0, step.past - self.near)
        return sum(far * kv_bytes(share.text, 0, 1, 1) for share in self.placement.shares)

    def _share(self, share: Share, step: Pass) -> float:
        text = share.text
        experts = self.experts(text, step.tokens)
        kinds = set(text.attn_type_list)
        seconds = sum(layers_of(text, kind) * (self._attention(text, kind, step) + experts) for kind in kinds)
        if step.decode:
            seconds += text.num_hidden_layers * START * (KERNELS + SPLIT_KERNELS * self._split)
        head = 2 * step.sequences * text.vocab_size * text.hidden_size
        return seconds + DENSE.seconds(self.gpu, table_bytes(text), head)

    def _attention(self, text: TextConfig, kind: int, step: Pass) -> float:
        heads, keys, d = text.num_attention_heads, text.num_key_value_heads, text.head_dim
        x, inner = VALUE * text.hidden_size, VALUE * heads * d
        seconds = self.products(projections(text, kind), step.tokens)
        seconds += 2 * ELEMENTWISE.seconds(self.gpu, 3 * x * step.tokens)  # residual sums and norms
        if kind == LIGHTNING:
            seconds += ELEMENTWISE.seconds(self.gpu, 3 * inner * step.tokens)  # gate and norm
            how = LIGHTNING_DECODE if step.decode else LIGHTNING_PREFILL
            states = 2 * step.sequences * state_bytes(text) / layers_of(text, LIGHTNING)
            return seconds + how.seconds(self.gpu, 4 * inner * step.tokens + states, 4 * step.tokens * heads * d * d)
        seconds += ELEMENTWISE.seconds(self.gpu, 2 * (inner + 2 * VALUE * keys * d) * step.tokens)  # rotary to pages
        cached = step.sequences * step.past + step.tokens
        nbytes = 2 * VALUE * d * (cached * keys + step.tokens * heads)
        if step.decode:
            return seconds + SOFTMAX_DECODE.seconds(self.gpu, nbytes, 4 * cached * heads * d)
        flops = 2 * step.tokens * (step.tokens + 2 * step.past) * heads * d
        return seconds + SOFTMAX_PREFILL.seconds(self.gpu, nbytes, flops)

    def experts(self, text: TextConfig, tokens: int) -> float:
        """Seconds of the experts of a layer."""
        flops = 6 * tokens * text.num_experts_per_tok * text.hidden_size * text.intermediate_size
        moved = 2 * VALUE * tokens * text.hidden_size
        codes, used = QUANTISED[self.form.experts.name][0], used_experts(text, tokens)
        return self._product(EXPERTS, codes, self.form.experts, expert(text), used, flops, moved)

    def products(self, matrices: list[Matrix], tokens: int) -> float:
        """Seconds of rows of so many tokens times each of the matrices of an attention."""
        storage = self.form.attention
        codes = QUANTISED[storage.name][1]
        return sum(self._product(DENSE, codes, storage, [m], 1, 2 * tokens * m[0] * m[1]) for m in matrices)

    def _product(
        self,
        plain: Efficiency,
        codes: Codes,
        storage: Storage,
        matrices: list[Matrix],
        times: float,
        flops: float,
        moved: float = 0.0,
    ) -> float:
        """Seconds of a product with stored matrices, so many times over; `moved`: bytes beside theirs."""
        weights, rate = times * stored(matrices, storage), self.gpu.fp8 if storage.name == "fp8" else None
        direct = codes.of(plain).seconds(self.gpu, weights + moved, flops, rate)
        if not codes.written:
            return direct
        wide = times * stored(matrices, BF16)
        writing = (weights + wide) / (self.gpu.bandwidth * codes.written)
        return min(direct, writing + plain.seconds(self.gpu, wide + moved, flops))

    def _spilled_bytes(self, step: Pass) -> float:
        """Of the experts that a pass uses, what comes from host memory to each GPU."""
        text = self.placement.shares[0].text
        used = used_experts(text, step.tokens) / text.num_local_experts
        return self.spilled * used * expert_bytes(text, self.form.experts)

    @property
    def _split(self) -> bool:
        """Whether ranks share each layer."""
        return self.placement.gpus > 1 and self.placement.kind not in (LAYERS, CONTEXT)

    def _communication(self, step: Pass) -> float:
        """Messages from and to the caller's process, and between GPUs. By layers: the activations, from GPU to GPU and
        from the last to all, the sums of the embeddings, and the logits of the last tokens. By tensor: the sums of both
        sub-layers, in which the squares of lightning's norm travel, and of the embeddings, and those logits. By context
        none: what is not shared out, every GPU computes for itself."""
        gpus, link = self.placement.gpus, self.gpu.link
        if gpus == 1:
            return 0.0
        if self.placement.kind == CONTEXT:
            return MESSAGES
        text = self.placement.shares[0].text
        x = VALUE * step.tokens * text.hidden_size
        sums = [(1, x), (1, VALUE * step.sequences * text.vocab_size * gpus)]
        passed = MESSAGES
        if self._split:
            sums.append((2 * text.num_hidden_layers, x))
        else:
            passed += gpus * (link.latency + x / link.bandwidth)
        hops = 2 * (gpus - 1) / gpus
        return passed + sum(count * (link.latency + hops * nbytes / link.bandwidth) for count, nbytes in sums)


def used_experts(text: TextConfig, tokens: int) -> float:
    """Experts of a layer that are expected to get one of so many tokens, if each is as likely."""
    count = text.num_local_experts
    return count * (1 - (1 - text.num_experts_per_tok / count) ** tokens)


def vision_seconds(gpu: Gpu, config: VisionConfig, tiles: int) -> float:
    """Seconds to encode so many tiles; without the projector, which is a hundredth of it."""
    tokens = config.patches**2 + 1
    products = config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    attention = 2 * tokens * config.hidden_size
    patches = 2 * config.patches**2 * 3 * config.patch_size**2 * config.hidden_size
    flops = tiles * (2 * tokens * config.num_hidden_layers * (products + attention) + patches)
    return VISION.seconds(gpu, VALUE * vision_values(config), flops)
