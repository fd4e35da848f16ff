"""What several networks add to one module together: Σ wᵢ ΔWᵢ, as joined factors where all have them, or whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.merge.inputs import WeightedNetwork
from lora_ext.merge.layer_shapes import layer_shape
from lora_ext.networks.weight_delta import ModuleDelta, exact_matmul
from lora_ext.protocols import UserError

_MOST_STEPS = 60  # powers of two


@dataclass(frozen=True)
class Part:
    """One network's ΔW of a module, and what it is multiplied by."""

    source: str
    delta: ModuleDelta
    multiplier: float


@dataclass(frozen=True)
class ModuleSum:
    """All that is added to one module; `parts` is never empty, and none of them is multiplied by 0."""

    key: str
    parts: tuple[Part, ...]
    base: str = ""

    @cached_property
    def weight_parts(self) -> tuple[Part, ...]:
        """Those that change the weight."""
        return tuple(part for part in self.parts if "weight" in part.delta.parameters)

    @property
    def is_low_rank(self) -> bool:
        """Whether the weight is changed, and every change of it is a product of two factors."""
        return bool(self.weight_parts) and all(part.delta.low_rank is not None for part in self.weight_parts)

    @property
    def is_norm(self) -> bool:
        """Whether it is a layer that scales its input number by number, as LyCORIS' norm changes."""
        return all(part.delta.algorithm == "norm" for part in self.parts)

    @property
    def rank(self) -> int | None:
        """The rank of the joined factors, None where there are none."""
        if not self.is_low_rank:
            return None
        return sum(part.delta.rank or 0 for part in self.weight_parts)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape: the kernel is taken from the part that tells it, or else from the module's name."""
        shapes = [part.delta.shape_for(()) for part in self.weight_parts]
        return layer_shape(self.key, max(shapes, key=len), self.base)

    def factors(self, device: torch.device, into: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """up (out, rank), down (rank, in·kh·kw) in fp32 with ΔW = up @ down; `is_low_rank` must hold.

        They are written `into` tensors of those shapes where there are some.
        """
        sizes = (self.shape[0], self.rank or 0), (self.rank or 0, prod(self.shape[1:]))
        up, down = into or [torch.empty(size, device=device) for size in sizes]
        start = 0
        for part in self.weight_parts:
            factors = part.delta.low_rank
            assert factors is not None
            end = start + len(factors.down)
            up[:, start:end].copy_(factors.up).mul_(factors.scale * part.multiplier)
            down[start:end].copy_(factors.down)
            start = end
        return up, down

    def dense(self, device: torch.device) -> Tensor:
        """ΔW in fp32 and in the weight's shape; factors are joined first."""
        products = [part for part in self.weight_parts if part.delta.low_rank is not None]
        total = torch.zeros(self.shape, device=device)
        if products:
            up, down = ModuleSum(self.key, tuple(products)).factors(device)
            with exact_matmul():
                total += (up @ down).reshape(self.shape)
        for part in self.weight_parts:
            if part.delta.low_rank is None:
                total += part.delta.delta(total, part.multiplier)
        return total

    @torch.no_grad()
    def bias(self, device: torch.device) -> Tensor | None:
        """Change of the bias in fp32, (out,); None where no part has one."""
        changes = [
            part.delta.bias.to(device, torch.float32) * part.multiplier
            for part in self.parts
            if part.delta.bias is not None
        ]
        return torch.stack(changes).sum(0) if changes else None


def module_sums(
    networks: Sequence[WeightedNetwork], base: str = "", architecture: Architecture = "SD1"
) -> list[ModuleSum]:
    """What the networks add to each module, in the order of the first that has it; what is multiplied by 0 is nothing.

    `base` is what they are for, `architecture` how block weights count. Raises UserError where a network's change is
    none that can be added to others', or two have a module in different sizes, naming both.
    """
    found: dict[str, list[Part]] = {}
    for network in networks:
        for key, delta in network.deltas.items():
            multiplier = network.multiplier(key, architecture)
            if multiplier == 0:
                continue
            _check_can_be_added(network.name, key, delta)
            found.setdefault(key, []).append(Part(network.name, delta, multiplier))
    sums = [ModuleSum(key, tuple(parts), base) for key, parts in found.items()]
    for each in sums:
        _check_sizes(each)
    return sums


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The factors with numbers of one size in both, rank by rank, by powers of two, which round nothing."""
    factor = _power_of_two(torch.log2(down.norm(dim=1) / up.norm(dim=0)) / 2)
    return up * factor, down / factor[:, None]


def _power_of_two(exponents: Tensor) -> Tensor:
    """2 to the nearest whole exponents; 1 where they are none, as those of rows of zeros."""
    steps = exponents.round().nan_to_num(0.0, 0.0, 0.0)
    return torch.exp2(steps.clamp(-_MOST_STEPS, _MOST_STEPS))


def _check_can_be_added(name: str, key: str, delta: ModuleDelta) -> None:
    if delta.needs_weight:
        raise UserError(
            f"{name} changes {key} by {delta.algorithm}, and what that adds depends on the checkpoint's weight: it "
            "cannot be added to other networks. Merge it into a checkpoint instead (merge-checkpoint)"
        )


def _check_sizes(module: ModuleSum) -> None:
    """UserError where the parts are for weights or biases of different sizes."""
    for parts, sizes in (
        (module.weight_parts, [_size(part.delta) for part in module.weight_parts]),
        (
            [part for part in module.parts if part.delta.bias is not None],
            [tuple(part.delta.bias.shape) for part in module.parts if part.delta.bias is not None],
        ),
    ):
        for part, size in zip(parts, sizes, strict=True):
            if size != sizes[0]:
                raise UserError(
                    f"{parts[0].source} and {part.source} are for different kinds of checkpoint: {module.key} has the "
                    f"size {sizes[0]} in one and {size} in the other"
                )


def _size(delta: ModuleDelta) -> tuple[int, ...]:
    """Rows and numbers in a row: the same for a linear layer and a 1×1 convolution."""
    shape = delta.shape_for(())
    return (shape[0], prod(shape[1:]))
