"""Two and four processes that share experts, heads and tokens out compute what one does, forward and backward."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from text_backbone import MiniMaxText, Packed, TextConfig
from text_backbone.parallel import expert_parallel, tensor_parallel
from text_backbone.parallel.dispatch import Sharing, Turn
from text_backbone.quantization import quantize_backbone

RAGGED = [[37, 1, 12, 30, 5], [3, 2], [64, 2], [1]]
BF16 = torch.bfloat16
FEW = [[64, 2], [1]]  # of which not every rank has one, if they share tokens out
CASES: dict[int, dict[str, dict[str, int]]] = {
    2: {
        "expert": {"expert": 2},
        "expert in groups": {"expert": 2, "groups": 3},
        "expert_tensor": {"expert_tensor": 2},
        "expert_tensor in groups": {"expert_tensor": 2, "groups": 2},
        "context x expert": {"context": 2, "expert": 2, "groups": 2},
        "context x expert_tensor": {"context": 2, "expert_tensor": 2},
        "tensor": {"tensor": 2},
        "tensor x expert": {"tensor": 2, "expert": 2, "groups": 2},
    },
    4: {
        "expert": {"expert": 4, "groups": 2},
        "data x expert": {"expert": 2},
        "expert x expert_tensor": {"expert": 2, "expert_tensor": 2, "groups": 2},
        "expert_tensor": {"expert_tensor": 4},
        "data x tensor": {"tensor": 2},
        "tensor": {"tensor": 4},
        "tensor x expert_tensor": {"tensor": 2, "expert_tensor": 4},
        "context x tensor": {"context": 2, "tensor": 2},
        "context x tensor x expert": {"context": 2, "tensor": 2, "expert": 2},
        "context x expert x expert_tensor": {"context": 2, "expert": 2, "expert_tensor": 2, "groups": 4},
    },
}


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def told(worker: ModuleType, dims: dict[str, int], ranks: int) -> Any:
    context, tensor = dims.get("context", 1), dims.get("tensor", 1)
    lengths = FEW if tensor > context else RAGGED
    return worker.case(lengths[: ranks // (context * tensor)], dims)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_what_one_process_does(
    run_ranks: Any, expert_worker: ModuleType, tmp_path: Any, ranks: int
) -> None:
    cases = {name: told(expert_worker, dims, ranks) for name, dims in CASES[ranks].items()}
    found = run_ranks(ranks, cases, tmp_path, worker="expert_worker")
    for name, case in cases.items():
        model = expert_worker.build(case, torch.device("cpu"))
        wants = [expert_worker.results(model, case, i, Packed.of(each)) for i, each in enumerate(case["lengths"])]
        parts = [rank[name] for rank in found]
        for part in parts:
            want = wants[part["batch"]]["hidden"][part["rows"]]
            assert relative(part["hidden"], want) < 1e-5, name
        loss = sum(part["loss"] for part in parts)
        assert float(loss) == pytest.approx(sum(float(want["loss"]) for want in wants), rel=1e-5), name
        grads = wants[-1]["grads"]  # which have added up
        assert grads.keys() == parts[0]["grads"].keys()
        for key, grad in grads.items():
            assert relative(sum(part["grads"][key] for part in parts), grad) < 1e-5, (name, key)


shares = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data())


@given(shares)
def test_what_is_sent_is_received(drawn: Any) -> None:
    """Of every group between every two ranks, and all assignments once."""
    ranks, parts, groups, data = drawn
    own = data.draw(st.integers(groups, 5))
    sharing = Sharing(ranks * own, ranks, groups)
    assert sorted(sharing.order) == list(range(ranks * own))
    for e in range(ranks):
        here = [sharing.order[i] for g in range(groups) for i in sharing.places(g, e)]
        assert here == list(range(e * own, (e + 1) * own))
    numbers = st.lists(st.integers(0, 9), min_size=ranks * own, max_size=ranks * own)
    counts = [[data.draw(numbers) for _ in range(parts)] for _ in range(ranks)]
    for g in range(groups):
        turns = [[Turn.of(counts, sharing, g, e, t) for t in range(parts)] for e in range(ranks)]
        for e in range(ranks):
            for t in range(parts):
                assert turns[e][t].receive == tuple(turns[source][t].send[e] for source in range(ranks))
                assert turns[e][t].shared == tuple(sum(turns[e][part].receive) for part in range(parts))
    sent = [sum(sum(Turn.of(counts, sharing, g, e, 0).send) for g in range(groups)) for e in range(ranks)]
    assert sent == [sum(counts[e][0]) for e in range(ranks)]


class Mesh(dict[str, Any]):
    """As far as refusals look."""

    @classmethod
    def of(cls, expert: int, expert_tensor: int) -> Any:
        sizes = {"expert": expert, "expert_tensor": expert_tensor}
        return cls({name: SimpleNamespace(size=lambda size=size: size) for name, size in sizes.items()})


@pytest.mark.parametrize(
    ("mesh", "groups", "cause"),
    [
        (Mesh.of(3, 1), 1, "8 experts cannot be shared out evenly over 3 ranks"),
        (Mesh.of(1, 6), 1, "40 inner units cannot be shared out evenly over 6 ranks"),
        (Mesh.of(4, 1), 3, "the 2 experts of a rank do not make 3 groups"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(expert_worker: ModuleType, mesh: Any, groups: int, cause: str) -> None:
    model = MiniMaxText(TextConfig(**expert_worker.CONFIG), device="meta")
    with pytest.raises(ValueError, match=cause):
        expert_parallel(model, mesh, torch.device("cpu"), groups)


def test_quantised_experts_are_refused(expert_worker: ModuleType) -> None:
    model = MiniMaxText(TextConfig(**expert_worker.CONFIG), device="meta")
    quantize_backbone(model, "int8")
    with pytest.raises(ValueError, match="QuantizedExperts cannot be shared out"):
        expert_parallel(model, Mesh.of(2, 1), torch.device("cpu"))


def test_heads_that_cannot_be_shared_out_are_refused(
    expert_worker: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MiniMaxText(TextConfig(**expert_worker.CONFIG), device="meta")
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    with pytest.raises(ValueError, match="4 heads of keys and values cannot be shared out evenly over 3 ranks"):
        tensor_parallel(model, None)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_two_gpus_in_bfloat16(run_ranks: Any, expert_worker: ModuleType, tmp_path: Any) -> None:
    """Through NCCL, overlapped and not: as far from float32 as one GPU is, and gradients of the same norm."""
    # All experts of all tokens, or rounding would choose others.
    shape = {"head_dim": 128, "hidden_size": 256, "intermediate_size": 512, "num_experts_per_tok": 8}
    dims = [{"expert": 2, "groups": 3}, {"expert_tensor": 2, "groups": 2}, {"tensor": 2, "expert": 2}]
    cases = {
        str(each): expert_worker.case([[4000, 1, 300], [97, 2100]][: 2 // each.get("tensor", 1)], each, BF16, **shape)
        for each in dims
    }
    found = run_ranks(2, cases, tmp_path, "cuda", worker="expert_worker")
    device = torch.device("cuda")
    for name, case in cases.items():
        one, exact = (
            [
                expert_worker.results(model, case, i, Packed.of(each, device=device))
                for i, each in enumerate(case["lengths"])
            ]
            for model in (expert_worker.build(case, device, dtype) for dtype in (BF16, torch.float32))
        )
        norms = []
        for key, grad in exact[-1]["grads"].items():
            got, near = sum(rank[name]["grads"][key].double() for rank in found), one[-1]["grads"][key]
            norms.append(torch.stack((got.norm(), near.double().norm().cpu())))
            assert relative(got.cuda(), grad) < 1.5 * relative(near, grad) + 1e-3, (name, key)
        ours, theirs = torch.stack(norms).norm(dim=0).tolist()
        assert ours == pytest.approx(theirs, rel=1e-3), name
        for rank in found:
            near, far = (run[rank[name]["batch"]]["hidden"] for run in (one, exact))
            assert relative(rank[name]["hidden"].cuda(), far) < 1.5 * relative(near, far), name
