"""What one GPU holds of a model, and how a model is cut into such shares."""

from __future__ import annotations

from dataclasses import dataclass, replace

from text_backbone.config import TextConfig
from vision_encoder.config import VisionConfig
from vl.config import VLConfig

ONE, TENSOR, LAYERS, CONTEXT, SPILLED = "one GPU", "tensor", "layers", "context", "spilled"
PLACEMENTS = (ONE, TENSOR, LAYERS, CONTEXT, SPILLED)


@dataclass(frozen=True, slots=True)
class Share:
    """A GPU's part of a model.

    Attributes:
        text: its part of every layer that it has; `vocab_size`, of which it has rows of the embeddings and of the
            output head, and the other sizes are its own.
        vision: the tower, if it has it.
        cut: whether it has parts of the layers' matrices, and not whole ones.
    """

    text: TextConfig
    vision: VisionConfig | None = None
    cut: bool = False

    def consists_of(self, block: int) -> bool:
        """Whether its parts of matrices, if they are parts, consist of whole blocks of so many columns."""
        text = self.text
        columns = (text.hidden_size, text.num_attention_heads * text.head_dim, text.intermediate_size)
        return not self.cut or all(count % block == 0 for count in columns)


@dataclass(frozen=True, slots=True)
class Placement:
    """A model on GPUs: the shares of those that differ, and how the GPUs work together.

    Attributes:
        kind: `one GPU`; `tensor`: each GPU has a part of every matrix (heads, inner units of every expert, vocabulary),
            and sums go between them; `layers`: a run of layers each, one GPU working at a time, and a part of the
            vocabulary; `context`: all of it on each, which read some tokens of a prompt each; `spilled`: as `one GPU`
            or `tensor`, with experts in host memory.
        gpus: how many.
        shares: one that stands for all but with `layers`.
    """

    kind: str
    gpus: int
    shares: tuple[Share, ...]


def whole(config: VLConfig) -> Placement:
    return Placement(ONE, 1, (Share(config.text, vision=config.vision),))


def by_tensor(config: VLConfig, gpus: int) -> Placement | None:
    """Every matrix in `gpus` parts, the tower on each; None if the heads do not divide, or if it is one GPU."""
    text = config.text
    heads, keys = text.num_attention_heads, text.num_key_value_heads  # of which the others are a multiple
    if gpus == 1 or keys % gpus or text.intermediate_size % gpus:
        return None
    part = replace(
        text,
        num_attention_heads=heads // gpus,
        num_key_value_heads=keys // gpus,
        intermediate_size=text.intermediate_size // gpus,
        vocab_size=-(-text.vocab_size // gpus),
    )
    return Placement(TENSOR, gpus, (Share(part, vision=config.vision, cut=True),))


def by_layers(config: VLConfig, gpus: int) -> Placement | None:
    """Runs of layers, of equal lengths but for one layer, and of the vocabulary; the tower on each.

    None if there are too few layers, or if it is one GPU.
    """
    kinds = config.text.attn_type_list
    if gpus == 1 or len(kinds) < gpus:
        return None
    ends = [len(kinds) * (i + 1) // gpus for i in range(gpus)]
    rows = -(-config.text.vocab_size // gpus)
    shares = [
        Share(replace(config.text, attn_type_list=kinds[start:end], vocab_size=rows), vision=config.vision)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return Placement(LAYERS, gpus, tuple(shares))


def by_context(config: VLConfig, gpus: int) -> Placement | None:
    """The whole model on every GPU; None if it is one."""
    return None if gpus == 1 else replace(whole(config), kind=CONTEXT, gpus=gpus)


def spilled(config: VLConfig, gpus: int) -> Placement | None:
    """The experts partly in host memory, all else as on one GPU or by tensor; None where that cannot be."""
    base = whole(config) if gpus == 1 else by_tensor(config, gpus)
    return base and replace(base, kind=SPILLED)


def placements(config: VLConfig, gpus: int) -> list[Placement]:
    """All that are possible on so many GPUs."""
    several = (by_tensor(config, gpus), by_layers(config, gpus), by_context(config, gpus))
    found = (whole(config),) if gpus == 1 else several
    return [placement for placement in (*found, spilled(config, gpus)) if placement]
