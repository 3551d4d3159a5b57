"""Two and four ranks compute what one process does, whatever is shared out, and together hold the checkpoint."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from text_backbone import MiniMaxText, released_tensors, stored_tensors
from text_backbone.parallel import PLACEMENTS

# placement, quantization, whether it is loaded as it is stored, dtype, how many experts of a layer are on the device
CASES: dict[str, tuple[Any, ...]] = {
    **{placement: (placement, None, False, torch.float32) for placement in PLACEMENTS},
    "tensor-nf4-stored": ("tensor", "nf4", True, torch.float32),
    "tensor-int8": ("tensor", "int8", False, torch.float32),
    "tensor-fp8-stored": ("tensor", "fp8", True, torch.float32),
    "tensor-nf4": ("tensor", "nf4", False, torch.float32),
    "expert-nf4-stored": ("expert", "nf4", True, torch.float32),
    "layers-int8": ("layers", "int8", False, torch.float32),
    "tensor-bfloat16": ("tensor", None, False, torch.bfloat16),
    "tensor-float16": ("tensor", None, False, torch.float16),
    "tensor-nf4-stored-spilled": ("tensor", "nf4", True, torch.float32, 2),
    "expert-spilled": ("expert", None, False, torch.float32, 1),
    "layers-int8-spilled": ("layers", "int8", False, torch.float32, 3),
    "context-spilled": ("context", None, False, torch.float32, 1),
}
RUNS = [(2, name) for name in CASES] + [(4, name) for name in ("tensor", "expert", "layers", "tensor-nf4-stored")]
Found = dict[int, list[dict[str, dict[str, Any]]]]


@pytest.fixture(scope="module")
def cases(worker: ModuleType) -> dict[str, tuple[dict[str, Any], MiniMaxText]]:
    return {name: worker.case(*fields) for name, fields in CASES.items()}


@pytest.fixture(scope="module")
def found(cases: Any, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """By the number of ranks, what each has of every case."""
    return {
        ranks: run_ranks(
            ranks, {name: cases[name][0] for n, name in RUNS if n == ranks}, tmp_path_factory.mktemp(f"{ranks}-ranks")
        )
        for ranks in (2, 4)
    }


EACH = pytest.mark.parametrize(("ranks", "name"), RUNS)


@EACH
def test_every_rank_computes_what_one_process_does(
    cases: Any, found: Found, ranks: int, name: str, worker: ModuleType
) -> None:
    worker.compare([rank[name] for rank in found[ranks]], *cases[name])


@EACH
def test_the_ranks_give_the_checkpoint_back(cases: Any, found: Found, ranks: int, name: str) -> None:
    told, model = cases[name]
    want = {key: slot.read() for key, slot in (stored_tensors if told["stored"] else released_tensors)(model).items()}
    shapes = {key: slot.shape for key, slot in (stored_tensors if told["stored"] else released_tensors)(model).items()}
    for rank in found[ranks]:
        assert rank[name]["shapes"] == shapes
        for key, tensor in rank[name]["read"].items():
            assert tensor.dtype == want[key].dtype
            assert torch.equal(tensor.view(torch.uint8), want[key].contiguous().view(torch.uint8)), key


@EACH
def test_no_rank_holds_more_than_its_share(cases: Any, found: Found, ranks: int, name: str) -> None:
    _, model = cases[name]
    whole = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    held = [rank[name]["bytes"] for rank in found[ranks]]
    if name.startswith("context"):
        assert held == [whole] * ranks
        return
    assert whole <= sum(held) < 1.2 * whole
    # Five layers or experts are not shared evenly.
    assert max(held) < whole / ranks * (1.1 if name.startswith("tensor") else 1.7)


@pytest.mark.parametrize("ranks", [2, 4])
def test_experts_by_their_own_assignments_or_by_all(found: Found, ranks: int) -> None:
    for rank in found[ranks]:
        own, every = rank["expert"]["static"]
        torch.testing.assert_close(every, own)
    assert any(rank["expert"]["static"][0].any() for rank in found[ranks])
