"""Anything is seen that could change what a module computes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from vl.engine.changes import Change, Changes


class Adapter(nn.Module):
    """What a library's adapter looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 3)
        self.register_buffer("scale", torch.ones(3))
        self.beside: list[Beside] = []
        self._disabled, self.active, self.scaling, self.helper = False, ["one"], {"one": 0.5}, object()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) * self.scale


def step(module: Adapter) -> None:
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()


class Beside(nn.Module):
    """An adapter that lives beside what it adapts."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.scale, self.weight = 1.0, nn.Parameter(torch.zeros(3))
        self.handle = module.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output + self.scale * self.weight


def rounded(module: nn.Module) -> None:
    """Nothing but the numbers is another afterwards; the memory of before may be used again."""
    module.half()
    module.float()


WRITTEN: dict[str, Callable[[Adapter], object]] = {
    "training": step,
    "loading": lambda module: module.load_state_dict(Adapter().state_dict()),
    "a buffer": lambda module: module.scale.mul_(2),
    "one number": lambda module: module.base.weight[1, 1].add_(1),
    "an adapter beside it": lambda module: module.beside[0].weight.add_(1),
}
REBUILT: dict[str, Callable[[Adapter], object]] = {
    "casting": lambda module: module.half(),
    "casting there and back": rounded,
    "another tensor": lambda module: setattr(module.base, "weight", nn.Parameter(torch.zeros(3, 3))),
    "another tensor's data": lambda module: setattr(module.base.weight, "data", torch.zeros(3, 3)),
    "another module": lambda module: setattr(module, "base", nn.Sequential(module.base)),
    "a hook": lambda module: module.base.register_forward_hook(lambda *args: None),
    "a hook before": lambda module: module.register_forward_pre_hook(lambda *args: None),
    "a hook less": lambda module: module.beside[0].handle.remove(),
    "a switch": lambda module: setattr(module, "_disabled", True),
    "a switch beside it": lambda module: setattr(module.beside[0], "scale", 0.5),
    "a name in a list": lambda module: module.active.append("two"),
    "a number in a table": lambda module: module.scaling.update(one=0.7),
    "another function": lambda module: setattr(module.base, "forward", lambda x: x),
    "the mode": lambda module: module.train(not module.training),
}


def made() -> tuple[nn.Module, Adapter]:
    inner = Adapter()
    inner.beside = [Beside(inner.base)]  # in a list, it is no submodule
    return nn.ModuleDict({"inner": inner}), inner


@pytest.mark.parametrize("name", [*WRITTEN, *REBUILT])
def test_changes_are_seen_once(name: str) -> None:
    module, inner = made()
    changes = Changes(module, nn.Linear(2, 2))
    with torch.enable_grad() if name == "training" else torch.no_grad():
        (WRITTEN | REBUILT)[name](inner)
    assert changes.look() is (Change.WRITTEN if name in WRITTEN else Change.REBUILT)
    assert changes.look() is Change.NONE


def test_use_changes_nothing() -> None:
    module, inner = made()
    changes = Changes(module)
    for grad in (torch.enable_grad(), torch.inference_mode()):
        with grad:
            inner(torch.ones(2, 3))
    inner.helper = object()
    module.to("cpu", torch.float32)
    assert changes.look() is Change.NONE


def test_tensors_made_in_inference_mode_have_no_count_of_writes() -> None:
    with torch.inference_mode():
        module = Adapter()
    assert Changes(module).look() is Change.NONE


def test_nothing_is_kept_of_a_model_that_was_moved() -> None:
    module = nn.Linear(3, 3)
    changes, storage = Changes(module), StorageWeakRef(module.weight.untyped_storage())
    module.half()
    assert storage.expired()
    assert changes.look() is Change.REBUILT


def test_other_memory_at_the_same_address_is_seen() -> None:
    """As memory that was given back, and taken for another tensor."""
    module, place = nn.Linear(3, 3), np.zeros((3, 3), np.float32)
    module.weight.data = torch.from_numpy(place)
    changes, address = Changes(module), module.weight.data_ptr()
    module.weight.data = torch.from_numpy(place)
    assert module.weight.data_ptr() == address
    assert changes.look() is Change.REBUILT
