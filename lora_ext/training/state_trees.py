"""Nested state (of optimizers, schedules, averages) as tensors and JSON, without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lora_ext.protocols import UserError

_TENSOR, _PAIRS, _TUPLE, _NUMBER = "tensor", "pairs", "tuple", "number"


class Stateful(Protocol):
    """Something of a run that goes on where it was: an optimizer, a schedule, an average."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that it needs to go on: tensors, numbers, text, and lists, tuples and dicts of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Go on from there."""
        ...


def pack(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON takes it; its tensors go into `tensors`, on the CPU, under names that begin with `name`.

    Raises UserError for anything but tensors, numbers, text, None, and lists, tuples and dicts of them.
    """
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(tree, Mapping):
        pairs = [[_plain(key, name), pack(value, f"{name}.{key}", tensors)] for key, value in tree.items()]
        return {_PAIRS: pairs}
    if isinstance(tree, tuple):
        return {_TUPLE: [pack(value, f"{name}.{place}", tensors) for place, value in enumerate(tree)]}
    if isinstance(tree, list):
        return [pack(value, f"{name}.{place}", tensors) for place, value in enumerate(tree)]
    if isinstance(tree, float) and not math.isfinite(tree):
        return {_NUMBER: str(tree)}  # JSON has no nan and no infinity
    return _plain(tree, name)


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given; KeyError where a tensor is missing."""
    if isinstance(packed, list):
        return [unpack(value, tensors) for value in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _PAIRS:
        return {key: unpack(value, tensors) for key, value in content}
    if kind == _TUPLE:
        return tuple(unpack(value, tensors) for value in content)
    return float(content)


class OptimizerState:
    """An optimizer's state, and the settings of its groups where nobody has changed them.

    Adaptive optimizers keep what they have found out in their groups, beside what the settings say: a value that the
    settings give otherwise than when the state was saved is the settings'.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._begun_with = _group_values(optimizer.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own, and the values that its groups have begun with."""
        return {
            "class": type(self.optimizer).__name__,
            "optimizer": self.optimizer.state_dict(),
            "begun_with": self._begun_with,
            "dtypes": self._dtypes(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state over; ValueError where it is that of another optimizer, or of other parameters."""
        if state["class"] != type(self.optimizer).__name__:
            raise ValueError(f"it is {state['class']}'s")
        saved = state["optimizer"]
        if len(saved["param_groups"]) != len(self._begun_with):
            raise ValueError(f"it has {len(saved['param_groups'])} groups, and now there are {len(self._begun_with)}")
        groups = zip(saved["param_groups"], state["begun_with"], self._begun_with, strict=True)
        for group, then, now in groups:
            group.update({key: value for key, value in now.items() if key not in then or then[key] != value})
        self.optimizer.load_state_dict(saved)
        if state["dtypes"] == self._dtypes():  # else torch's cast is right
            self._take_dtypes(saved)

    @property
    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _dtypes(self) -> list[str]:
        """Of all parameters."""
        return [str(parameter.dtype) for parameter in self._parameters]

    def _take_dtypes(self, saved: Mapping[str, Any]) -> None:
        """Have the state in the very dtypes that it was saved in: torch casts it to the parameters'."""
        parameters = self._parameters
        for number, state in saved["state"].items():
            present = self.optimizer.state[parameters[number]]
            for name, value in state.items():
                if isinstance(value, Tensor) and present[name].dtype != value.dtype:
                    present[name] = value.to(present[name].device, copy=True)


def _group_values(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each parameter group says, without its parameters; tensors as numbers."""
    return [{key: _value(value) for key, value in group.items() if key != "params"} for group in state["param_groups"]]


def _value(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"{name} holds a {type(value).__name__}, which no saved state can keep: choose another optimizer or schedule, "
        "or switch save_state off"
    )
