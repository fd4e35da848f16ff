from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_ext.protocols import UserError
from lora_ext.training.state_trees import OptimizerState, pack, unpack


def through_json(tree: Any) -> Any:
    tensors: dict[str, Tensor] = {}
    packed = json.loads(json.dumps(pack(tree, "x", tensors), allow_nan=False))
    return unpack(packed, tensors)


def test_trees_come_back_as_they_were() -> None:
    tree = {
        0: {"step": torch.tensor(3.0), "avg": torch.arange(4, dtype=torch.bfloat16).reshape(2, 2)},
        "groups": [{"betas": (0.9, 0.99), "lr": 1e-4, "foreach": True, "capturable": None, "name": "ü"}],
        "losses": [1.5, math.inf, 0.1 + 0.2],
        "empty": {},
    }
    back = through_json(tree)
    assert torch.equal(back[0].pop("avg"), tree[0].pop("avg"))  # type: ignore[attr-defined, index]
    assert back == tree
    assert math.isnan(through_json([math.nan])[0])


def test_what_no_state_can_keep_is_said() -> None:
    with pytest.raises(UserError, match=r"x\.hook holds a function"):
        pack({"hook": through_json}, "x", {})


def make(kind: type[torch.optim.Optimizer], **values: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    return weight, kind([{"params": [weight], **values}])  # type: ignore[call-arg]


def take(weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    for number in range(steps):
        weight.grad = torch.tensor([0.3, -0.1 * number])
        optimizer.step()
    values: list[float] = weight.tolist()
    return values


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_an_optimizer_goes_on_where_it_was(kind: type[torch.optim.Optimizer]) -> None:
    whole, parts, again = make(kind, lr=0.1), make(kind, lr=0.1), make(kind, lr=0.1)
    take(*whole, 5)
    take(*parts, 5)
    expected = take(*whole, 4)
    state = through_json(OptimizerState(parts[1]).state_dict())
    again[0].data.copy_(parts[0])
    OptimizerState(again[1]).load_state_dict(state)
    assert take(*again, 4) == expected


def test_settings_that_were_changed_win_and_what_the_optimizer_has_found_out_stays() -> None:
    _, before = make(torch.optim.AdamW, lr=0.1, weight_decay=0.01)
    saved = OptimizerState(before)
    before.param_groups[0]["lr"] = 0.07  # as an adaptive optimizer would
    _, after = make(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    OptimizerState(after).load_state_dict(through_json(saved.state_dict()))
    assert (after.param_groups[0]["lr"], after.param_groups[0]["weight_decay"]) == (0.07, 0.5)


def test_another_optimizer_is_refused() -> None:
    state = OptimizerState(make(torch.optim.AdamW, lr=0.1)[1]).state_dict()
    with pytest.raises(ValueError, match="it is AdamW's"):
        OptimizerState(make(torch.optim.SGD, lr=0.1)[1]).load_state_dict(state)
