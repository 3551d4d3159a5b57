"""Spilled experts in the place of a decoder's own, which the model's files know nothing of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from text_backbone.config import TextConfig
from text_backbone.kernels.moe import expert_mlp
from text_backbone.model import MiniMaxText
from text_backbone.moe import Experts, SparseMoE
from text_backbone.quantization import Quantized, QuantizedExperts, quantize_backbone
from text_backbone.spill.pinned import pinned
from text_backbone.spill.residents import Group, Residents

_ONE_CALL = threading.Lock()  # slots are written to; a lock for each layer could not be copied with the model


class SpilledExperts(nn.Module):
    """In the place of `Experts` or `QuantizedExperts`: `w13` and `w2` of all experts, alike, but in host memory.

    On the device are `slots` of them. Which they are follows from the tokens' choices, which the host has to read: one
    wait for the device at every call, so that no CUDA graph can hold it. Copies from pinned memory run beside products.
    For inference only.

    Args:
        experts: on `meta`, or with values, which are copied.
        slots: from 1 to the number of experts.
        device: where products are taken.

    Raises:
        ValueError: if there are fewer slots than 1, or more than experts.
    """

    def __init__(self, experts: Experts | QuantizedExperts, slots: int, device: torch.device) -> None:
        super().__init__()
        count = len(_parts(experts.w13)[0])
        if not 1 <= slots <= count:
            raise ValueError(f"{slots} slots are not 1 to {count}, as many as there are experts")
        self.residents = Residents(count, slots)
        # A tuple is no submodule: checkpoints have nothing of what is in it.
        self.on_device = _slots(experts.w13, slots, device), _slots(experts.w2, slots, device)
        self.w13, self.w2 = _in_host(experts.w13, device), _in_host(experts.w2, device)

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x [T, hidden], weights float32 [T, k] and experts int64 [T, k] of `route` -> [T, hidden].

        Raises:
            RuntimeError: if gradients are asked for.
        """
        if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
            raise RuntimeError("experts in host memory have no gradients: load the model without spilling to train it")
        with _ONE_CALL:
            try:
                return self._forward(x, weights, experts)
            except BaseException:
                self.residents.forget()
                raise

    def _forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        count, top_k = len(self.residents.use), experts.shape[1]
        chosen, order = experts.flatten().sort(stable=True)  # [T * k], grouped by expert
        bounds: list[int] = torch.searchsorted(chosen, torch.arange(count + 1, device=x.device)).tolist()
        groups = self.residents.groups([end - start for start, end in pairwise(bounds)])
        copies = Copies(x.device)
        if len(groups) == 1:
            self._fetch(groups[0], copies)
            return self._products(x, weights, experts, groups[0])
        rows = x.new_empty(len(order), x.shape[1])  # of every choice, as in `reference.expert_mlp`
        for group in groups:
            self._fetch(group, copies)
            mine = torch.cat([order[bounds[expert] : bounds[expert + 1]] for expert in group.slots])
            ones = weights.new_ones(len(mine), 1)
            rows[mine] = self._products(x[mine // top_k], ones, experts.flatten()[mine, None], group)
            copies.used()
        return (rows.view(len(x), top_k, -1) * weights[:, :, None]).sum(dim=1).to(x.dtype)

    def _products(self, x: Tensor, weights: Tensor, experts: Tensor, group: Group) -> Tensor:
        """`expert_mlp` with experts of a group alone."""
        slot = torch.tensor([group.slots.get(e, 0) for e in range(len(self.residents.use))], device=x.device)
        return expert_mlp(x, *self.on_device, weights, slot[experts])

    def _fetch(self, group: Group, copies: Copies) -> None:
        pairs = [
            (there[group.slots[expert]], here[expert])
            for expert in group.fetched
            for stored, weight in zip(self.on_device, (self.w13, self.w2), strict=True)
            for there, here in zip(_parts(stored), _parts(weight), strict=True)
        ]
        if pairs:
            copies.copy(pairs, group.after)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoReturn:
        """What `to`, `half` and their like call."""
        raise RuntimeError("a model with experts in host memory cannot be moved or cast: load it so")

    def extra_repr(self) -> str:
        return f"{len(self.residents.held)} of {len(self.residents.use)} experts on the device"


class Copies:
    """The copies of one call, on a stream of their own where the device has streams."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _copy_stream(device) if device.type == "cuda" else None
        self._used: list[torch.cuda.Event] = []
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # what the slots were used for by now

    def copy(self, pairs: list[tuple[Tensor, Tensor]], after: int | None) -> None:
        """Each second tensor to the first. The products that are asked for next wait for it.

        Args:
            after: which call of `used` has to be reached on the device before; None: none.
        """
        if self._stream and after is not None:
            self._stream.wait_event(self._used[after])
        with torch.cuda.stream(self._stream):
            for there, here in pairs:
                there.copy_(here, non_blocking=True)
        if self._stream:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def used(self) -> None:
        """What was copied has been used when the device gets here."""
        if self._stream:
            self._used.append(torch.cuda.current_stream(self._stream.device).record_event())


def spill_backbone(model: MiniMaxText, slots: int, device: torch.device | str | None = None) -> None:
    """Spill the experts of every layer, in place and one layer at a time; the rest stays where it is.

    Args:
        model: plain or quantised; its experts on `meta` or with values.
        slots: of each layer's experts, how many are on the device.
        device: where products are taken; by default, where the rest of the model is.

    Raises:
        ValueError: as `SpilledExperts`.
    """
    place = torch.device(device) if device is not None else model.embed_tokens.weight.device
    for layer in model.layers:
        moe = cast(SparseMoE, layer.get_submodule("block_sparse_moe"))
        moe.set_submodule("experts", SpilledExperts(moe.experts, slots, place))
    model.requires_grad_(False)
    model.capturable = False


def spilled_backbone(
    config: TextConfig,
    slots: int,
    format: str | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> MiniMaxText:
    """A spilled model with room for its weights, uninitialised: all of its experts are never on the device.

    Args:
        slots: as of `spill_backbone`.
        format: "int8", "fp8", "nf4", or None to leave matrices in `dtype`.

    Raises:
        ValueError: as `SpilledExperts` and `quantize_backbone`.
    """
    model = MiniMaxText(config, device="meta", dtype=dtype)
    if format is not None:
        quantize_backbone(model, format)
    place_spilled(model, slots, torch.device(device) if device is not None else torch.get_default_device())
    return model


def place_spilled(model: MiniMaxText, slots: int, device: torch.device) -> None:
    """Give a model on `meta`, or a rank's part of one, room: its experts as of `spill_backbone`, the rest on `device`.

    Raises:
        ValueError: as `SpilledExperts`.
    """
    layers = [cast(SparseMoE, layer.get_submodule("block_sparse_moe")) for layer in model.layers]
    shapes = [moe.experts for moe in layers]
    for moe in layers:
        moe.set_submodule("experts", nn.Module())
    model.to_empty(device=device)
    for moe, experts in zip(layers, shapes, strict=True):
        moe.set_submodule("experts", experts)
    spill_backbone(model, slots, device)


def host_bytes(config: TextConfig, format: str | None, dtype: torch.dtype) -> int:
    """What the experts take of the host's memory, but for what is left of the last page of each tensor."""
    one = replace(config, attn_type_list=config.attn_type_list[:1])
    model = MiniMaxText(one, device="meta", dtype=dtype)
    if format is not None:
        quantize_backbone(model, format)
    experts = cast(SparseMoE, model.layers[0].get_submodule("block_sparse_moe")).experts
    return config.num_hidden_layers * sum(
        part.nbytes for weight in (experts.w13, experts.w2) for part in _parts(weight)
    )


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all layers: their copies share the bus."""
    return torch.cuda.Stream(device)


def _parts(weight: Tensor | Quantized) -> tuple[Tensor, ...]:
    """The tensors that hold it; the first dimension of each is the expert's."""
    return (weight,) if isinstance(weight, Tensor) else tuple(weight.at())


def _slots(weight: Tensor | Quantized, slots: int, device: torch.device) -> Tensor | Quantized:
    """Uninitialised room for some experts of such a weight."""
    if isinstance(weight, Tensor):
        return torch.empty((slots, *weight.shape[1:]), dtype=weight.dtype, device=device)
    lead = (slots, *weight.lead[1:])
    form, rows, columns, dtype = weight.format, weight.rows, weight.columns, weight.dtype
    return Quantized(form, lead, rows, columns, device=device, dtype=dtype, part=weight.part)


def _in_host(weight: Tensor | Quantized, device: torch.device) -> nn.Parameter | Quantized:
    """The same weight there; of one on `meta`, room for it, and what is loaded is quantised on `device`."""

    def move(part: Tensor) -> Tensor:
        on_gpu = device.type == "cuda"
        room = pinned(part.shape, part.dtype) if on_gpu else torch.empty(part.shape, dtype=part.dtype, device="cpu")
        return room if part.is_meta else room.copy_(part)

    if isinstance(weight, Tensor):
        return nn.Parameter(move(weight.detach()), requires_grad=False)
    weight.works_on = device
    return weight._apply(move)
