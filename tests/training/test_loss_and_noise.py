from __future__ import annotations

import pytest
import torch

from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.training.loss import diffusion_loss, min_snr_weights, prediction_target, sample_weights
from lora_ext.training.noise import generator_for, sample_noise, sample_timesteps

SCHEDULE = NoiseSchedule.scaled_linear()


def test_min_snr_weights_of_known_ratios() -> None:
    snr = torch.tensor([0.5, 5.0, 20.0])
    assert min_snr_weights(snr, 5.0, "epsilon").tolist() == pytest.approx([1.0, 1.0, 0.25])
    assert min_snr_weights(snr, 5.0, "v_prediction").tolist() == pytest.approx([0.5 / 1.5, 5 / 6, 5 / 21])


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


def test_loss_weighs_samples_and_averages_the_batch() -> None:
    prediction = torch.zeros(2, 1, 2, 2)
    target = torch.stack([torch.full((1, 2, 2), 2.0), torch.full((1, 2, 2), 3.0)])
    assert diffusion_loss(prediction, target, torch.tensor([1.0, 0.5])).item() == pytest.approx((4 + 4.5) / 2)


def test_loss_is_taken_in_fp32() -> None:
    prediction = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    target = torch.full((1, 1, 64, 64), 1.001)
    loss = diffusion_loss(prediction, target, torch.ones(1))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1.001**2, rel=1e-6)


def test_loss_names_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 2, 2\).*\(1, 8, 2, 2\)"):
        diffusion_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 2, 2), torch.ones(1))


def test_sample_weights_multiply() -> None:
    timesteps = torch.tensor([0, 999])
    plain = sample_weights(torch.tensor([1.0, 0.5]), timesteps, SCHEDULE, "epsilon", None)
    assert plain.tolist() == [1.0, 0.5]
    clipped = sample_weights(torch.tensor([1.0, 0.5]), timesteps, SCHEDULE, "epsilon", 5.0)
    assert clipped[0].item() == pytest.approx(5.0 / SCHEDULE.snr(timesteps)[0].item())
    assert clipped[1].item() == 0.5


def test_streams_of_one_seed_differ_and_repeat() -> None:
    first = sample_noise((1, 4, 8, 8), 0.0, generator_for(42, "noise"))
    again = sample_noise((1, 4, 8, 8), 0.0, generator_for(42, "noise"))
    other = sample_noise((1, 4, 8, 8), 0.0, generator_for(42, "network"))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_noise_offset_shifts_whole_channels() -> None:
    plain = sample_noise((2, 4, 8, 8), 0.0, generator_for(1, "noise"))
    shifted = sample_noise((2, 4, 8, 8), 0.5, generator_for(1, "noise"))
    shift = shifted - plain
    assert shift.std(dim=(2, 3)).max().item() < 1e-6
    assert shift[:, :, 0, 0].std().item() > 0.1


def test_timesteps_cover_the_schedule() -> None:
    timesteps = sample_timesteps(20000, 1000, generator_for(0, "timesteps"))
    assert timesteps.min().item() == 0 and timesteps.max().item() == 999
    assert timesteps.float().mean().item() == pytest.approx(499.5, abs=6)
