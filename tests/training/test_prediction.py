from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint, PredictionType
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.config.train_config import make_config
from lora_ext.protocols import UserError
from lora_ext.training.prediction import check_prediction, prediction_type_of, prediction_warnings, schedule_of


def checkpoint(kind: PredictionType) -> Checkpoint:
    return Checkpoint(nn.Identity(), nn.Identity(), [], NoiseSchedule.scaled_linear(), "SD1", kind, "base", None, "")


@pytest.mark.parametrize(
    ("setting", "found", "expected", "warning"),
    [
        ("auto", "epsilon", "epsilon", ""),
        ("auto", "v_prediction", "v_prediction", ""),
        ("v_prediction", "v_prediction", "v_prediction", ""),
        ("v_prediction", "epsilon", "v_prediction", "base was found to predict the noise: it is trained as if it"),
        ("epsilon", "v_prediction", "epsilon", "base was found to predict the velocity: it is trained as if it"),
    ],
)
def test_what_is_predicted(setting: str, found: PredictionType, expected: str, warning: str) -> None:
    config = make_config({"prediction_type": setting})
    assert prediction_type_of(config, checkpoint(found)) == expected
    warnings = list(prediction_warnings(config, checkpoint(found)))
    assert len(warnings) == bool(warning) and warning in "".join(warnings)


@pytest.mark.parametrize(
    ("values", "found", "message"),
    [
        ({"scale_v_pred_loss_like_noise_pred": True}, "epsilon", "base predicts the noise: switch it off"),
        ({"v_pred_like_loss": 0.5}, "v_prediction", "base predicts the velocity: set it to none"),
    ],
)
def test_a_loss_for_another_prediction_is_refused(values: dict[str, Any], found: PredictionType, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_prediction(make_config(values), checkpoint(found))
    other: PredictionType = "v_prediction" if found == "epsilon" else "epsilon"
    check_prediction(make_config(values), checkpoint(other))
    check_prediction(make_config({**values, "prediction_type": other}), checkpoint(found))


def test_zero_terminal_snr_is_for_velocity() -> None:
    config = make_config({"zero_terminal_snr": True})
    schedule = schedule_of(config, checkpoint("epsilon"))
    assert schedule.snr(torch.tensor([999])).item() == 0.0
    assert schedule_of(make_config({}), checkpoint("epsilon")).snr(torch.tensor([999])).item() > 0.004
    assert not list(prediction_warnings(config, checkpoint("v_prediction")))
    assert ["last timesteps" in text for text in prediction_warnings(config, checkpoint("epsilon"))] == [True]
