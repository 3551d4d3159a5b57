"""Cases of a split decoder, and the process of one rank, which runs those that it is given. See `conftest.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig, init_weights, released_tensors, stored_tensors
from text_backbone.parallel import Collectives, SplitText, split_backbone
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

LENGTHS, CUTS = (37, 1, 12), [[20, 15, 1, 1], [1], [11, 1]]


def case(
    placement: str, quantization: str | None, stored: bool, dtype: torch.dtype, slots: int | None = None
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
        "slots": slots,
        "dtype": dtype,
        "stored": stored,
        "tensors": tensors,
        "ids": [torch.randint(0, 51, (n,), generator=generator) for n in LENGTHS],
        "cuts": CUTS,
    }
    return told, model


def fed(model: MiniMaxText, ids: list[Tensor], cuts: list[list[int]]) -> Tensor:
    """Logits of every token when sequence i is fed in pieces of `cuts[i]` tokens, all sequences in one batch."""
    device, dtype = model.norm.weight.device, model.norm.weight.dtype
    cache = HybridCache(model.config, slots=len(ids), pages=12, page_size=16, device=device, dtype=dtype)
    slots, outs, done = [cache.acquire() for _ in ids], [[] for _ in ids], [0] * len(ids)  # type: ignore[var-annotated]
    for step in range(max(map(len, cuts))):
        live = [i for i in range(len(ids)) if step < len(cuts[i])]
        lengths = [cuts[i][step] for i in live]
        for i, length in zip(live, lengths, strict=True):
            cache.reserve(slots[i], done[i] + length)
        tokens = torch.cat([ids[i][done[i] : done[i] + n] for i, n in zip(live, lengths, strict=True)])
        packed = Packed.of(lengths, past=[done[i] for i in live], slots=[slots[i] for i in live], device=device)
        logits = model.logits(model(model.embed(tokens), packed, cache))
        for i, piece in zip(live, logits.split(lengths), strict=True):
            outs[i].append(piece)
            done[i] += len(piece)
    return torch.cat([piece for pieces in outs for piece in pieces])


@torch.inference_mode()
def results(model: MiniMaxText, case: dict[str, Any]) -> dict[str, Any]:
    """What one process and every rank are to agree on."""
    device = model.norm.weight.device
    ids: list[Tensor] = [each.to(device) for each in case["ids"]]
    embeds = model.embed(torch.cat(ids))
    hidden = model(embeds, Packed.of([len(each) for each in ids], device=device))
    return {
        "embeds": embeds,
        "hidden": hidden,
        "logits": model.logits(hidden),
        "fed": fed(model, ids, case["cuts"]),
        "last": model.logits(hidden[-1]),
    }


def compare(ranks: list[dict[str, Any]], told: dict[str, Any], model: MiniMaxText, bound: float = 1e-5) -> None:
    """Assert that the results of every rank are those of one process, in float32 to within `bound`."""
    want = results(model, told)
    exact = dict[str, Tensor]()
    if told["dtype"] != torch.float32 or told["quantization"] == "fp8":  # which round otherwise, but not worse
        wide = MiniMaxText(model.config, device=model.norm.weight.device)
        for name, slot in released_tensors(model).items():
            released_tensors(wide)[name].load(slot.read())
        exact = results(wide, told)
    for key, tensor in want.items():
        got = ranks[0][key].to(tensor.device)
        assert got.dtype == tensor.dtype
        assert all(torch.equal(rank[key], ranks[0][key]) for rank in ranks), key
        if key == "embeds":
            assert torch.equal(got, tensor)
        elif key == "last":
            assert relative(ranks[0][key], ranks[0]["logits"][-1]) < (1e-3 if exact else bound)
        elif exact:
            assert relative(got, exact[key]) < 1.5 * relative(tensor, exact[key]) < 0.3, key
        else:
            assert relative(got, tensor) < bound, key


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def build(case: dict[str, Any], device: torch.device) -> SplitText:
    model = split_backbone(
        TextConfig(**case["config"]),
        None,
        case["placement"],
        quantization=case["quantization"],
        slots=case["slots"],
        device=device,
        dtype=case["dtype"],
    )
    slots = stored_tensors(model) if case["stored"] else released_tensors(model)
    assert slots.keys() == case["tensors"].keys()
    for name, tensor in case["tensors"].items():
        slots[name].load(tensor)
    return model


def run(case: dict[str, Any], device: torch.device) -> dict[str, Any]:
    model = build(case, device)
    found = results(model, case)
    found["bytes"] = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    slots = stored_tensors(model) if case["stored"] else released_tensors(model)
    found["shapes"] = {name: slot.shape for name, slot in slots.items()}
    found["read"] = {name: slot.read().clone() for name, slot in slots.items()}
    if case["placement"] == "expert":
        found["static"] = both_ways(model)
    if device.type == "cuda" and case["quantization"] is None:
        found["graph"] = replayed(model)
    return found


@torch.inference_mode()
def both_ways(model: SplitText) -> tuple[Tensor, Tensor]:
    """The experts' part of a sum, by this rank's assignments alone and by all with weights of 0."""
    moe = model.layers[0].block_sparse_moe
    generator = torch.Generator().manual_seed(5)
    like = model.norm.weight
    x = torch.randn(9, model.config.hidden_size, generator=generator).to(like)
    weights = torch.rand(9, 2, generator=generator).to(like.device)
    experts = torch.rand(9, model.config.num_local_experts, generator=generator).topk(2).indices.to(like.device)
    return moe._own_assignments(x, weights, experts), moe._all_assignments(x, weights, experts)  # type: ignore[operator,union-attr]


@torch.inference_mode()
def replayed(model: SplitText) -> tuple[Tensor, Tensor]:
    """The logits of a decode step of three sequences, launched op by op and as the replay of a CUDA graph."""
    device, dtype = model.norm.weight.device, model.norm.weight.dtype
    cache = HybridCache(model.config, slots=3, pages=3, page_size=16, device=device, dtype=dtype)
    slots = [cache.acquire() for _ in range(3)]
    for slot in slots:
        cache.reserve(slot, 8)
    tokens, packed = torch.tensor([3, 1, 4], device=device), Packed.of([1] * 3, past=[0] * 3, device=device)

    def step() -> Tensor:
        cache.states.zero_()
        return model.logits(model(model.embed(tokens), packed, cache))

    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        eager = step().clone()
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        recorded = step()
    recorded.zero_()
    for _ in range(3):
        graph.replay()
    return eager.cpu(), recorded.cpu()


def sums(device: torch.device) -> dict[str, Any]:
    """Sums of whole numbers, short and long, and what they take."""
    from torch.distributed import _symmetric_memory as symmetric

    group = Collectives(None, device)
    found: dict[str, Any] = {"right": {}, "symmetric": bool(group._buffers), "microseconds": {}}
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        for size in (2, 6, 6144, 6146, 1 << 17, 1 << 18):
            x = torch.arange(size, device=device).remainder(8).add(group.rank).to(dtype)
            want = torch.arange(size, device=device).remainder(8).mul(group.ranks) + sum(range(group.ranks))
            found["right"][f"{dtype} {size}"] = torch.equal(group.all_reduce(x), want.to(dtype))
    if not group._buffers:
        return found
    buffer = symmetric.empty(1 << 20, dtype=torch.bfloat16, device=device)
    symmetric.rendezvous(buffer, group.group)
    for tokens in (1, 8, 16, 32, 64, 128):
        room = buffer[: tokens * 6144]
        x = torch.ones_like(room)
        one_shot = partial(torch.ops.symm_mem.one_shot_all_reduce_copy, room, x, "sum", group.group.group_name)
        took = microseconds(one_shot, device), microseconds(partial(dist.all_reduce, x), device)
        found["microseconds"][x.nbytes] = took
    return found


def microseconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one of a hundred in a CUDA graph."""
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(100):
            run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 10 * start.elapsed_time(end)


@contextmanager
def meeting(rank: int, ranks: int, folder: Path, kind: str) -> Iterator[torch.device]:
    """This process among the ranks, and its device."""
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        f"file://{folder}/meeting",
        timeout=timedelta(seconds=240),
        rank=rank,
        world_size=ranks,
        device_id=device if kind == "cuda" else None,
    )
    yield device
    dist.destroy_process_group()


def main(rank: int, ranks: int, folder: Path, kind: str) -> None:
    with meeting(rank, ranks, folder, kind) as device:
        found: dict[str, Any] = {"sums": sums(device)} if kind == "cuda" else {}
        for name, case in torch.load(folder / "cases.pt").items():
            found[name] = run(case, device)
        torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
