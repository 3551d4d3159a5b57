"""Cases of a decoder over context ranks, and the process of one rank, which runs those that it is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig, init_weights
from text_backbone.parallel import Collectives, ContextShard, ShardedCache, context_parallel, split_backbone
from text_backbone.parallel.model import ContextText

CONFIG: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 40,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rotary_dim": 8,
    "rope_theta": 1e4,
    "attn_type_list": (0, 1, 0),
}


def case(lengths: list[int], dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    """What ranks and one process are told: a decoder, sequences, and of each token the one that is to follow."""
    model = MiniMaxText(TextConfig(**(CONFIG | changes)), dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    init_weights(model, std=0.2, generator=generator)
    ids = torch.randint(0, 50, (2, sum(lengths)), generator=generator)
    told = {"lengths": lengths, "dtype": dtype, "changes": changes, "weights": model.state_dict()}
    return told | {"ids": ids[0], "following": ids[1]}


def build(told: dict[str, Any], device: torch.device, dtype: torch.dtype | None = None) -> MiniMaxText:
    model = MiniMaxText(TextConfig(**(CONFIG | told["changes"])), device=device, dtype=dtype or told["dtype"])
    model.load_state_dict(told["weights"])
    return model


def results(model: MiniMaxText, told: dict[str, Any], packed: Packed) -> dict[str, Any]:
    """Of a batch or a part of it: hidden states, its part of the loss, and the gradients of that."""
    ids, following = (told[name].to(model.norm.weight.device) for name in ("ids", "following"))
    if isinstance(packed, ContextShard):
        ids, following = packed.take(ids), packed.take(following)
    hidden = model(model.embed(ids), packed)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden), following, reduction="sum") / len(told["ids"])
    loss.backward()
    grads: dict[str, Tensor] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"hidden": hidden.detach(), "loss": loss.detach(), "grads": grads}


@torch.inference_mode()
def cached(model: MiniMaxText, told: dict[str, Any], cache: HybridCache) -> Tensor:
    """Hidden states of a batch that is read in three passes: half of each sequence, the rest but one, and that one."""
    device = model.norm.weight.device
    ids = [part.to(device) for part in told["ids"].split(told["lengths"]) if len(part) > 3]
    lengths = [len(part) for part in ids]
    slots, outs = [cache.acquire() for _ in lengths], []
    for slot, n in zip(slots, lengths, strict=True):
        cache.reserve(slot, n)
    cuts = [(0, n // 2, n - 1, n) for n in lengths]
    for i in range(3):
        tokens = torch.cat([part[cut[i] : cut[i + 1]] for part, cut in zip(ids, cuts, strict=True)])
        past, new = [cut[i] for cut in cuts], [cut[i + 1] - cut[i] for cut in cuts]
        packed = Packed.of(new, past=past, slots=slots, device=device)
        outs.append(model(model.embed(tokens), packed, cache))
    return torch.cat(outs)


# Lengths of passes over one sequence, and after how many tokens of each its states are kept; the last ones decode.
PASSES = [(100, (1, 64)), (3, ()), (77, (77,)), (1, ()), (1, ())]


@torch.inference_mode()
def prefilled(model: MiniMaxText, told: dict[str, Any]) -> dict[str, Any]:
    """Hidden states of a sequence that is read in passes, and what is cached of it, after and on the way."""
    device, dtype = model.norm.weight.device, model.norm.weight.dtype
    cache = HybridCache(model.config, slots=2, pages=20, page_size=16, device=device, dtype=dtype)
    cache.acquire()
    slot, done, hidden, kept = cache.acquire(), 0, [], []
    cache.reserve(slot, sum(length for length, _ in PASSES))
    for length, marks in PASSES:
        ids = told["ids"][done : done + length].to(device)
        at = [(0, mark, place) for place, mark in enumerate(marks)]
        packed = Packed.of([length], past=[done], slots=[slot], marks=at, device=device)
        hidden.append(model(model.embed(ids), packed, cache))
        for place in range(len(marks)):
            held = HybridCache(model.config, slots=1, pages=1, device=device)
            held.restore(held.acquire(), cache.kept_at(place))
            kept.append(held.states.clone())
        done += length
    rows = torch.cat([cache.page_table[slot]]).long()
    pages = torch.stack((cache.keys, cache.values))[:, :, rows].flatten(2, 3)[:, :, :done]
    return {"hidden": torch.cat(hidden), "states": cache.states[:, slot].clone(), "pages": pages, "kept": kept}


def main(rank: int, ranks: int, folder: Path, kind: str) -> None:
    from worker import meeting  # beside this file, which is a script here

    with meeting(rank, ranks, folder, kind) as device:
        found = {}
        ContextText.least = 8
        for name, told in torch.load(folder / "cases.pt").items():
            model = build(told, device)
            sizes: dict[str, Any] = {"slots": 8, "page_size": 4, "device": device, "dtype": told["dtype"]}
            room = sum(n // 4 + 1 for n in told["lengths"]) // ranks + len(told["lengths"])
            pages = ShardedCache(model.config, pages=room, group=Collectives(None, device), **sizes)
            read = cached(model, told, pages)
            context_parallel(model, dist.group.WORLD, device)  # type: ignore[arg-type]
            shard = ContextShard.share(told["lengths"], rank, ranks, device=device)
            found[name] = results(model, told, shard)
            model.zero_grad()
            whole = results(model, told, Packed.of(told["lengths"], device=device))
            found[name]["cached"] = read
            found[name]["whole"] = whole["hidden"]  # which every rank computes alone, as before
            if len(told["lengths"]) == 1:
                text = split_backbone(model.config, placement="context", device=device, dtype=told["dtype"])
                text.load_state_dict(told["weights"])
                found[name]["prefilled"] = prefilled(text, told)
        torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
