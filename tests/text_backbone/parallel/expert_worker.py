"""Cases of a decoder whose experts are shared out, and the process of one rank, which runs those that it is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from text_backbone import MiniMaxText, Packed, TextConfig, init_weights
from text_backbone.parallel import ContextShard, context_parallel, expert_parallel, tensor_parallel
from text_backbone.parallel.cuts import whole_of

CONFIG: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 40,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "rotary_dim": 8,
    "rope_theta": 1e4,
    "attn_type_list": (0, 1, 0),
}


def case(lengths: list[list[int]], dims: dict[str, int], dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """What ranks and one process are told: a decoder, and of each group of ranks with one batch its sequences.

    The router of the first layer prefers one expert, and never chooses another, as far as ties go.
    """
    model = MiniMaxText(TextConfig(**(CONFIG | changes)), dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    init_weights(model, std=1.4 * model.config.hidden_size**-0.5, generator=generator)
    with torch.no_grad():
        gate = model.layers[0].get_submodule("block_sparse_moe").gate.weight  # type: ignore[union-attr]
        gate[1] = 0  # type: ignore[index]
        gate[2:] = gate[2]  # type: ignore[index]
    batches = [torch.randint(0, 50, (2, sum(each)), generator=generator) for each in lengths]
    told = {"lengths": lengths, "dims": dims, "dtype": dtype, "changes": changes, "weights": model.state_dict()}
    return told | {"batches": batches}


def build(told: dict[str, Any], device: torch.device, dtype: torch.dtype | None = None) -> MiniMaxText:
    model = MiniMaxText(TextConfig(**(CONFIG | told["changes"])), device=device, dtype=dtype or told["dtype"])
    model.load_state_dict(told["weights"])
    return model


def results(model: MiniMaxText, told: dict[str, Any], batch: int, packed: Packed) -> dict[str, Any]:
    """Of a batch or a part of it: hidden states, its part of the loss, and the gradients of that."""
    ids, following = told["batches"][batch].to(model.norm.weight.device)
    if isinstance(packed, ContextShard):
        ids, following = packed.take(ids), packed.take(following)
    hidden = model(model.embed(ids), packed)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden), following, reduction="sum")
    loss = loss / sum(batch.shape[1] for batch in told["batches"])
    loss.backward()
    grads: dict[str, Tensor] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"hidden": hidden.detach(), "loss": loss.detach(), "grads": grads}


def run(told: dict[str, Any], rank: int, ranks: int, device: torch.device) -> dict[str, Any]:
    """This rank's part of the results: the whole is the sum of all ranks'."""
    dims = {"context": 1, "tensor": 1, "expert": 1, "expert_tensor": 1, "groups": 1} | told["dims"]
    context, tensor, block = dims["context"], dims["tensor"], dims["expert"] * dims["expert_tensor"]
    model = build(told, device)
    shape = (ranks // (context * tensor), context, tensor)
    batches = init_device_mesh(device.type, shape, mesh_dim_names=("data", "context", "tensor"))
    names = ("data", "expert", "expert_tensor")
    mesh = init_device_mesh(device.type, (ranks // block, *(dims[name] for name in names[1:])), mesh_dim_names=names)
    if context > 1:
        context_parallel(model, batches["context"].get_group(), device)
    cuts = tensor_parallel(model, batches["tensor"].get_group()) if tensor > 1 else {}
    shared = expert_parallel(model, mesh["expert", "expert_tensor"], device, dims["groups"]) if block > 1 else {}
    batch, position, _ = batches.get_coordinate()
    packed = Packed.of(told["lengths"][batch], device=device)
    if context > 1:
        packed = ContextShard.share(packed.lengths, position, context, device=device)
    found = results(model, told, batch, packed)
    grads = found["grads"]
    for name in grads:
        if name in shared:  # every rank of the block has the whole
            grads[name] = whole_of(grads[name], shared[name]) / block
        elif ".experts." not in name:  # every rank with the same tokens has the same
            grads[name] = whole_of(grads[name], cuts.get(name, ())) / tensor
    rows = packed.rows if isinstance(packed, ContextShard) else torch.arange(packed.tokens)
    return found | {"loss": found["loss"] / tensor, "batch": batch, "rows": rows}


def main(rank: int, ranks: int, folder: Path, kind: str) -> None:
    from worker import meeting  # beside this file, which is a script here

    with meeting(rank, ranks, folder, kind) as device:
        cases = torch.load(folder / "cases.pt")
        torch.save({name: run(told, rank, ranks, device) for name, told in cases.items()}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
