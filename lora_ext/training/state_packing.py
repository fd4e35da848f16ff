"""Nested states of optimizers and schedulers as flat tensors and JSON, and back: nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lora_ext.protocols import UserError

_TENSOR, _TUPLE, _PAIRS = "tensor", "tuple", "pairs"


def pack(state: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`state` as JSON, its tensors put into `tensors` under names that begin with `name`.

    Tuples and keys that are no text come back as what they were. Raises UserError where something else stands in it.
    """
    if state is None or isinstance(state, bool | int | float | str):
        return state
    if isinstance(state, Tensor):
        tensors[name] = state.detach()
        return {_TENSOR: name}
    if isinstance(state, tuple):
        return {_TUPLE: [pack(each, f"{name}.{number}", tensors) for number, each in enumerate(state)]}
    if isinstance(state, list):
        return [pack(each, f"{name}.{number}", tensors) for number, each in enumerate(state)]
    if isinstance(state, Mapping):
        return {_PAIRS: [[key, pack(each, f"{name}.{key}", tensors)] for key, each in state.items()]}
    raise UserError(
        f"{name} holds a {type(state).__name__}, which cannot be kept in a saved state: choose another optimizer or "
        "schedule, or switch saving of states off"
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given; the tensors are those of `tensors` themselves."""
    if isinstance(packed, list):
        return [unpack(each, tensors) for each in packed]
    if not isinstance(packed, Mapping):
        return packed
    if _TENSOR in packed:
        return tensors[packed[_TENSOR]]
    if _TUPLE in packed:
        return tuple(unpack(each, tensors) for each in packed[_TUPLE])
    return {key: unpack(each, tensors) for key, each in packed[_PAIRS]}
