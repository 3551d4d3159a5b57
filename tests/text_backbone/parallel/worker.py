"""One rank: runs the cases that it is given on its part of each model, and saves what it got. See `conftest.py`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig, released_tensors, stored_tensors
from text_backbone.parallel import SplitText, split_backbone


def fed(model: MiniMaxText, ids: list[Tensor], cuts: list[list[int]]) -> Tensor:
    """Logits of every token when sequence i is fed in pieces of `cuts[i]` tokens, all sequences in one batch."""
    cache = HybridCache(model.config, slots=len(ids), pages=40, page_size=4, dtype=model.norm.weight.dtype)
    slots, outs, done = [cache.acquire() for _ in ids], [[] for _ in ids], [0] * len(ids)  # type: ignore[var-annotated]
    for step in range(max(map(len, cuts))):
        live = [i for i in range(len(ids)) if step < len(cuts[i])]
        lengths = [cuts[i][step] for i in live]
        for i, length in zip(live, lengths, strict=True):
            cache.reserve(slots[i], done[i] + length)
        tokens = torch.cat([ids[i][done[i] : done[i] + n] for i, n in zip(live, lengths, strict=True)])
        packed = Packed.of(lengths, past=[done[i] for i in live], slots=[slots[i] for i in live])
        logits = model.logits(model(model.embed(tokens), packed, cache))
        for i, piece in zip(live, logits.split(lengths), strict=True):
            outs[i].append(piece)
            done[i] += len(piece)
    return torch.cat([piece for pieces in outs for piece in pieces])


@torch.inference_mode()
def results(model: MiniMaxText, case: dict[str, Any]) -> dict[str, Any]:
    """What one process and every rank are to agree on."""
    ids: list[Tensor] = case["ids"]
    lengths = [len(each) for each in ids]
    embeds = model.embed(torch.cat(ids))
    hidden = model(embeds, Packed.of(lengths))
    return {
        "embeds": embeds,
        "hidden": hidden,
        "logits": model.logits(hidden),
        "fed": fed(model, ids, case["cuts"]),
        "last": model.logits(hidden[-1]),
    }


def build(case: dict[str, Any]) -> SplitText:
    model = split_backbone(
        TextConfig(**case["config"]),
        None,
        case["placement"],
        quantization=case["quantization"],
        device="cpu",
        dtype=case["dtype"],
    )
    slots = stored_tensors(model) if case["stored"] else released_tensors(model)
    assert slots.keys() == case["tensors"].keys()
    for name, tensor in case["tensors"].items():
        slots[name].load(tensor)
    return model


def run(case: dict[str, Any]) -> dict[str, Any]:
    try:
        model = build(case)
    except ValueError as error:
        return {"error": str(error)}
    found = results(model, case)
    found["bytes"] = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    slots = stored_tensors(model) if case["stored"] else released_tensors(model)
    found["shapes"] = {name: slot.shape for name, slot in slots.items()}
    found["read"] = {name: slot.read().clone() for name, slot in slots.items()}
    if case["placement"] == "expert":
        found["static"] = both_ways(model)
    return found


@torch.inference_mode()
def both_ways(model: SplitText) -> tuple[Tensor, Tensor]:
    """The experts' part of a sum, by this rank's assignments alone and by all with weights of 0."""
    moe = model.layers[0].block_sparse_moe
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(9, model.config.hidden_size, generator=generator)
    weights = torch.rand(9, 2, generator=generator)
    experts = torch.rand(9, model.config.num_local_experts, generator=generator).topk(2).indices
    return moe._own_assignments(x, weights, experts), moe._all_assignments(x, weights, experts)  # type: ignore[operator,union-attr]


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/meeting", timeout=timeout, rank=rank, world_size=ranks)
    cases = torch.load(folder / "cases.pt")
    torch.save({name: run(case) for name, case in cases.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
