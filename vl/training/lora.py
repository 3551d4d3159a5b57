"""Low-rank adapters (arXiv:2106.09685) on the decoder's attention and the projector, in PEFT's file layout.

The model itself is left as it is: adapters live beside it and add to the outputs of its projections through hooks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from text_backbone.quantization import Quantized, QuantizedLinear
from vl.errors import CheckpointError, ConfigError
from vl.files import replace_file, write_file
from vl.model import MiniMaxVL
from vl.training.config import ADAPTABLE, LoRAConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

Adaptable = nn.Linear | QuantizedLinear


class Adapter(nn.Module):
    """One matrix's adapter: x [..., in] -> alpha / rank * B A x [..., out]; nothing at first, as B starts at 0."""

    def __init__(self, linear: Adaptable, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        weight = linear.weight
        rows, columns = (weight.rows, weight.columns) if isinstance(weight, Quantized) else weight.shape
        self.scale = alpha / rank
        # PEFT's start: the bound of a Kaiming-uniform matrix with a = sqrt(5). Drawn on the CPU, as a model that is
        # to be shared out is there, and one process's adapters are to start as those of several.
        bound = 1 / math.sqrt(columns)
        start = nn.init.uniform_(torch.empty(rank, columns), -bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (matrix.to(x.dtype) for matrix in (self.lora_A, self.lora_B))  # of a model in 16 bits
        return F.linear(F.linear(x, a), b) * self.scale

    def delta(self) -> Tensor:
        """float32 [out, in], what the adapter adds to its matrix."""
        return self.scale * (self.lora_B.detach().float() @ self.lora_A.detach().float())

    def hook(self, linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + self(inputs[0])


class Adapters(nn.Module):
    """Adapters of a model's matrices, in effect from their creation until `detach`.

    Args:
        model: its parameters are not touched.
        names: of `adaptable(model)`, the matrices to adapt.
        rank, alpha: as in `LoRAConfig`.
        seed: of the matrices A.
    """

    def __init__(self, model: MiniMaxVL, names: Sequence[str], rank: int, alpha: float, seed: int = 0) -> None:
        super().__init__()
        self.rank, self.alpha, self.base, self.names = rank, alpha, model.name, list(names)
        matrices = dict(adaptable(model))
        generator = torch.Generator().manual_seed(seed)
        # A list is no submodule: the matrices stay the model's alone.
        self.linears = [matrices[name] for name in names]
        # A method is no submodule either; it is called at the merge, as the model may move until then.
        self.released_tensors = model.released_tensors
        self.parts = nn.ModuleList(Adapter(linear, rank, alpha, generator) for linear in self.linears)
        self.hooks = [
            linear.register_forward_hook(part.hook)  # type: ignore[arg-type]
            for linear, part in zip(self.linears, self.parts, strict=True)
        ]

    def detach(self) -> None:
        """Takes the adapters off the model again."""
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the adapters to the model's matrices and takes them off; the model then answers the same without.

        Raises:
            CheckpointError: if a sum is not finite.
            ConfigError: if the matrices are quantised; the adapters stay as they are.
        """
        if any(isinstance(linear, QuantizedLinear) for linear in self.linears):
            raise ConfigError(
                "adapters are not added to quantised matrices, whose rounding would lose a part of them: keep them "
                "apart (merge=False), or add them to the model in 16 bits, save that and quantise it"
            )
        self.detach()
        slots = self.released_tensors()
        for name, part in zip(self.names, self.parts, strict=True):
            assert isinstance(part, Adapter)
            slot = slots[f"{name}.weight"]
            try:
                slot.load(slot.read().float() + part.delta())
            except ValueError as error:
                raise CheckpointError(
                    f"the adapters make {error} of {name}: train them again, at a lower rate"
                ) from error

    def tensors(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The matrices by PEFT's names; of `weights`, by this module's names, if given."""
        weights = {name: p.detach() for name, p in self.named_parameters()} if weights is None else weights
        return {
            f"{_PREFIX}{name}.lora_{letter}.weight": weights[f"parts.{number}.lora_{letter}"]
            for number, name in enumerate(self.names)
            for letter in "AB"
        }

    def save(self, folder: str | os.PathLike[str], weights: Mapping[str, Tensor] | None = None) -> Path:
        """Writes `adapter_config.json` and `adapter_model.safetensors`; `weights` as for `tensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        matrices = {name: t.float().cpu().contiguous() for name, t in self.tensors(weights).items()}
        with replace_file(folder / WEIGHTS) as draft:
            save_file(matrices, draft, metadata={"format": "pt"})
            write_file(folder / CONFIG, json.dumps(self._description(), indent=2) + "\n")
        return folder

    def _description(self) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            # Whole names: PEFT would also take a bare "out_proj" for the ViT's.
            "target_modules": self.names,
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "inference_mode": True,
        }


def new_adapters(model: MiniMaxVL, config: LoRAConfig, seed: int) -> Adapters:
    """Adapters to train. Raises ConfigError if the model has none of the targets, or all of them have a lower rank."""
    found: dict[str, Any] = {
        name: linear for name, linear in adaptable(model) if name.rpartition(".")[2] in config.targets
    }
    names = list(found)
    if not names:
        raise ConfigError(f"lora.targets: this model has none of {', '.join(config.targets)}")
    most = max(min(linear.in_features, linear.out_features) for linear in found.values())
    if config.rank > most:
        raise ConfigError(f"lora.rank = {config.rank} is more than any of these matrices has: set it to {most} or less")
    return Adapters(model, names, config.rank, config.alpha, seed)


def adaptable(model: MiniMaxVL) -> Iterator[tuple[str, Adaptable]]:
    """The matrices that may have adapters, by the names they have in a released checkpoint, without `.weight`."""
    prefix = "" if model.vision is None else "language_model."
    for i, layer in enumerate(model.language_model.layers):
        attention: Any = layer.self_attn
        for name, linear in attention.named_children():
            if name in ADAPTABLE:
                yield f"{prefix}model.layers.{i}.self_attn.{name}", linear
    if model.vision is not None:
        projector = model.vision.projector
        yield "multi_modal_projector.linear_1", projector.linear_1
        yield "multi_modal_projector.linear_2", projector.linear_2


def load_adapter(model: MiniMaxVL, folder: str | os.PathLike[str], *, merge: bool = True) -> Adapters:
    """Puts adapters on a model of the checkpoint that they were trained on.

    Args:
        folder: `adapter_config.json` and `adapter_model.safetensors`, as `vl train` or PEFT wrote them.
        merge: add them to the matrices, which costs nothing when the model runs; else they stay apart, and can be
            taken off again (`detach`) or merged later (`merge`). `model.save` writes no adapters that are apart.

    Raises:
        CheckpointError: if the files are missing, or are not LoRA adapters of matrices of this model.
        ConfigError: if they are to be added to matrices that are quantised.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / CONFIG).read_text("utf-8"))
        tensors = load_file(folder / WEIGHTS)
        rank, alpha = int(description["r"]), float(description["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} has no adapters that can be read ({error!r}): it needs {CONFIG} and {WEIGHTS}"
        ) from error
    _refuse_variants(folder, description)
    names = sorted({name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in tensors})
    known = dict(adaptable(model))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise CheckpointError(
            f"{folder} adapts {unknown[0] if unknown else 'nothing'}, which is no attention or projector matrix of "
            f"{model.name or 'this model'}: use the checkpoint it was trained on "
            f"({description.get('base_model_name_or_path')})"
        )
    adapters = Adapters(model, names, rank, alpha)
    own = adapters.tensors()
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    if wrong:
        adapters.detach()
        raise CheckpointError(f"{folder}: {wrong[0]} is missing or not of the shape {list(own[wrong[0]].shape)}")
    for name, matrix in own.items():
        matrix.copy_(tensors[name])
    if merge:
        try:
            adapters.merge()
        except ConfigError:
            adapters.detach()
            raise
    return adapters


def _refuse_variants(folder: Path, description: dict[str, Any]) -> None:
    """Variants of LoRA that compute something else."""
    variants = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
    odd = [key for key in variants if description.get(key)]
    if description.get("peft_type") != "LORA" or description.get("bias", "none") != "none" or odd:
        raise CheckpointError(
            f"{folder / CONFIG} asks for {', '.join(odd) or 'another kind of adapter'}, which is not supported: "
            "merge these adapters with PEFT and load the result"
        )
