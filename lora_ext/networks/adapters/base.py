"""What all adapters have in common: attaching to a module's forward and detaching, names in files, max norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_ext.networks.dropout import NO_DROPOUT, Dropout
from lora_ext.networks.fused_linear import is_untouched
from lora_ext.networks.targets import Target

Forward = Callable[[Tensor], Tensor]


class Adapter(nn.Module, ABC):
    """Changes the output of one module, whose own weights stay as they are.

    The adapted module is no child of the adapter: `parameters()` holds what is trained, in fp32 on the module's device
    (`cast` changes that). A subclass gives `forward`, and `tensors_for_file` where a file's tensors are not the
    parameters and `alpha`.
    """

    up_factors: ClassVar[tuple[str, ...]] = ()
    """How the names of parameters begin that LoRA+ gives a rate of their own: those that are zero at the start."""

    exact: ClassVar[tuple[str, ...]] = ()
    """Parameters that `cast` leaves in fp32."""

    alpha: Tensor

    def __init__(self, target: Target, dropout: Dropout = NO_DROPOUT) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(float(target.alpha)))
        self.target = target
        self.rank = target.rank
        self.dropout = dropout
        self._module_forward: Forward | None = None
        self._overridden: Forward | None = None
        self._installed: Forward | None = None
        self._is_untouched = False

    @property
    def attached(self) -> bool:
        """Whether the module's forward goes through the adapter."""
        return self._module_forward is not None

    @property
    def draws(self) -> bool:
        """Whether `forward` draws random numbers in train mode."""
        return self.dropout.active

    @property
    def base_forward(self) -> Forward:
        """The module's forward without the adapter."""
        if self._module_forward is None:
            raise RuntimeError(f"{self.target.key}: the adapter is not attached")
        return self._module_forward

    def attach(self) -> None:
        """Put the adapter into the module's forward, on this instance alone.

        It goes over the forward that is there now, with whatever programs have put into the class (the WebUI's built-in
        Lora does); as the class is left alone, neither has to be taken off before the other.
        """
        if self._module_forward is not None:
            raise RuntimeError(f"{self.target.key}: the adapter is attached already")
        module: Any = self.target.module
        self._is_untouched = is_untouched(module) and not module.weight.requires_grad
        self._overridden = module.__dict__.get("forward")
        self._module_forward = module.forward
        self._installed = self.forward
        module.__dict__["forward"] = self._installed

    def detach(self) -> None:
        """Undo `attach` exactly: the module has the forward again that it had."""
        if self._module_forward is None:
            raise RuntimeError(f"{self.target.key}: the adapter is not attached")
        module = self.target.module
        if module.__dict__.get("forward") is not self._installed:
            raise RuntimeError(f"{self.target.key}: something else was put over the adapter: take that off first")
        if self._overridden is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = self._overridden
        self._module_forward = self._overridden = self._installed = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x (batch, …, in) or (batch, in, h, w), as the adapter changes it."""

    def cast(self, dtype: torch.dtype) -> None:
        """Keep the parameters in this dtype from now on; alpha, and what needs more precision, stays exact."""
        for name, parameter in self.named_parameters():
            if not name.endswith(self.exact or ("\0",)):
                parameter.data = parameter.data.to(dtype)

    def tensors_for_file(self) -> dict[str, Tensor]:
        """The tensors of this module in a network file, by suffix."""
        return {"alpha": self.alpha, **self.state_tensors()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a file's tensors, by suffix; the caller has compared names and shapes."""
        self.load_state_tensors({name: tensor for name, tensor in tensors.items() if name != "alpha"})
        if "alpha" in tensors:
            self.set_alpha(float(tensors["alpha"]))

    def state_tensors(self) -> dict[str, Tensor]:
        """What is trained, exactly, by names within the adapter: what a saved state keeps."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave; the caller has compared names and shapes."""
        for name, tensor in self.state_tensors().items():
            tensor.copy_(tensors[name].reshape(tensor.shape))

    def retarget(self, target: Target) -> None:
        """Adapt this module from now on: that of another instance of the same checkpoint. Not attached."""
        self.target = target

    def set_alpha(self, alpha: float) -> None:
        """Take a file's alpha."""
        self.alpha.fill_(alpha)

    def split_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters that take a gradient: (others, up factors)."""
        trained = [(name, each) for name, each in self.named_parameters() if each.requires_grad]
        ups = [each for name, each in trained if name.startswith(self.up_factors or ("\0",))]
        return [each for name, each in trained if not name.startswith(self.up_factors or ("\0",))], ups

    def delta_norm(self) -> Tensor | None:
        """‖ΔW‖ (Frobenius), a scalar in fp32 on the adapter's device; None where max norm has nothing to act on."""
        return None

    def shrink(self, ratio: Tensor) -> None:
        """Make ‖ΔW‖ this many times as long (a scalar from 0 to 1)."""
        raise NotImplementedError

    def left_out(self) -> bool:
        """Whether module dropout leaves the adapter out this time; draws from torch's generator of the CPU."""
        return bool(self.training and self.dropout.module and float(torch.rand(1)) < self.dropout.module)


def parameter_like(tensor: Tensor, shape: tuple[int, ...] | None = None) -> nn.Parameter:
    """A parameter of zeros in fp32, on the device of `tensor` and of its shape, or of another one."""
    return nn.Parameter(torch.zeros(tensor.shape if shape is None else shape, device=tensor.device))
