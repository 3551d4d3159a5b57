"""How the processes of a run share its work: the table [parallel], and what it asks of processes and models."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from text_backbone import TextConfig
from vl.errors import ConfigError
from vl.training.checks import at_least


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes that torchrun starts share the work, beside the parameters, of which each has its shard.

    Processes lie on two meshes, the last dimension being neighbours: fsdp x context x tensor for everything but the
    experts, and (what is left) x expert x expert_tensor for these.

    Attributes:
        context: so many processes share every batch out by its tokens, for sequences that are too long for one. 1 gives
            every process batches of its own.
        tensor: so many have the same tokens, and share out the heads of attention and the work of experts.
        expert: so many share the experts of every layer out, each with some whole ones, to which tokens are sent.
        expert_tensor: so many share each expert's inner units out.
        expert_groups: a process's experts are cut into so many groups, of which the messages of one overlap the work of
            another.
        fsdp: how many groups of processes have batches of their own; None for as many as there are.
    """

    context: int = 1
    tensor: int = 1
    expert: int = 1
    expert_tensor: int = 1
    expert_groups: int = 1
    fsdp: int | None = None

    def __post_init__(self) -> None:
        at_least("parallel", self, context=1, tensor=1, expert=1, expert_tensor=1, expert_groups=1, fsdp=1)
        if self.expert_groups > 1 and not self.dispatches:
            raise ConfigError(
                f"parallel.expert_groups = {self.expert_groups} overlaps messages between experts, and there are none: "
                "set expert or expert_tensor above 1, or leave it out"
            )

    @property
    def dispatches(self) -> bool:
        """Whether experts are shared out."""
        return self.expert * self.expert_tensor > 1

    def check_processes(self, count: int) -> None:
        """Raises ConfigError if so many processes cannot lie on the meshes."""
        if self.fsdp is not None and self.fsdp * self.context * self.tensor != count:
            wanted = self.fsdp * self.context * self.tensor
            raise ConfigError(
                f"parallel.fsdp x context x tensor = {self.fsdp} x {self.context} x {self.tensor} is for {wanted} "
                f"processes, and there are {count}: start {wanted} (torchrun --nproc-per-node {wanted}), or leave fsdp "
                "out"
            )
        least = lcm(self.context * self.tensor, self.expert * self.expert_tensor)
        experts = f"expert x expert_tensor = {self.expert} x {self.expert_tensor} shares every layer's experts"
        for keys, each in (
            (f"context = {self.context} shares every batch", self.context),
            (f"tensor = {self.tensor} shares every head's work", self.tensor),
            (f"context x tensor = {self.context} x {self.tensor} shares every batch", self.context * self.tensor),
            (experts, self.expert * self.expert_tensor),
        ):
            if count % each:
                raise ConfigError(
                    f"parallel.{keys} out over {each} processes, and {count} cannot be divided by that: start a "
                    f"multiple of {least} (torchrun --nproc-per-node {least}), or lower it"
                )

    def check_model(self, text: TextConfig) -> None:
        """Raises ConfigError if a decoder of that shape cannot be shared out so."""
        for key, field in (
            ("tensor", "num_key_value_heads"),  # of which the other heads are a multiple
            ("expert", "num_local_experts"),
            ("expert_tensor", "intermediate_size"),
        ):
            ranks, size = getattr(self, key), getattr(text, field)
            if size % ranks:
                raise ConfigError(
                    f"parallel.{key} = {ranks} shares out {field}, and the model's {size} cannot be divided by that: "
                    f"set it to a divisor of {size}"
                )
        if self.expert_groups > (own := text.num_local_experts // self.expert):
            raise ConfigError(
                f"parallel.expert_groups = {self.expert_groups}, and a process has {own} of a layer's "
                f"{text.num_local_experts} experts: set it to {own} or less"
            )
