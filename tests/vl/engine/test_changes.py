"""A module's contents are another list after anything that could change what it computes, and the same otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vl.engine.changes import contents


class Adapter(nn.Module):
    """What a library's adapter looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 3)
        self.register_buffer("scale", torch.ones(3))
        self._disabled, self.active, self.scaling, self.helper = False, ["one"], {"one": 0.5}, object()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) * self.scale


def step(module: Adapter) -> None:
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()


CHANGES: dict[str, Callable[[Adapter], object]] = {
    "training": step,
    "loading": lambda module: module.load_state_dict(Adapter().state_dict()),
    "casting": lambda module: module.half(),
    "a buffer": lambda module: module.scale.mul_(2),
    "another tensor": lambda module: setattr(module.base, "weight", nn.Parameter(torch.zeros(3, 3))),
    "another module": lambda module: setattr(module, "base", nn.Sequential(module.base)),
    "a hook": lambda module: module.base.register_forward_hook(lambda *args: None),
    "a hook before": lambda module: module.register_forward_pre_hook(lambda *args: None),
    "a switch": lambda module: setattr(module, "_disabled", True),
    "a name in a list": lambda module: module.active.append("two"),
    "a number in a table": lambda module: module.scaling.update(one=0.7),
    "the mode": lambda module: module.train(not module.training),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen(name: str) -> None:
    module = nn.ModuleDict({"inner": Adapter()})
    before = contents(module)
    with torch.no_grad() if name == "a buffer" else torch.enable_grad():
        CHANGES[name](module["inner"])  # type: ignore[arg-type]
    assert contents(module) != before


def test_use_changes_nothing() -> None:
    module = Adapter()
    before = contents(module)
    for grad in (torch.enable_grad(), torch.inference_mode()):
        with grad:
            module(torch.ones(2, 3))
    module.helper = object()
    assert contents(module) == before


def test_tensors_made_in_inference_mode_have_no_count_of_writes() -> None:
    with torch.inference_mode():
        module = Adapter()
    assert contents(module) == contents(module)
