"""Long prompts through the engine: how fast they are read, what memory that takes, and how fast is written after them.

The model is the slice of `vl.bench.model`, its weights random, or the same with softmax attention in every layer: what
the paper compares.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from preprocessing import Inputs
from text_backbone.cache import bytes_needed
from text_backbone.config import LIGHTNING, SOFTMAX
from vl.bench.made import random_model
from vl.bench.model import CHUNK, PAGE, prefill_floor, slice_config
from vl.bench.records import Ceilings, Setting
from vl.config import VLConfig
from vl.engine import Engine, EngineConfig, Generation, Reading, SamplingParams
from vl.engine.embedding import stopwatch

Attention = Literal["hybrid", "softmax"]

LENGTHS = (8192, 32768, 131072, 524288, 1048576)
SMALL = (128, 256, 512)
WRITTEN = 33  # tokens after each prompt, of which the first is the prompt's
_SHORT = 2**17  # tokens up to which a prompt is read twice: what the first time compiles does not count


@dataclass(frozen=True)
class LongRow:
    """One length.

    Attributes:
        attention: of the layers: `hybrid` as released, or `softmax` in all.
        tokens: of the prompt.
        seconds: to read it. `floor`: the least, by the device's ceilings.
        kinds: seconds of `seconds` in the layers' parts: `lightning` and `softmax` attention, `experts`.
        peak: bytes on the device at most while it was read and written after, beyond weights and cache; 0 on a CPU.
        cache: bytes of a cache that holds such a prompt.
        decode: seconds of one token written after it.
    """

    attention: str
    tokens: int
    seconds: float
    floor: float
    kinds: dict[str, float]
    peak: int
    cache: int
    decode: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def of_floor(self) -> float:
        """The floor's part of the time."""
        return self.floor / self.seconds

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"rate": self.rate, "of_floor": self.of_floor}

    @classmethod
    def of_json(cls, figures: dict[str, Any]) -> LongRow:
        """What `as_json` made. Raises TypeError or KeyError if it did not."""
        return cls(**{f.name: figures[f.name] for f in fields(cls)})


def bench_long(
    setting: Setting,
    ceilings: Ceilings,
    lengths: Sequence[int],
    *,
    attention: Attention = "hybrid",
    prefill_tokens: int = CHUNK,
    progress: Callable[[Reading], object] | None = None,
) -> Iterator[LongRow]:
    """Read random prompts of so many tokens and write after each, the shortest first.

    Args:
        prefill_tokens: read in a pass.
        progress: told how far a prompt is read.
    """
    config, _ = slice_config(setting)
    if attention == "softmax":
        config = replace(config, attn_type_list=(SOFTMAX,) * config.num_hidden_layers)
    whole = replace(VLConfig(config), quantization=setting.quantization)
    model = random_model(whole, f"slice, {attention}", setting.dtype, None, setting.device, None)
    held, times = _allocated(setting.device), LayerTimes(model.language_model, setting.device)
    most = max(lengths) + WRITTEN
    settings = EngineConfig(
        max_batch_size=1, prefill_tokens=prefill_tokens, cache_tokens=most, page_size=PAGE, prefix_memory=0
    )
    engine = Engine(model, settings)

    def run(tokens: int) -> Generation:
        ids = torch.randint(config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(tokens))
        inputs = Inputs(ids, torch.empty(0, 3, 0, 0, dtype=torch.uint8), [])
        times.clear()
        return engine.run([engine.prepare(inputs, SamplingParams(max_new_tokens=WRITTEN))], progress)[0]

    model.end_ids = frozenset()  # random weights would stop at one of them anywhere
    run(min(prefill_tokens, max(lengths)))  # the cache and the first kernels
    for tokens in sorted(set(lengths)):
        if tokens <= _SHORT:
            run(tokens)
        assert engine.runner is not None
        cache = engine.runner.cache.nbytes
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.device)
        timings = run(tokens).timings
        yield LongRow(
            attention,
            tokens,
            timings.prefill,
            prefill_floor(config, tokens, setting.dtype.itemsize, setting.quantization, ceilings),
            times.seconds(),
            max(0, _peak(setting.device) - held - cache),
            bytes_needed(config, slots=1, pages=math.ceil(tokens / PAGE), page_size=PAGE, dtype=setting.dtype),
            timings.decode / (WRITTEN - 1),
        )


class LayerTimes:
    """What the layers' parts take while prompts are read, by kind, on the device's own clock."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._begun: dict[nn.Module, Callable[[], Callable[[], float]]] = {}
        self._watches: list[tuple[str, Callable[[], float]]] = []
        for layer, kind in zip(model.layers, model.config.attn_type_list, strict=True):  # type: ignore[arg-type, union-attr]
            self._time(layer.self_attn, "lightning" if kind == LIGHTNING else "softmax")
            self._time(layer.block_sparse_moe, "experts")

    def clear(self) -> None:
        self._watches.clear()

    def seconds(self) -> dict[str, float]:
        """By kind, since `clear`; to be asked when the work is known to be done."""
        sums: dict[str, float] = defaultdict(float)
        for kind, watch in self._watches:
            sums[kind] += watch()
        return dict(sums)

    def _time(self, module: nn.Module, kind: str) -> None:
        def begin(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if len(args[0]) > 1:  # steps of writing are recorded as graphs, in which nobody can look at a clock
                self._begun[module] = stopwatch(self._device)

        def end(module: nn.Module, args: tuple[Tensor, ...], _: object) -> None:
            if len(args[0]) > 1:
                self._watches.append((kind, self._begun.pop(module)()))

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def draw_long(rows: Sequence[LongRow], path: Path) -> None:
    """Time to read and bytes of cache against length, a line for each kind of attention, into one PNG.

    Raises:
        ImportError: without matplotlib.
        OSError: if `path` cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(10.4, 4.4), constrained_layout=True)
    for attention, colour in (("hybrid", "#d6336c"), ("softmax", "#1c7ed6")):
        mine = sorted((row for row in rows if row.attention == attention), key=lambda row: row.tokens)
        if not mine:
            continue
        label = "hybrid, 7 of 8 layers lightning" if attention == "hybrid" else "softmax in every layer"
        lengths = [row.tokens for row in mine]
        time.plot(lengths, [row.seconds for row in mine], marker="o", color=colour, label=label)
        memory.plot(lengths, [row.cache / 2**30 for row in mine], marker="o", color=colour, label=label)
    for axis, title, unit in ((time, "reading a prompt", "seconds"), (memory, "cache", "GiB")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        sizes = sorted({row.tokens for row in rows})
        axis.set_xticks(sizes, [_short(size) for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("tokens of the prompt")
        axis.set_ylabel(unit)
        axis.legend(fontsize=9)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def _short(tokens: int) -> str:
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return str(tokens)
