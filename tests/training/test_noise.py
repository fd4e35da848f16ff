from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.config.groups import LossSettings
from lora_ext.config.groups.loss import TIMESTEP_SAMPLINGS
from lora_ext.training.noise import SeededNoise, adaptive_offset, generator_for, sample_noise, with_coarse_noise
from lora_ext.training.timesteps import PLACES, band_means, sample_timesteps

LATENTS = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(5))


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


def test_adaptive_offset_follows_the_latents() -> None:
    latents = torch.tensor([-2.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert adaptive_offset(0.5, 0.25, latents).flatten().tolist() == [1.0, 0.75]
    assert adaptive_offset(0.5, -0.3, latents).flatten().tolist() == pytest.approx([0.0, 0.2])


@pytest.mark.parametrize("size", [(8, 8), (13, 40), (1, 9)])
@pytest.mark.parametrize(("iterations", "discount"), [(1, 0.3), (6, 0.4), (64, 0.9)])
def test_coarse_noise_is_of_unit_variance(size: tuple[int, int], iterations: int, discount: float) -> None:
    noise = sample_noise((2, 4, *size), 0.0, generator_for(1, "noise"))
    coarse = with_coarse_noise(noise, iterations, discount, generator_for(1, "multires"))
    assert coarse.shape == noise.shape and coarse.std().item() == pytest.approx(1.0, rel=1e-5)


def test_coarse_noise_makes_neighbours_alike() -> None:
    noise = sample_noise((4, 4, 32, 32), 0.0, generator_for(1, "noise"))
    coarse = with_coarse_noise(noise, 6, 0.9, generator_for(1, "multires"))
    alike = [(each[..., 1:] * each[..., :-1]).mean().item() for each in (noise, coarse)]
    assert abs(alike[0]) < 0.05 and alike[1] > 0.3


def test_the_first_level_alone_is_a_mix_of_two_noises() -> None:
    """Level 0 has the full size, so that 1 + discount² is the variance before the scaling."""
    noise = sample_noise((4, 4, 64, 64), 0.0, generator_for(1, "noise"))
    mixed = with_coarse_noise(noise, 1, 1.0, generator_for(1, "multires"))
    assert (mixed * noise).mean().item() == pytest.approx(0.5**0.5, abs=0.02)


@pytest.mark.parametrize(
    "values",
    [
        {"ip_noise_gamma": 0.1},
        {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
        {"timestep_sampling": "late"},
        {"min_timestep": 100},
    ],
)
def test_what_is_to_be_predicted_stays(values: dict[str, object]) -> None:
    plain = SeededNoise(7, 1000)(LATENTS, 3, 1)
    draw = SeededNoise(7, 1000, LossSettings(**values))(LATENTS, 3, 1)  # type: ignore[arg-type]
    assert torch.equal(draw.noise, plain.noise)
    assert (draw.input_noise is None) == ("ip_noise_gamma" not in values)


def test_input_perturbation_is_gamma_times_noise() -> None:
    draw = SeededNoise(7, 1000, LossSettings(ip_noise_gamma=0.1))(torch.zeros(4, 4, 64, 64), 0, 0)
    assert draw.input_noise is not None
    extra = draw.input_noise - draw.noise
    assert extra.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs((extra * draw.noise).mean().item()) < 0.002


@pytest.mark.parametrize("name", ["noise_offset", "ip_noise_gamma"])
def test_a_random_strength_is_one_a_batch_from_0_to_all(name: str) -> None:
    full = SeededNoise(7, 1000, LossSettings(**{name: 0.5}))  # type: ignore[arg-type]
    weaker = SeededNoise(7, 1000, LossSettings(**{name: 0.5, f"{name}_random_strength": True}))  # type: ignore[arg-type]
    shares = []
    for step in range(20):
        plain = SeededNoise(7, 1000)(LATENTS, step, 0).noise
        added = [
            (draw.noise if draw.input_noise is None else draw.input_noise) - plain
            for draw in (full(LATENTS, step, 0), weaker(LATENTS, step, 0))
        ]
        share = (added[1] / added[0]).flatten()
        assert share.std().item() < 1e-2
        shares.append(share.median().item())
    assert 0 < min(shares) < 0.3 and 0.7 < max(shares) < 1


@given(step=st.integers(0, 10**6), part=st.integers(0, 64))
def test_a_draw_depends_on_seed_step_and_part_alone(step: int, part: int) -> None:
    settings = LossSettings(
        noise_offset=0.1, noise_offset_random_strength=True, adaptive_noise_scale=0.1, multires_noise_iterations=6,
        ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True, timestep_sampling="logit_normal",
    )  # fmt: skip
    source = SeededNoise(3, 1000, settings)
    before = torch.get_rng_state()
    source(LATENTS, 0, 0)
    draw, again = source(LATENTS, step, part), SeededNoise(3, 1000, settings)(LATENTS, step, part)
    assert torch.equal(before, torch.get_rng_state())
    assert draw.input_noise is not None and again.input_noise is not None
    assert torch.equal(draw.noise, again.noise) and torch.equal(draw.input_noise, again.input_noise)
    assert torch.equal(draw.timesteps, again.timesteps)
    assert not torch.equal(draw.noise, source(LATENTS, step + 1, part).noise)


def test_every_distribution_is_there() -> None:
    assert {"uniform", *PLACES} == set(TIMESTEP_SAMPLINGS)


@pytest.mark.parametrize(
    ("values", "quartiles"),
    [
        ({}, (250, 500, 750)),
        # the sigmoid of a normal's quartiles: ∓0.67449
        ({"timestep_sampling": "sigmoid"}, (337.5, 500, 662.5)),
        ({"timestep_sampling": "sigmoid", "logit_mean": 5.0}, (337.5, 500, 662.5)),
        ({"timestep_sampling": "logit_normal", "logit_mean": 1.0, "logit_std": 0.5}, (659.8, 731.1, 792.0)),
        # the cubes of ¼, ½, ¾
        ({"timestep_sampling": "early"}, (15.6, 125, 421.9)),
        ({"timestep_sampling": "late"}, (578.1, 875, 984.4)),
        ({"min_timestep": 200, "max_timestep": 400}, (250, 300, 350)),
        ({"min_timestep": 200, "max_timestep": 400, "timestep_sampling": "early"}, (203.1, 225, 284.4)),
    ],
)
def test_timesteps_are_distributed_as_told(values: dict[str, object], quartiles: tuple[float, ...]) -> None:
    settings = LossSettings(**values)  # type: ignore[arg-type]
    timesteps = sample_timesteps(40000, 1000, settings, generator_for(0, "timesteps"))
    assert timesteps.dtype == torch.int64
    assert timesteps.min().item() >= settings.min_timestep and timesteps.max().item() < settings.max_timestep
    found = torch.quantile(timesteps.float() + 0.5, torch.tensor([0.25, 0.5, 0.75]))
    assert found.tolist() == pytest.approx(quartiles, abs=6)


@pytest.mark.parametrize("name", TIMESTEP_SAMPLINGS)
def test_a_range_of_one_timestep(name: str) -> None:
    settings = LossSettings(min_timestep=999, max_timestep=1000, timestep_sampling=name)
    assert sample_timesteps(3, 1000, settings, generator_for(0, "t")).tolist() == [999] * 3


def test_uniform_timesteps_cover_the_schedule() -> None:
    timesteps = sample_timesteps(20000, 1000, LossSettings(), generator_for(0, "timesteps"))
    assert timesteps.min().item() == 0 and timesteps.max().item() == 999


def test_bands_are_quarters_of_the_schedule() -> None:
    means = band_means([1.0, 3.0, 5.0, 7.0], [0, 249, 250, 999], 1000)
    assert means == {"0-250": 2.0, "250-500": 5.0, "750-1000": 7.0}
    assert list(means) == ["0-250", "250-500", "750-1000"] and band_means([], [], 1000) == {}
