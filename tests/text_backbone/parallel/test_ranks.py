"""Two and four ranks compute what one process does, whatever is shared out, and together hold the checkpoint."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from text_backbone import MiniMaxText, TextConfig, init_weights, released_tensors, stored_tensors
from text_backbone.parallel import PLACEMENTS
from text_backbone.quantization import quantize_backbone

CONFIG: dict[str, Any] = {
    "vocab_size": 51,  # not a multiple of the ranks, as are not the layers nor the experts
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 256,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "rotary_dim": 8,
    "rope_theta": 1e4,
    "attn_type_list": (0, 1, 0, 0, 1),
    "linear_attention_alpha": 1.7,
    "full_attention_beta": 1.1,
    "mlp_alpha": 1.3,
}
# placement, quantization, whether it is loaded as it is stored, dtype
CASES: dict[str, tuple[str, str | None, bool, torch.dtype]] = {
    **{placement: (placement, None, False, torch.float32) for placement in PLACEMENTS},
    "tensor-nf4-stored": ("tensor", "nf4", True, torch.float32),
    "tensor-int8": ("tensor", "int8", False, torch.float32),
    "tensor-fp8-stored": ("tensor", "fp8", True, torch.float32),
    "tensor-nf4": ("tensor", "nf4", False, torch.float32),
    "expert-nf4-stored": ("expert", "nf4", True, torch.float32),
    "layers-int8": ("layers", "int8", False, torch.float32),
    "tensor-bfloat16": ("tensor", None, False, torch.bfloat16),
}
RUNS = [(2, name) for name in CASES] + [(4, name) for name in ("tensor", "expert", "layers", "tensor-nf4-stored")]
LENGTHS, CUTS = (37, 1, 12), [[20, 15, 1, 1], [1], [11, 1]]


def case(
    placement: str, quantization: str | None, stored: bool, dtype: torch.dtype
) -> tuple[dict[str, Any], MiniMaxText]:
    """A case for the ranks, and the model in one process."""
    # Rounding, where it differs, is not to change which experts a token goes to.
    fields = CONFIG | ({"num_experts_per_tok": 5} if quantization == "fp8" or dtype != torch.float32 else {})
    model = MiniMaxText(TextConfig(**fields), dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    init_weights(model, std=0.1, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
    tensors = {name: slot.read().clone() for name, slot in released_tensors(model).items()}
    if quantization is not None:
        quantize_backbone(model, quantization)
    if stored:
        tensors = {name: slot.read().clone() for name, slot in stored_tensors(model).items()}
    generator = torch.Generator().manual_seed(2)
    told = {
        "config": fields,
        "placement": placement,
        "quantization": quantization,
        "dtype": dtype,
        "stored": stored,
        "tensors": tensors,
        "ids": [torch.randint(0, 51, (n,), generator=generator) for n in LENGTHS],
        "cuts": CUTS,
    }
    return told, model


Found = dict[int, list[dict[str, dict[str, Any]]]]


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple[dict[str, Any], MiniMaxText]]:
    return {name: case(*fields) for name, fields in CASES.items()}


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


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@EACH
def test_every_rank_computes_what_one_process_does(
    cases: Any, found: Found, ranks: int, name: str, worker: ModuleType
) -> None:
    told, model = cases[name]
    want = worker.results(model, told)
    exact = dict[str, Tensor]()
    if told["dtype"] != torch.float32 or told["quantization"] == "fp8":  # which round otherwise, but not worse
        wide = MiniMaxText(model.config)
        for key, slot in released_tensors(model).items():
            released_tensors(wide)[key].load(slot.read())
        exact = worker.results(wide, told)
    for key, tensor in want.items():
        got = found[ranks][0][name][key]
        assert got.dtype == tensor.dtype
        for rank in found[ranks]:
            assert torch.equal(rank[name][key], got), key
        if key == "embeds":
            assert torch.equal(got, tensor)
        elif key == "last":
            assert relative(got, found[ranks][0][name]["logits"][-1]) < 1e-5
        elif exact:
            assert relative(got, exact[key]) < 1.3 * relative(tensor, exact[key]) < 0.3, key
        else:
            assert relative(got, tensor) < 1e-5, key


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
    assert whole <= sum(held) < 1.2 * whole
    # Five layers or experts are not shared evenly.
    assert max(held) < whole / ranks * (1.1 if name.startswith("tensor") else 1.7)


@pytest.mark.parametrize("ranks", [2, 4])
def test_experts_by_their_own_assignments_or_by_all(found: Found, ranks: int) -> None:
    for rank in found[ranks]:
        own, every = rank["expert"]["static"]
        torch.testing.assert_close(every, own)
    assert any(rank["expert"]["static"][0].any() for rank in found[ranks])
