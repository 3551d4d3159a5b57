"""What quantization costs in numerics alone: layers of full width with random weights, beside the same in 16 bits.

One layer is in memory at a time, made anew for every format from the same random numbers: 11 GiB in 16 bits, and the
format's own beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from text_backbone import Packed, TextConfig
from text_backbone.config import hybrid_layers
from text_backbone.head import OutputHead
from text_backbone.kernels.rotary import rotary_table
from text_backbone.layer import DecoderLayer
from text_backbone.norms import ResidualNorm
from text_backbone.quantization import quantize_layer
from vl.bench.formats import fill_named
from vl.bench.model import small_config
from vl.loading import pick_device, pick_dtype
from vl.quantization import FORMATS

LAYERS = 8
AT_A_TIME = 256  # tokens whose logits are compared at once: 0.4 GB in float64 at the released vocabulary

Say = Callable[[str], None]


@dataclass(frozen=True)
class Numerics:
    """One format beside the same weights in `dtype`.

    Attributes:
        divergence: mean Kullback-Leibler divergence of the next token, in nats.
        agreement: share of positions where both have the same most likely token.
        error: of the logits, relative: the norm of the difference over the norm.
        hidden_error: the same, of the states after the final norm.
    """

    name: str
    dtype: str
    layers: int
    tokens: int
    divergence: float
    agreement: float
    error: float
    hidden_error: float


def bench_numerics(
    names: Sequence[str] = FORMATS,
    *,
    full: bool | None = None,
    tokens: int = 4096,
    device: torch.device | str | None = None,
    say: Say = lambda _: None,
) -> Iterator[Numerics]:
    """Read a prompt of random tokens with the layers in 16 bits, then in each of `names`.

    Args:
        names: of `FORMATS`.
        full: the released widths, or scaled ones; None: as the device suggests.
        tokens: of the prompt.
        device: where; bfloat16 on a GPU, float32 on a CPU.
        say: told what is being measured.

    Raises:
        DeviceError: if the device cannot be used.
    """
    place = pick_device(device)
    dtype = pick_dtype(None, place)
    full = place.type == "cuda" if full is None else full
    config = TextConfig(attn_type_list=hybrid_layers(LAYERS)) if full else small_config()
    plain = str(dtype).removeprefix("torch.")
    with torch.inference_mode():
        say(plain)
        right = _read(config, None, tokens, place, dtype)
        head = OutputHead(config.hidden_size, config.vocab_size, device=place, dtype=dtype)
        fill_named(head, "lm_head", place)
        for name in names:
            say(name)
            yield _compare(name, plain, config, head, right, _read(config, name, tokens, place, dtype))


def _read(config: TextConfig, form: str | None, tokens: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[tokens, hidden] after the final norm, whose weights are ones as are those of all norms."""
    norm = ResidualNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)
    fill_named(norm, "norm", device)
    embeds = nn.Embedding.from_pretrained(
        torch.empty(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
    )
    fill_named(embeds, "embed_tokens", device)
    ids = torch.randint(config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    packed = Packed.of([tokens], device=device)
    table = rotary_table(packed.positions, config.rotary_dim, config.rope_theta)
    x = norm(embeds(ids.to(device)))
    del embeds
    for i in range(config.num_hidden_layers):
        layer = DecoderLayer(config, i, device=device, dtype=dtype)
        fill_named(layer, f"layers.{i}", device)
        if form is not None:
            quantize_layer(layer, form)
        x, _ = layer(x, packed, table, None, norm)
        del layer  # before the next is made
    return x


def _compare(name: str, dtype: str, config: TextConfig, head: OutputHead, right: Tensor, found: Tensor) -> Numerics:
    divergence, same = 0.0, 0
    norms = torch.zeros(2, dtype=torch.float64)  # squares of the difference, and of the logits
    for states, others in zip(right.split(AT_A_TIME), found.split(AT_A_TIME), strict=True):
        a, b = head(states), head(others)
        norms += torch.stack([(a - b).double().square().sum(), a.double().square().sum()]).cpu()
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        divergence += (p.exp() * (p - q)).sum().item()
    hidden = (right.double() - found.double()).norm() / right.double().norm()
    return Numerics(
        name=name,
        dtype=dtype,
        layers=config.num_hidden_layers,
        tokens=len(right),
        divergence=divergence / len(right),
        agreement=same / len(right),
        error=(norms[0] / norms[1]).sqrt().item(),
        hidden_error=hidden.item(),
    )
