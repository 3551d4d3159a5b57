"""Two GPUs compute what one does, through NCCL and symmetric memory, launched op by op and as a CUDA graph.

pytest -m gpu -s tests/text_backbone/parallel
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]
BF16, FP32 = torch.bfloat16, torch.float32
# placement, quantization, whether it is loaded as it is stored, dtype
CASES: dict[str, tuple[str, str | None, bool, torch.dtype]] = {
    **{f"{placement}-bfloat16": (placement, None, False, BF16) for placement in ("tensor", "expert", "layers")},
    **{f"tensor-{form}": ("tensor", form, False, BF16) for form in ("int8", "fp8")},
    "tensor-nf4-stored": ("tensor", "nf4", True, BF16),
    "expert-nf4": ("expert", "nf4", False, BF16),
    "tensor-float32": ("tensor", None, False, FP32),
}


@pytest.fixture(scope="module")
def cases(worker: ModuleType) -> Any:
    return {name: worker.case(*fields) for name, fields in CASES.items()}


@pytest.fixture(scope="module")
def found(cases: Any, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    told = {name: told for name, (told, _) in cases.items()}
    return run_ranks(2, told, tmp_path_factory.mktemp("gpus"), "cuda")


def test_sums_short_and_long(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert all(rank["sums"]["right"].values()), rank["sums"]["right"]
    for size, (one_shot, nccl) in found[0]["sums"]["microseconds"].items():
        print(f"{size / 1024:6.0f} KiB: {one_shot:5.1f} us through symmetric memory, {nccl:5.1f} through NCCL")


@pytest.mark.parametrize("name", CASES)
def test_two_gpus_compute_what_one_does(cases: Any, found: list[dict[str, Any]], name: str, worker: ModuleType) -> None:
    told, model = cases[name]
    worker.compare([rank[name] for rank in found], told, model.to("cuda"), bound=1e-4)


@pytest.mark.parametrize("name", [name for name, (_, quantization, _, _) in CASES.items() if quantization is None])
def test_a_graph_repeats_the_step(found: list[dict[str, Any]], name: str) -> None:
    for rank in found:
        eager, recorded = rank[name]["graph"]
        assert eager.isfinite().all()
        torch.testing.assert_close(recorded, eager, rtol=1e-3, atol=1e-3)
