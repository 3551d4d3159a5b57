"""Several projections of one input, and one into a part of a message."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from text_backbone.linear import Together, linear, project, project_to


class Counting(Together):
    """Multiplies by a number; says how it was asked."""

    def __init__(self, factor: float, able: bool = True) -> None:
        super().__init__()
        self.factor, self.able, self.asked = factor, able, list[str]()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append("forward")
        return x * self.factor

    def together(self, x: Tensor, others: Sequence[nn.Module]) -> list[Tensor] | None:
        self.asked.append("together")
        if not self.able:
            return None
        return [x * module.factor for module in (self, *others) if isinstance(module, Counting)]

    def write(self, y: Tensor, x: Tensor) -> bool:
        self.asked.append("write")
        if self.able:
            torch.mul(x, self.factor, out=y)
        return self.able


def test_projections_that_can_be_computed_together_are() -> None:
    one, two = Counting(2.0), Counting(3.0)
    assert [y.item() for y in project(torch.ones(1, 1), one, two)] == [2, 3]
    assert (one.asked, two.asked) == (["together"], [])


def test_others_are_computed_when_they_are_asked_for() -> None:
    """So that the second does not take memory while the first is worked on."""
    one, two = Counting(2.0, able=False), Counting(3.0)
    projected = project(torch.ones(1, 1), one, two)
    assert next(projected).item() == 2
    assert two.asked == []
    assert next(projected).item() == 3


@pytest.mark.parametrize("which", [0, 1])
def test_hooks_see_every_projection(which: int) -> None:
    """Adapters are hooks."""
    both = [Counting(2.0), Counting(3.0)]
    both[which].register_forward_hook(lambda module, inputs, output: output + 10)
    want = [2.0, 3.0]
    want[which] += 10
    assert [y.item() for y in project(torch.ones(1, 1), *both)] == want
    y = torch.zeros(1, 3)
    project_to(y[:, 1:2], torch.ones(1, 1), both[which])
    assert y.tolist() == [[0, want[which], 0]]


@pytest.mark.parametrize("able", [False, True])
def test_a_projection_is_written_into_a_part_of_a_message(able: bool) -> None:
    y, module = torch.zeros(2, 3), Counting(2.0, able)
    project_to(y[:, 1:2], torch.tensor([[1.0], [5.0]]), module)
    assert y.tolist() == [[0, 2, 0], [0, 10, 0]]
    assert module.asked == (["write"] if able else ["write", "forward"])


def test_plain_projections() -> None:
    one, two = linear(3, 2), linear(3, 4)
    for module in (one, two):
        nn.init.normal_(module.weight)
    x = torch.randn(5, 3)
    assert all(map(torch.equal, project(x, one, two), (one(x), two(x))))
    y = torch.zeros(5, 4)
    with torch.no_grad():
        project_to(y[:, :2], x, one)
    assert torch.equal(y[:, :2], one(x))
