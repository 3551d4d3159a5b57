"""AdamW, and Muon where a run asks for it, on float32 master weights; and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from vl.training.config import OptimizerConfig
from vl.training.muon import Muon
from vl.training.shards import Shards, local, on_host

# Embeddings in all but name: a decay to zero has no meaning for them.
_UNDECAYED = ("embed_tokens.weight", "pos_embed", "cls_token", "image_newline")
# The matrices between hidden activations, which are those that Muon is for.
_HIDDEN = re.compile(
    r"(self_attn\.(\w+_proj|output_gate)\.weight|experts\.(w13|w2)"
    r"|attn\.(qkv|proj)\.weight|mlp\.fc[12]\.weight|projector\.linear_[12]\.weight)$"
)


class MasterOptimizer:
    """Updates float32 copies of the parameters that learn and writes the result back in the model's dtype.

    bfloat16 has 8 bits of mantissa: updates below 1/256 of a weight would be lost without the copies. AdamW updates
    everything, or with `config.muon` what is no hidden matrix; those Muon updates, every expert's by itself and at a
    rate that gives its updates AdamW's usual size. Norms, biases and embeddings are not decayed. Of parameters that are
    sharded over processes, each holds and updates its shard; `shards` says of which.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, shards: Shards | None = None) -> None:
        self.shards = shards or Shards()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        self.masters: list[Tensor] = [
            local(p.detach()).clone(memory_format=torch.contiguous_format).float() for p in self.params
        ]
        self.grads = [torch.zeros_like(master) for master in self.masters]
        for master, grad in zip(self.masters, self.grads, strict=True):
            master.grad = grad
        decayed: list[Tensor] = []
        kept: list[Tensor] = []
        hidden: list[Tensor] = []
        self.momenta: dict[str, Tensor] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            if config.muon and _HIDDEN.search(name):
                self.momenta[name] = torch.zeros_like(master)
                hidden += matrices(master)
            else:
                (decayed if master.dim() > 1 and not name.endswith(_UNDECAYED) else kept).append(master)
        self.clip = config.clip
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
        fused = self.params[0].device.type == "cuda"
        groups = [group for group in groups if group["params"]]
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        buffers = [part for momentum in self.momenta.values() for part in matrices(momentum)]
        self.muon = Muon(hidden, buffers, config.weight_decay)

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """One clipped update from the parameters' gradients, which are then cleared. Returns the gradient norm []."""
        fresh = [(grad, local(p.grad)) for grad, p in zip(self.grads, self.params, strict=True) if p.grad is not None]
        torch._foreach_zero_(self.grads)
        if fresh:  # or there was nothing in the batch to learn from
            torch._foreach_copy_([grad for grad, _ in fresh], [grad for _, grad in fresh])
        for name, param, grad in zip(self.names, self.params, self.grads, strict=True):
            param.grad = None
            if (scale := self.shards.scales.get(name, 1.0)) != 1.0:
                grad.mul_(scale)
        norm = self.shards.norm(nn.utils.get_total_norm(self.grads))
        nn.utils.clip_grads_with_norm_(self.masters, self.clip, norm)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.muon.step(lr)
        torch._foreach_copy_([local(param) for param in self.params], self.masters)
        return norm

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by parameter name, on the host; see `on_host`."""
        return on_host(self._wholes(), keep)

    def _wholes(self) -> Iterator[tuple[str, Tensor]]:
        """Shards are gathered, by all processes together."""
        for name, param, master in zip(self.names, self.params, self.masters, strict=True):
            for key, value in {"master": master, **self.adamw.state.get(master, {})}.items():
                yield f"{name}/{key}", value if key == "step" else self.shards.gather(name, value, param)
        yield from ((f"{name}/momentum", momentum) for name, momentum in self.momenta.items())

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()` and writes the weights to the model.

        Raises:
            KeyError: if the tensors are of another model.
        """
        for name, param, master in zip(self.names, self.params, self.masters, strict=True):
            master.copy_(self.shards.shard(name, tensors[f"{name}/master"], param))
            local(param).copy_(master)
            if name in self.momenta:
                self.momenta[name].copy_(tensors[f"{name}/momentum"])
                continue
            state: dict[str, Tensor] = {}
            for key in ("exp_avg", "exp_avg_sq"):
                if f"{name}/{key}" in tensors:
                    part = self.shards.shard(name, tensors[f"{name}/{key}"], param)
                    state[key] = part.to(master.device, copy=True)
            if f"{name}/step" in tensors:
                # AdamW keeps its step counter on the host unless it is fused.
                home = master.device if self.adamw.defaults["fused"] else "cpu"
                state["step"] = tensors[f"{name}/step"].to(home, copy=True)
            self.adamw.state[master] = state


def matrices(tensor: Tensor) -> list[Tensor]:
    """The matrices of [..., rows, columns], as views that share its memory and, where it has one, its gradient's."""
    if tensor.dim() == 2:
        return [tensor]
    parts = list(tensor.flatten(0, -3).unbind())
    if tensor.grad is not None:
        for part, grad in zip(parts, tensor.grad.flatten(0, -3).unbind(), strict=True):
            part.grad = grad
    return parts


def learning_rate(step: int, progress: float, config: OptimizerConfig) -> float:
    """The rate at `step` of a run of which the share `progress` is over.

    Linear warm-up over `warmup_steps` steps, under a cosine from `lr` at progress 0 to `final_lr` at progress 1, or
    under `lr` until the last `decay_share` of the run and a line down to `final_lr` from there (`schedule = "wsd"`).
    """
    progress = min(1.0, max(0.0, progress))
    if config.schedule == "wsd":
        height = min(1.0, (1 - progress) / config.decay_share) if config.decay_share else 1.0
    else:
        height = 0.5 * (1 + math.cos(math.pi * progress))
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * (config.final_lr + (config.lr - config.final_lr) * height)
