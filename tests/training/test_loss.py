"""The loss; the literal tables were computed by sd-scripts' own functions on the same inputs."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.checkpoint.checkpoint import PredictionType
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.config.groups import LossSettings
from lora_ext.config.train_config import make_config
from lora_ext.protocols import ConfigError
from lora_ext.training.loss import (
    debiased_weights,
    elementwise_loss,
    huber_thresholds,
    mean_over_picture,
    min_snr_weights,
    noise_like_weights,
    prediction_target,
    timestep_weights,
    velocity_like_weights,
)

SCHEDULE = NoiseSchedule.scaled_linear()
ZERO_TERMINAL = SCHEDULE.with_zero_terminal_snr()
TIMESTEPS = torch.tensor([0, 500, 999])
PREDICTIONS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")


def test_target_is_the_noise_or_the_velocity() -> None:
    latents, noise = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 3.0)
    timesteps = torch.tensor([500])
    alpha = SCHEDULE.alphas_cumprod[500]
    assert prediction_target(latents, noise, timesteps, SCHEDULE, "epsilon") is noise
    velocity = prediction_target(latents, noise, timesteps, SCHEDULE, "v_prediction")
    expected = alpha.sqrt().item() * 3.0 - (1 - alpha).sqrt().item() * 2.0
    assert velocity.flatten().tolist() == pytest.approx([expected] * 16)


def test_velocity_is_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, noise = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    timesteps = torch.tensor([0, 400, 999])
    ours = prediction_target(latents, noise, timesteps, SCHEDULE, "v_prediction")
    torch.testing.assert_close(ours, scheduler.get_velocity(latents, noise, timesteps))
    noisy = SCHEDULE.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))


def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    torch.testing.assert_close(ZERO_TERMINAL.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert ZERO_TERMINAL.alphas_cumprod[-1].item() == 0.0
    assert ZERO_TERMINAL.alphas_cumprod[0].item() == pytest.approx(SCHEDULE.alphas_cumprod[0].item(), rel=1e-12)
    again = ZERO_TERMINAL.with_zero_terminal_snr()
    torch.testing.assert_close(again.alphas_cumprod, ZERO_TERMINAL.alphas_cumprod, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("loss_type", "huber_schedule", "losses"),
    [
        ("huber", "constant", [0.72399, 0.72399, 0.72399]),
        ("huber", "exponential", [3.313708, 1.8533, 0.725493]),
        ("huber", "snr", [2.401482, 0.824315, 0.393818]),
        ("smooth_l1", "constant", [3.61995, 3.61995, 3.61995]),
        ("smooth_l1", "exponential", [1.656854, 2.930325, 3.61912]),
        ("smooth_l1", "snr", [2.52865, 3.56409, 3.79799]),
        ("l2", "snr", [4.0, 4.0, 4.0]),
        ("l1", "snr", [2.0, 2.0, 2.0]),
    ],
)
def test_losses_of_a_difference_of_2(loss_type: str, huber_schedule: str, losses: list[float]) -> None:
    settings = LossSettings(loss_type=loss_type, huber_schedule=huber_schedule, huber_c=0.1, huber_scale=2.0)
    target = torch.full((3, 1, 1, 1), 2.0)
    thresholds = huber_thresholds(TIMESTEPS, SCHEDULE, settings)
    error = elementwise_loss(torch.zeros_like(target), target, loss_type, thresholds)
    assert error.flatten().tolist() == pytest.approx(losses, rel=2e-6)


@pytest.mark.parametrize(
    ("values", "kind", "weights"),
    [
        ({"min_snr_gamma": None}, "epsilon", [1.0, 1.0, 1.0]),
        ({}, "epsilon", [0.00425372, 1.0, 1.0]),
        ({}, "v_prediction", [0.00425011, 0.276332, 0.00466009]),
        (
            {"min_snr_gamma": None, "scale_v_pred_loss_like_noise_pred": True},
            "v_prediction",
            [0.999001, 0.276332, 0.00466009],
        ),
        ({"min_snr_gamma": None, "v_pred_like_loss": 0.5}, "epsilon", [1.5005, 2.80941, 108.294]),
        ({"min_snr_gamma": None, "debiased_estimation_loss": True}, "epsilon", [0.0316228, 1.61828, 14.6146]),
        ({"min_snr_gamma": None, "debiased_estimation_loss": True}, "v_prediction", [0.000999001, 0.723668, 0.99534]),
        ({"debiased_estimation_loss": True}, "epsilon", [0.00425372 * 0.0316228, 1.61828, 14.6146]),
    ],
)
def test_weights_at_the_first_the_middle_and_the_last_timestep(
    values: dict[str, object], kind: PredictionType, weights: list[float]
) -> None:
    settings = make_config(values).loss
    assert timestep_weights(TIMESTEPS, SCHEDULE, kind, settings).tolist() == pytest.approx(weights, rel=5e-5)


def test_min_snr_weights_of_known_ratios() -> None:
    snr = torch.tensor([0.0, 0.5, 5.0, 20.0])
    assert min_snr_weights(snr, 5.0, "epsilon").tolist() == pytest.approx([1.0, 1.0, 1.0, 0.25])
    assert min_snr_weights(snr, 5.0, "v_prediction").tolist() == pytest.approx([0.0, 0.5 / 1.5, 5 / 6, 5 / 21])


def test_a_ratio_of_0_or_one_without_end_gives_weights_that_are_numbers() -> None:
    snr = torch.tensor([0.0, math.inf])
    assert debiased_weights(snr, "epsilon").tolist() == pytest.approx([1000**0.5, 1000**-0.5])
    assert debiased_weights(snr, "v_prediction").tolist() == pytest.approx([1.0, 1 / 1001])
    assert velocity_like_weights(snr, 1.0).tolist() == pytest.approx([1002.0, 2.001])
    assert noise_like_weights(snr).tolist() == pytest.approx([0.0, 1000 / 1001])


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("gamma", [None, 0.01, 5.0, 1000.0])
def test_no_setting_gives_a_weight_or_threshold_that_is_no_number(kind: PredictionType, gamma: float | None) -> None:
    every = torch.arange(1000)
    for scaled, share, debiased in product((False, True), (None, 1.0), (False, True)):
        settings = LossSettings(
            min_snr_gamma=gamma, scale_v_pred_loss_like_noise_pred=scaled, v_pred_like_loss=share,
            debiased_estimation_loss=debiased,
        )  # fmt: skip
        plain = timestep_weights(every, SCHEDULE, kind, settings)
        rescaled = timestep_weights(every, ZERO_TERMINAL, kind, settings)
        assert plain.shape == (1000,) and plain.dtype == torch.float32 and bool((plain > 0).all())
        assert bool(torch.isfinite(plain).all() and torch.isfinite(rescaled).all()) and bool((rescaled[:-1] > 0).all())
    for name in ("constant", "exponential", "snr"):
        thresholds = huber_thresholds(every, ZERO_TERMINAL, LossSettings(loss_type="huber", huber_schedule=name))
        assert thresholds is not None and bool((thresholds > 0).all() and torch.isfinite(thresholds).all())


@given(
    difference=st.floats(-50, 50), c=st.floats(0.01, 5), loss_type=st.sampled_from(["l2", "l1", "huber", "smooth_l1"])
)
def test_losses_grow_with_the_difference_and_do_not_mind_its_sign(difference: float, c: float, loss_type: str) -> None:
    differences = torch.tensor([difference, -difference, 1.1 * difference, 0.0]).reshape(4, 1, 1, 1)
    losses = elementwise_loss(differences, torch.zeros_like(differences), loss_type, torch.full((4,), c)).flatten()
    assert losses[0] == losses[1] and losses[2] >= losses[0] >= losses[3] == 0


def test_huber_is_squares_near_0_and_straight_far_away() -> None:
    differences = torch.tensor([0.01, 100.0]).reshape(2, 1, 1, 1)
    losses = elementwise_loss(differences, torch.zeros_like(differences), "huber", torch.full((2,), 0.5)).flatten()
    assert losses.tolist() == pytest.approx([0.01**2, 2 * 0.5 * (100 - 0.5)], rel=1e-3)


def test_the_mean_is_one_number_a_picture() -> None:
    loss = torch.stack([torch.full((3, 2, 2), 4.0), torch.full((3, 2, 2), 9.0)])
    assert mean_over_picture(loss, None, True).tolist() == [4.0, 9.0]


def test_masks_leave_places_out() -> None:
    loss = torch.tensor([[8.0, 4.0], [2.0, 2.0]]).reshape(1, 1, 2, 2)
    mask = torch.tensor([[1.0, 0.5], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    assert mean_over_picture(loss, mask, False).item() == pytest.approx(10 / 4)
    assert mean_over_picture(loss, mask, True).item() == pytest.approx(10 / 1.5)


def test_a_black_mask_teaches_nothing() -> None:
    loss, mask = torch.ones(2, 4, 2, 2), torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    assert mean_over_picture(loss, mask, True).tolist() == [0.0, 1.0]


@given(st.floats(0.01, 1))
def test_a_mask_of_one_grey_changes_nothing_where_masks_are_evened_out(grey: float) -> None:
    loss = torch.rand(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    plain = mean_over_picture(loss, None, True)
    torch.testing.assert_close(mean_over_picture(loss, torch.full((2, 1, 3, 5), grey), True), plain)


def test_loss_is_taken_in_fp32() -> None:
    prediction = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    error = elementwise_loss(prediction, torch.full((1, 1, 64, 64), 1.001), "l2")
    assert error.dtype == torch.float32 and error.mean().item() == pytest.approx(1.001**2, rel=1e-6)


def test_loss_names_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 2, 2\).*\(1, 8, 2, 2\)"):
        elementwise_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 2, 2), "l2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep = 500 is not below max_timestep = 500"),
        ({"adaptive_noise_scale": 0.1}, "adaptive_noise_scale = 0.1 changes a noise offset, and there is none"),
        ({"scale_v_pred_loss_like_noise_pred": True, "prediction_type": "epsilon"}, "switch the former off"),
        ({"v_pred_like_loss": 1, "prediction_type": "v_prediction"}, "v_pred_like_loss is for noise prediction"),
        ({"early_stopping_patience": 3}, "no pictures are held out"),
    ],
)
def test_contradictions(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(values)
