"""Which parts of a model learn."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from vl.errors import ConfigError
from vl.training.config import PARTS

_PATTERNS = {
    "projector": ("vision.projector.*", "vision.image_newline"),
    "vision": ("vision.vit.*",),
    "text": ("language_model.*",),
}


def freeze(model: nn.Module, train: Sequence[str]) -> None:
    """Leaves gradients to what `train` names (see `RunConfig`) and takes them from every other parameter.

    Raises:
        ConfigError: if a pattern fits no parameter, or nothing is left to train.
    """
    learnt: set[str] = set()
    names = [name for name, _ in model.named_parameters()]
    for part in train:
        patterns = _PATTERNS.get(part, (part,))
        fitting = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        if not fitting and part not in _PATTERNS:
            raise ConfigError(
                f"run.train: no parameter is called {part!r}; use {', '.join(PARTS)}, or patterns of names such as "
                f"{names[len(names) // 2]}"
            )
        learnt |= fitting
    if not learnt:
        raise ConfigError(f"run.train: this model has none of {', '.join(train)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learnt)
