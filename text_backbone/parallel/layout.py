"""What each rank holds of a decoder."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from text_backbone.config import TextConfig
from text_backbone.part import Part

# What is shared out, by placement; all else is on every rank.
PLACEMENTS: dict[str, frozenset[str]] = {
    "tensor": frozenset({"heads", "inner", "vocabulary"}),
    "expert": frozenset({"heads", "experts", "vocabulary"}),
    "layers": frozenset({"layers", "vocabulary"}),
    "context": frozenset(),
}
# What a cache holds of a layer -> the dimension of its heads.
CACHED = {"state": 0, "keys": 1, "values": 1}
# Last part of a matrix' released name -> what is shared out of it, and along which dimension.
_DIMENSIONS = {
    **dict.fromkeys(("qkv_proj", "output_gate", "q_proj", "k_proj", "v_proj", "self_attn.norm"), ("heads", 0)),
    **dict.fromkeys(("out_proj", "o_proj"), ("heads", 1)),
    **dict.fromkeys(("w1", "w3"), ("inner", 0)),
    "w2": ("inner", 1),
    **dict.fromkeys(("embed_tokens", "lm_head"), ("vocabulary", 0)),
    **{name: ("heads", dim) for name, dim in CACHED.items()},
}
_LAYER = re.compile(r"(?<=^model\.layers\.)\d+(?=\.)")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


@dataclass(frozen=True)
class Layout:
    """The share of one rank.

    Attributes:
        config: of the whole decoder.
        placement: "tensor" shares the heads of both attentions, the inner units of every expert and the vocabulary;
            "expert" whole experts in place of their inner units; "layers" runs of layers, and the vocabulary. "context"
            shares nothing of the decoder, but the tokens of long prompts.
        rank, ranks: which share, and of how many.

    Raises:
        ValueError: if it cannot be shared out so.
    """

    config: TextConfig
    placement: str
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement {self.placement!r} is not known: use {', '.join(map(repr, PLACEMENTS))}")
        config, shared = self.config, PLACEMENTS[self.placement]
        evenly: dict[str, int] = {}
        if "heads" in shared:
            evenly |= {"num_key_value_heads": config.num_key_value_heads}  # of which the query heads are a multiple
        if "inner" in shared:
            evenly |= {"intermediate_size": config.intermediate_size}
        for field, size in evenly.items():
            if size % self.ranks:
                raise ValueError(
                    f"placement {self.placement!r} needs {field} ({size}) to be a multiple of the ranks "
                    f"({self.ranks}): use fewer, or another placement"
                )
        least = {"vocab_size": config.vocab_size}
        if "experts" in shared:
            least |= {"num_local_experts": config.num_local_experts}
        if "layers" in shared:
            least |= {"num_hidden_layers": config.num_hidden_layers}
        for field, size in least.items():
            if size < self.ranks:
                raise ValueError(
                    f"placement {self.placement!r} needs {field} ({size}) to be at least the ranks ({self.ranks}): "
                    "use fewer, or another placement"
                )

    def shares(self, what: str) -> bool:
        return what in PLACEMENTS[self.placement]

    def share(self, size: int, rank: int | None = None) -> tuple[int, int]:
        """First and one past the last of `size` things that a rank holds, this one or another: equal to within one."""
        rank = self.rank if rank is None else rank
        return size * rank // self.ranks, size * (rank + 1) // self.ranks

    @property
    def heads(self) -> tuple[int, int]:
        """Of lightning attention."""
        heads = self.config.num_attention_heads
        return self.share(heads) if self.shares("heads") else (0, heads)

    @property
    def experts(self) -> tuple[int, int]:
        experts = self.config.num_local_experts
        return self.share(experts) if self.shares("experts") else (0, experts)

    @property
    def layers(self) -> tuple[int, int]:
        layers = self.config.num_hidden_layers
        return self.share(layers) if self.shares("layers") else (0, layers)

    @cached_property
    def local(self) -> TextConfig:
        """The config of what this rank computes, and of its cache. `vocab_size` and `num_local_experts` are the
        whole's: tokens and routers are."""
        config, changes = self.config, {}
        if self.shares("heads"):
            changes["num_attention_heads"] = config.num_attention_heads // self.ranks
            changes["num_key_value_heads"] = config.num_key_value_heads // self.ranks
        if self.shares("inner"):
            changes["intermediate_size"] = config.intermediate_size // self.ranks
        return replace(config, attn_type_list=config.attn_type_list[slice(*self.layers)], **changes)

    def part(self, name: str, shape: tuple[int, ...]) -> Part | None:
        """Which part of a tensor is here; None if all of it.

        Args:
            name: the released one, or the end of it that says which matrix of a layer it is.
            shape: of what is here.
        """
        stem, _, last = name.removesuffix(".weight").rpartition(".")
        if last == "norm" and stem.endswith(".self_attn"):
            last = "self_attn.norm"  # the model's own last norm is not shared out
        what, dim = _DIMENSIONS.get(last, ("", 0))
        if not self.shares(what):
            return None
        whole = list(shape)
        whole[dim] = self.config.vocab_size if what == "vocabulary" else shape[dim] * self.ranks
        ranges = [(0, size) for size in whole]
        ranges[dim] = self.share(whole[dim])
        return Part(tuple(whole), tuple(ranges))

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """A view of the part of a whole tensor that is here, by the end of its name, as of `part`."""
        what, dim = _DIMENSIONS.get(name.rpartition(".")[2], ("", 0))
        if not self.shares(what):
            return whole
        start, stop = self.share(whole.shape[dim])
        return whole.narrow(dim, start, stop - start)

    def whole_name(self, name: str) -> str:
        """The released name of what this rank's model would call `name` if it were all."""
        if name == "model.norm.weight" and self.layers[1] < self.config.num_hidden_layers:
            return f"model.layers.{self.layers[1]}.input_layernorm.weight"  # a run of layers ends with the next norm
        name = _LAYER.sub(lambda found: str(int(found[0]) + self.layers[0]), name)
        return _EXPERT.sub(lambda found: str(int(found[0]) + self.experts[0]), name)

    def owner(self, name: str) -> int | None:
        """The only rank that has anything of a tensor, by its released name; None if several have."""
        if self.shares("layers"):
            if name == "model.norm.weight":
                return self.ranks - 1
            return self._holder(_LAYER, name, self.config.num_hidden_layers, "input_layernorm" in name)
        return self._holder(_EXPERT, name, self.config.num_local_experts) if self.shares("experts") else None

    def _holder(self, number: re.Pattern[str], name: str, size: int, before: bool = False) -> int | None:
        """The rank of the one among `size` that a name has the number of, or of the one before it."""
        found = number.search(name)
        if found is None:
            return None
        index = max(0, int(found[0]) - before)
        return next(rank for rank in range(self.ranks) if index < self.share(size, rank)[1])
