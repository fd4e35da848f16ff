"""A network in training: the adapters of all its targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.adapters.make import make_adapter
from lora_ext.networks.dropout import NO_DROPOUT, Dropout
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError


class Network(nn.Module):
    """One adapter a target, by the target's key; `adapters` keeps the order of the targets."""

    def __init__(self, targets: Sequence[Target], generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> None:
        """Draw every adapter's start from the CPU `generator`, in the order of `targets`."""
        super().__init__()
        self.adapters: Mapping[str, Adapter] = nn.ModuleDict(  # type: ignore[assignment]
            {target.key: make_adapter(target, generator, dropout) for target in targets}
        )

    def attach(self) -> None:
        """Put every adapter into its module's forward; after an exception none is."""
        done: list[Adapter] = []
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
            adapter.retarget(found[key])

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

    @property
    def draws(self) -> bool:
        """Whether a forward pass in train mode draws random numbers."""
        return any(adapter.draws for adapter in self.adapters.values())

    def cast(self, dtype: torch.dtype) -> None:
        """Keep the factors of all adapters in this dtype from now on; their alphas stay exact."""
        for adapter in self.adapters.values():
            adapter.cast(dtype)

    def state_dict_for_file(self) -> dict[str, Tensor]:
        """Copies of all tensors by their names in a file, fp32 on the CPU."""
        return _copies({key: adapter.tensors_for_file() for key, adapter in self.adapters.items()})

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors by their names in a file.

        Raises UserError where a name is missing or left over, or where a shape is not the adapter's; nothing has
        changed then. Linear layers stored as 1×1 convolutions (and the other way round) are accepted.
        """
        modules = self._sorted_out(tensors, {key: each.tensors_for_file() for key, each in self.adapters.items()})
        for key, adapter in self.adapters.items():
            adapter.load_tensors(modules[key])

    def state_tensors(self) -> dict[str, Tensor]:
        """Copies of all that is trained, by names of our own, fp32 on the CPU: nothing is folded, as in files it is."""
        return _copies({key: self._state_of(adapter) for key, adapter in self.adapters.items()})

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave; raises UserError as `load_tensors` does."""
        modules = self._sorted_out(tensors, {key: self._state_of(each) for key, each in self.adapters.items()})
        for key, adapter in self.adapters.items():
            adapter.load_state_tensors(modules[key])
            adapter.set_alpha(float(modules[key]["alpha"]))

    @staticmethod
    def _state_of(adapter: Adapter) -> dict[str, Tensor]:
        return {"alpha": adapter.alpha, **adapter.state_tensors()}

    @staticmethod
    def _sorted_out(
        tensors: Mapping[str, Tensor], wanted: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        """The tensors by key and suffix; UserError where they are not the wanted ones."""
        problems = _misfits(tensors, wanted)
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"these tensors are not those of this network: {'; '.join(problems[:3])}{more}. "
                "Train on the kind of checkpoint, with the algorithm and with the rank that they were made for"
            )
        return {
            key: {suffix: tensors[f"{key}.{suffix}"] for suffix in suffixes if f"{key}.{suffix}" in tensors}
            for key, suffixes in wanted.items()
        }


def _copies(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{key}.{suffix}": tensor.detach().to("cpu", torch.float32, copy=True)
        for key, tensors in modules.items()
        for suffix, tensor in tensors.items()
    }


def _misfits(tensors: Mapping[str, Tensor], modules: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """What keeps `tensors` from being loaded, in words."""
    wanted = {f"{key}.{suffix}": tuple(t.shape) for key, suffixes in modules.items() for suffix, t in suffixes.items()}
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    for name, shape in wanted.items():
        if name in tensors and squeezed(tensors[name].shape) != squeezed(shape):
            problems.append(f"{name} is {tuple(tensors[name].shape)} instead of {shape}")
    return problems


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the 1×1 of a pointwise convolution."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)
