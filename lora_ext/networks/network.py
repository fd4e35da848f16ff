"""A network in training: the adapters of all its targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora_ext.networks.dropout import NO_DROPOUT, Dropout
from lora_ext.networks.lora import LoraAdapter
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError

_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


class Network(nn.Module):
    """One adapter a target, by the target's key; `adapters` keeps the order of the targets."""

    def __init__(self, targets: Sequence[Target], generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> None:
        """Draw every adapter's start from the CPU `generator`, in the order of `targets`."""
        super().__init__()
        self.adapters: Mapping[str, LoraAdapter] = nn.ModuleDict(  # type: ignore[assignment]
            {target.key: LoraAdapter(target, generator, dropout) for target in targets}
        )

    def attach(self) -> None:
        """Put every adapter into its module's forward; after an exception none is."""
        done: list[LoraAdapter] = []
        try:
            for adapter in self.adapters.values():
                adapter.attach()
                done.append(adapter)
        except BaseException:
            for adapter in reversed(done):
                adapter.detach()
            raise

    def detach(self) -> None:
        """Undo `attach` exactly."""
        for adapter in reversed(list(self.adapters.values())):
            adapter.detach()

    def retarget(self, targets: Sequence[Target]) -> None:
        """Adapt these modules from now on, by key: those of another instance of the same checkpoint. Not attached."""
        found = {target.key: target for target in targets}
        for key, adapter in self.adapters.items():
            adapter.target = found[key]

    @contextmanager
    def attached(self) -> Iterator[Network]:
        """The network in the forward pass, from entering to leaving the block."""
        self.attach()
        try:
            yield self
        finally:
            self.detach()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base as it is without the network, from entering to leaving the block; outside, it is attached again."""
        self.detach()
        try:
            yield
        finally:
            self.attach()

    def parameters_by_group(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by learning-rate group ("unet", "text_encoder"), without groups that have none."""
        groups: dict[str, list[nn.Parameter]] = {}
        for group in ("unet", "text_encoder"):
            found = [p for a in self.adapters.values() if a.target.group == group for p in a.parameters()]
            if found:
                groups[group] = found
        return groups

    def cast(self, dtype: torch.dtype) -> None:
        """Keep the factors of all adapters in this dtype from now on; their alphas stay exact."""
        for adapter in self.adapters.values():
            adapter.cast(dtype)

    def state_dict_for_file(self) -> dict[str, Tensor]:
        """Copies of all tensors by their names in a file, fp32 on the CPU."""
        tensors: dict[str, Tensor] = {}
        for key, adapter in self.adapters.items():
            tensors[f"{key}.{_ALPHA}"] = adapter.alpha
            tensors[f"{key}.{_DOWN}"] = adapter.lora_down.weight
            tensors[f"{key}.{_UP}"] = adapter.lora_up.weight
        return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors by their names in a file.

        Raises UserError where a name is missing or left over, or where a shape is not the adapter's; nothing has
        changed then. Linear layers stored as 1×1 convolutions (and the other way round) are accepted.
        """
        problems = _misfits(self.adapters, tensors)
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"these tensors are not those of this network: {'; '.join(problems[:3])}{more}. "
                "Train on the kind of checkpoint and with the rank that they were made for"
            )
        for key, adapter in self.adapters.items():
            adapter.load(tensors[f"{key}.{_DOWN}"], tensors[f"{key}.{_UP}"], float(tensors[f"{key}.{_ALPHA}"]))


def _misfits(adapters: Mapping[str, LoraAdapter], tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps `tensors` from being loaded, in words."""
    wanted: dict[str, tuple[int, ...]] = {}
    for key, adapter in adapters.items():
        wanted[f"{key}.{_ALPHA}"] = ()
        wanted[f"{key}.{_DOWN}"] = tuple(adapter.lora_down.weight.shape)
        wanted[f"{key}.{_UP}"] = tuple(adapter.lora_up.weight.shape)
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    for name, shape in wanted.items():
        if name in tensors and _squeezed(tensors[name].shape) != _squeezed(shape):
            problems.append(f"{name} is {tuple(tensors[name].shape)} instead of {shape}")
    return problems


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the 1×1 of a pointwise convolution."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)
