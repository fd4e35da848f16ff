"""What acts on the weights after each update, the weights for use, and a state from which everything goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_ext.config.groups.learning import OPTIMIZERS
from lora_ext.config.train_config import make_config
from lora_ext.networks.network import Network
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError
from lora_ext.training.averaging import WeightAverage
from lora_ext.training.learning import Learning
from lora_ext.training.optimizers import check_optimizer, optimizer_problem
from lora_ext.training.rates import check_schedule
from lora_ext.training.state_trees import pack, unpack

STEPS = 8
HERE = [name for name in OPTIMIZERS if optimizer_problem(name) is None]


def module(size: int) -> nn.Linear:
    return nn.Linear(4, size, bias=False).requires_grad_(False)


def learning(**values: Any) -> Learning:
    targets = [Target("a", module(6), 2, 2.0, "unet", 4), Target("b", module(5), 2, 2.0, "text_encoder")]
    network = Network(targets, torch.Generator().manual_seed(0))
    defaults = {"learning_rate": 0.05, "lr_scheduler": "linear"}
    return Learning(network, make_config({**defaults, **values}), STEPS)


def take_step(made: Learning, step: int) -> None:
    """One update with a gradient that depends on the weights, the parameter and the step alone."""
    made.begin_step(step)
    for number, parameter in enumerate(made.network.parameters()):
        generator = torch.Generator().manual_seed(100 * step + number)
        if parameter.requires_grad:
            parameter.grad = parameter.detach() + torch.randn(parameter.shape, generator=generator).to(parameter)
    made.optimizer.step()
    made.optimizer.zero_grad(set_to_none=True)


def weights(made: Learning) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in made.network.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


STATES = [
    *({"optimizer_type": name} for name in HERE),
    {"ema_decay": 0.9, "scale_weight_norms": 0.5},
    {"stop_text_encoder_training": 50, "ema_decay": 0.9},
    {"lr_scheduler": "torch.optim.lr_scheduler.ExponentialLR", "lr_scheduler_args": "gamma=0.7"},
    {"lr_scheduler": "torch.optim.lr_scheduler.OneCycleLR", "lr_scheduler_args": "max_lr=0.1 total_steps=8"},
    {"optimizer_type": "torch.optim.NAdam", "loraplus_lr_ratio": 4},
]


@pytest.mark.parametrize("values", STATES, ids=lambda values: " ".join(map(str, values.values())))
@pytest.mark.parametrize("after", [3, 6])
def test_going_on_from_a_state_is_going_on(values: dict[str, Any], after: int) -> None:
    whole = learning(**values)
    for step in range(after):
        take_step(whole, step)
    tensors: dict[str, Tensor] = {}
    packed = pack(whole.state_dict(), "learning", tensors)
    network = whole.network.state_dict_for_file()
    for step in range(after, STEPS):
        take_step(whole, step)

    resumed = learning(**values)
    resumed.network.load_tensors(network)
    resumed.load_state_dict(unpack(json.loads(json.dumps(packed)), tensors))
    for step in range(after, STEPS):
        take_step(resumed, step)
    assert equal(weights(resumed), weights(whole))
    assert resumed.rates() == whole.rates()
    with whole.weights_for_use(), resumed.weights_for_use():
        assert equal(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    "values", [{"ema_decay": 0.9}, *({"optimizer_type": f"{name}ScheduleFree"} for name in ("AdamW", "RAdam", "SGD"))]
)
def test_the_weights_for_use_come_and_go(values: dict[str, Any]) -> None:
    made = learning(**values)
    for step in range(STEPS):  # RAdam stands still in its first five
        take_step(made, step)
    before = weights(made)
    with made.weights_for_use():
        inside = weights(made)
        assert not equal(inside, before)
        with made.weights_for_use():
            assert equal(weights(made), inside)
        assert equal(weights(made), inside)
    assert equal(weights(made), before)
    file = made.tensors_for_file()
    assert torch.equal(file["a.lora_up.weight"], inside[1])
    with pytest.raises(KeyError), made.weights_for_use():
        raise KeyError
    assert equal(weights(made), before)


def test_using_the_weights_changes_nothing_of_the_run() -> None:
    plain, used = learning(optimizer_type="AdamWScheduleFree"), learning(optimizer_type="AdamWScheduleFree")
    for step in range(6):
        take_step(plain, step)
        with used.weights_for_use():
            pass
        take_step(used, step)
    assert equal(weights(plain), weights(used))


def test_without_averages_the_weights_for_use_are_the_weights() -> None:
    made = learning()
    take_step(made, 0)
    before = weights(made)
    with made.weights_for_use():
        assert equal(weights(made), before)


def test_the_average_in_numbers() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    average = WeightAverage([parameter], 0.5)
    found = []
    for value in (1.0, 2.0, 3.0):
        parameter.data.fill_(value)
        average.update()
        found.append(average.averages[0].item())
    # Decays 2/11, 3/12, 4/13: 9/11; then 9/44 + 3/2; then 4/13 of that + 27/13.
    assert found == pytest.approx([0.8181818, 1.7045455, 2.6013986])


def test_max_norm_is_held_and_told() -> None:
    made = learning(scale_weight_norms=0.3, learning_rate=1.0, lr_scheduler="constant")
    assert made.norm_report() is None
    take_step(made, 0)
    report = made.norm_report()
    assert report is not None and report.keys_scaled == 2
    assert report.average == pytest.approx(0.3, rel=1e-5) and report.maximum == pytest.approx(0.3, rel=1e-5)
    assert report.sentence() == "2 keys scaled, average norm 0.3, longest 0.3"
    for adapter in made.network.adapters.values():
        delta = adapter.lora_up.weight @ adapter.lora_down.weight * adapter.scale
        assert float(delta.detach().norm()) == pytest.approx(0.3, rel=1e-5)
    assert learning().norm_report() is None


EXPONENTIAL = {"lr_scheduler": "torch.optim.lr_scheduler.ExponentialLR", "lr_scheduler_args": "gamma=0.5"}


@pytest.mark.parametrize("values", [EXPONENTIAL, {**EXPONENTIAL, "learning_rate": 0.4}])
def test_a_run_may_go_on_with_another_schedule(values: dict[str, Any]) -> None:
    before, after = learning(), learning(**values)
    for step in range(3):
        take_step(before, step)
    after.load_state_dict(before.state_dict())
    after.begin_step(3)
    assert after.rates()["unet"] == pytest.approx(values.get("learning_rate", 0.05) / 8)
    assert all(float(state["step"]) == 3 for state in after.optimizer.state.values())


def test_a_run_may_go_on_in_another_precision() -> None:
    before, after = learning(), learning()
    take_step(before, 0)
    after.network.cast(torch.bfloat16)
    after.load_state_dict(before.state_dict())
    take_step(after, 1)
    assert {state["exp_avg"].dtype for state in after.optimizer.state.values()} == {torch.bfloat16}


def test_a_state_of_other_groups_is_refused_in_words() -> None:
    state = learning().state_dict()
    with pytest.raises(ValueError, match="it has 2 groups, and now there are 4"):
        learning(loraplus_lr_ratio=4).load_state_dict(state)


def test_adapters_of_blocks_that_are_left_out_stay_as_they_are() -> None:
    """A file may have brought them."""
    targets = [Target("a", module(6), 2, 2.0, "unet", 4), Target("b", module(5), 2, 2.0, "unet", 5)]
    network = Network(targets, torch.Generator().manual_seed(0))
    for adapter in network.adapters.values():
        adapter.lora_up.weight.data.fill_(1.0)
    factors = ",".join("0" if block == 5 else "1" for block in range(25))
    config = make_config({"block_lr": factors, "scale_weight_norms": 0.01, "learning_rate": 0.05})
    made = Learning(network, config, STEPS)
    before = network.state_dict_for_file()
    take_step(made, 0)
    after = network.state_dict_for_file()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"a.lora_down.weight", "a.lora_up.weight"}
    assert not any(parameter.requires_grad for parameter in network.adapters["b"].parameters())


def test_what_is_wrong_is_found_before_the_start() -> None:
    cpu = torch.device("cpu")
    check_optimizer(make_config({}).learning, cpu)
    for values, words in [
        ({"optimizer_type": "Nothing"}, "Nothing"),
        ({"optimizer_args": "no=1"}, "AdamW has no no"),
    ]:
        with pytest.raises(UserError, match=words):
            check_optimizer(make_config(values).learning, cpu)
    one_cycle = {"lr_scheduler": "torch.optim.lr_scheduler.OneCycleLR"}
    check_schedule(make_config({**one_cycle, "lr_scheduler_args": "max_lr=0.1 total_steps=8"}), STEPS)
    for values, words in [
        ({"lr_scheduler": "nowhere.Schedule"}, "nowhere cannot be imported"),
        ({**one_cycle, "lr_scheduler_args": "max_lr=0.1 total_steps=6"}, "OneCycleLR fails at step 7 of the run"),
        ({"lr_scheduler": "cosine_annealing_warmup_restarts", "lr_warmup_steps": 10}, "cycles of -2 steps"),
        ({"lr_scheduler": "piecewise_constant", "lr_scheduler_args": "step_rules=1:4,nan"}, "a learning rate of nan"),
        (
            {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": "step_rules=1:4,-1"},
            "a learning rate of -0.0001",
        ),
    ]:
        with pytest.raises(UserError, match=words):
            check_schedule(make_config(values), STEPS)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.9, 100])
@pytest.mark.parametrize("schedule", ["cosine_with_restarts", "cosine_annealing_warmup_restarts"])
def test_a_schedule_of_many_cycles_is_no_mistake(schedule: str, warmup: float) -> None:
    values = {"lr_scheduler": schedule, "lr_scheduler_num_cycles": 4, "lr_warmup_steps": warmup}
    check_schedule(make_config(values), 104)
