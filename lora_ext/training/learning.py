"""What learns: optimizer, rates, average of the weights and their longest norm, as one state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.max_norm import MaxNorm, NormReport
from lora_ext.networks.network import Network
from lora_ext.training.averaging import WeightAverage
from lora_ext.training.optimizers import make_optimizer
from lora_ext.training.rates import RateRun, parameter_groups
from lora_ext.training.state_trees import OptimizerState


class Learning:
    """Optimizer and schedule of a network, and what acts on its weights after each of the optimizer's steps.

    `begin_step` comes before an update, `optimizer.step()` is the update; what follows it (max norm, the running
    average) is hooked to it, so that updates that are left out leave nothing behind.
    """

    def __init__(self, network: Network, config: TrainConfig, total_steps: int) -> None:
        self.network = network
        self.optimizer = make_optimizer(parameter_groups(config, network.adapters), config.learning)
        self._optimizer_state = OptimizerState(self.optimizer)
        self._rates = RateRun(self.optimizer, config, total_steps)
        self._parameters: list[nn.Parameter] = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit, decay = config.network.scale_weight_norms, config.learning.ema_decay
        trained = [adapter for adapter in network.adapters.values() if any(adapter.split_parameters())]
        self._max_norm = None if limit is None else MaxNorm(trained, limit)
        self._average = None if decay is None else WeightAverage(self._parameters, decay)
        self._has_other_weights = self._average is not None or _averages_itself(self.optimizer)
        self._others_are_in = False
        self.optimizer.register_step_post_hook(self._after_update)

    @property
    def takes_found_inf(self) -> bool:
        """Whether the optimizer leaves updates out by itself where it is told to on the device, as torch's fused ones.

        What follows an update (max norm, the running average) cannot tell those from others.
        """
        follows = self._max_norm is not None or self._average is not None
        return bool(getattr(self.optimizer, "_step_supports_amp_scaling", False)) and not follows

    def begin_step(self, step: int) -> None:
        """Set the rates of update 0, 1, …; the text encoder stands still from its step on."""
        self._rates.begin_step(step)

    def rates(self) -> dict[str, float]:
        """The step's rates by group, after its update; for optimizers that find d, also d·lr."""
        return self._rates.rates()

    def norm_report(self) -> NormReport | None:
        """What max norm did in the last update; None where it is off. Waits for the device."""
        return None if self._max_norm is None else self._max_norm.report()

    @contextmanager
    def weights_for_use(self) -> Iterator[None]:
        """The weights that files, samples and validation take: averaged ones where there are any.

        Afterwards every parameter has the very bits that it had. May be entered again inside.
        """
        if not self._has_other_weights or self._others_are_in:
            yield
            return
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self._others_are_in = True
        try:
            self._put_others_in()
            yield
        finally:
            self._put_back(kept)
            self._others_are_in = False

    def tensors_for_file(self) -> dict[str, Tensor]:
        """The network's tensors by their names in a file, with the weights for use."""
        with self.weights_for_use():
            return self.network.state_dict_for_file()

    def state_dict(self) -> dict[str, Any]:
        """Everything that goes on with the next step, but the network."""
        state = {"optimizer": self._optimizer_state.state_dict(), "schedule": self._rates.state_dict()}
        if self._average is not None:
            state["average"] = {"updates": self._average.updates, "weights": list(self._average.averages)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, for the same network."""
        self._rates.load_state_dict(state["schedule"])
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self._optimizer_state.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if self._average is not None:
            known = state.get("average", {"updates": 0, "weights": self._parameters})  # it was off, perhaps
            self._average.updates = known["updates"]
            for average, saved in zip(self._average.averages, known["weights"], strict=True):
                average.copy_(saved)

    def _after_update(self, *_: object) -> None:
        if self._max_norm is not None:
            self._max_norm.apply()
        if self._average is not None:
            self._average.update()

    def _put_others_in(self) -> None:
        if self._average is not None:
            self._average.put_in()
        else:
            self.optimizer.eval()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _put_back(self, kept: list[Tensor]) -> None:
        if self._average is None:
            self.optimizer.train()  # type: ignore[attr-defined]
        for parameter, tensor in zip(self._parameters, kept, strict=True):
            parameter.copy_(tensor)


def _averages_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has weights of its own for use, as the schedule-free ones."""
    return all(callable(getattr(optimizer, name, None)) for name in ("eval", "train"))
