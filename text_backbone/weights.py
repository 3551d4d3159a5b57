"""The names under which MiniMax-Text-01 was released, as views of our parameters."""

from __future__ import annotations

from torch import Tensor

from text_backbone.model import MiniMaxText


def released_tensors(model: MiniMaxText) -> dict[str, Tensor]:
    """Every tensor of a released checkpoint: name -> view of the parameter that holds it, in the file's shape.

    Loading is `view.copy_(tensor)` and saving is writing the views; MiniMax-VL-01 has the same names behind
    `language_model.`. All are [out_features, in_features] matrices or norm vectors; the experts, one file tensor per
    expert and matrix, are slices of the stacked parameters.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        released = name if name.startswith("lm_head.") else f"model.{name}"
        data = parameter.detach()
        if name.endswith("experts.w13"):
            stem = released.removesuffix("w13")
            for e, (w1, w3) in enumerate(data.unbind()):
                tensors |= {f"{stem}{e}.w1.weight": w1, f"{stem}{e}.w3.weight": w3}
        elif name.endswith("experts.w2"):
            stem = released.removesuffix("w2")
            tensors |= {f"{stem}{e}.w2.weight": w2 for e, w2 in enumerate(data.unbind())}
        else:
            tensors[released] = data
    return tensors
