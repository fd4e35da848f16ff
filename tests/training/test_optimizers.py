from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.protocols import UserError
from lora_ext.training.optimizers import learning_rates, make_optimizer, set_learning_rates


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"learning_rate": 1e-4}, {"unet": 1e-4, "text_encoder": 1e-4}),
        ({"learning_rate": 1e-4, "text_encoder_lr": 5e-5}, {"unet": 1e-4, "text_encoder": 5e-5}),
        ({"unet_lr": 2e-4, "text_encoder_lr": 0}, {"unet": 2e-4}),
        ({"unet_lr": 0, "text_encoder_lr": 1e-5}, {"text_encoder": 1e-5}),
        ({"learning_rate": 0, "unet_lr": 3e-4}, {"unet": 3e-4}),
        ({"learning_rate": 1e-4, "network_train_unet_only": True}, {"unet": 1e-4}),
        ({"learning_rate": 1e-4, "network_train_text_encoder_only": True}, {"text_encoder": 1e-4}),
    ],
)
def test_rates_of_the_parts(values: dict[str, object], rates: dict[str, float]) -> None:
    assert learning_rates(make_config(values)) == rates


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"learning_rate": 0}, "unet_lr, text_encoder_lr"),
        ({"network_train_unet_only": True, "unet_lr": 0}, "unet_lr = 0"),
        ({"network_train_text_encoder_only": True, "text_encoder_lr": 0}, "text_encoder_lr = 0"),
    ],
)
def test_nothing_to_train(values: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        learning_rates(make_config(values))


def test_groups_have_their_own_rates() -> None:
    unet, text = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(
        {"unet": [unet], "text_encoder": [text]}, {"unet": 0.1, "text_encoder": 0.01}, TrainConfig().learning
    )
    assert set_learning_rates(optimizer, 0.5) == {"unet": 0.05, "text_encoder": 0.005}
    unet.grad, text.grad = torch.ones(3), torch.ones(2)
    optimizer.step()
    # AdamW's first step is the rate itself, after the weight decay of rate · 0.01.
    assert unet[0].item() == pytest.approx(1 - 0.05 * 0.01 - 0.05, abs=1e-6)
    assert text[0].item() == pytest.approx(1 - 0.005 * 0.01 - 0.005, abs=1e-6)


def test_only_the_parts_with_a_rate_are_in_the_optimizer() -> None:
    unet, text = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer({"unet": [unet], "text_encoder": [text]}, {"unet": 0.1}, TrainConfig().learning)
    assert [group["part"] for group in optimizer.param_groups] == ["unet"]
