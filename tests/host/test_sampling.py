"""Samplers against their formulas, and noise that belongs to a picture's seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.conditioning import Conditioning
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.host.standalone.sampling import SAMPLERS, find_sampler, make_scheduler, sample, to_pictures
from lora_ext.protocols import UserError

SCHEDULE = NoiseSchedule.scaled_linear()
SIGMAS = ((1 - SCHEDULE.alphas_cumprod) / SCHEDULE.alphas_cumprod).sqrt()
TARGET = torch.tensor([0.5, -1.0, 2.0, 0.0]).reshape(1, 4, 1, 1)
STATES = torch.zeros(1, 77, 8)


class PerfectModel(nn.Module):
    """Predicts the very noise (or v) that takes x_t back to `TARGET`."""

    def __init__(self, prediction_type: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.prediction_type = prediction_type

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: None = None) -> Tensor:
        lower = timesteps.long()
        alphas = SCHEDULE.alphas_cumprod[lower].float().reshape(-1, 1, 1, 1)
        noise = (x - alphas.sqrt() * TARGET) / (1 - alphas).sqrt()
        if self.prediction_type == "epsilon":
            return noise
        return alphas.sqrt() * noise - (1 - alphas).sqrt() * TARGET


def perfect_checkpoint(prediction_type: str = "epsilon") -> Checkpoint:
    model = PerfectModel(prediction_type)
    return Checkpoint(model, nn.Identity(), [], SCHEDULE, "SD1", prediction_type, "perfect", None, "")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint_path: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint_path, torch.device("cpu"), torch.float32).checkpoint


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_model_leads_to_its_target(name: str, prediction_type: str, steps: int) -> None:
    checkpoint = perfect_checkpoint(prediction_type)
    result = sample(checkpoint, SAMPLERS[name], Conditioning(STATES), Conditioning(STATES), (2, 3), [1, 2], steps, 5.0)
    tolerance = 0.15 if name == "DDIM" else 0.06  # DDIM ends at ᾱ₀ < 1; timesteps between integers are rounded
    torch.testing.assert_close(result, TARGET.expand(2, 4, 2, 3), atol=tolerance, rtol=0)


def test_euler_follows_k_diffusions_timesteps_and_formula(tiny: Checkpoint) -> None:
    """x ← x + (σ' − σ)·ε (Karras et al. 2022, algorithm 1 without churn), σ evenly spread over timesteps."""
    states = tiny.text_encoders[0].encode(tiny.text_encoders[0].tokenize(["a cat"], 75)).detach()
    ours = sample(tiny, SAMPLERS["Euler"], Conditioning(states), Conditioning(states), (8, 8), [5], 4, 1.0)

    timesteps = [999.0, 666.0, 333.0, 0.0]
    sigmas = [float(SIGMAS[int(t)]) for t in timesteps] + [0.0]
    assert sigmas[0] == pytest.approx(14.6146, abs=1e-3)
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5)) * sigmas[0]
    with torch.no_grad():
        for t, sigma, following in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True):
            noise = tiny.unet(x / math.sqrt(sigma**2 + 1), torch.tensor([t]), states)
            x = x + (following - sigma) * noise
    torch.testing.assert_close(ours, x, atol=2e-3, rtol=1e-3)


def test_euler_a_takes_its_noise_from_the_pictures_generator(tiny: Checkpoint) -> None:
    """k-diffusion's ancestral step with η = 1, the starting noise first and one draw a step after it."""
    states = torch.zeros(1, 77, 32)
    ours = sample(tiny, SAMPLERS["Euler a"], Conditioning(states), Conditioning(states), (8, 8), [5], 3, 1.0)

    sigmas = [float(SIGMAS[t]) for t in (999, 499, 0)] + [0.0]
    sigmas[1] = float((SIGMAS[499] + SIGMAS[500]) / 2)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((1, 4, 8, 8), generator=generator) * sigmas[0]
    with torch.no_grad():
        for t, sigma, following in zip((999.0, 499.5, 0.0), sigmas[:-1], sigmas[1:], strict=True):
            noise = tiny.unet(x / math.sqrt(sigma**2 + 1), torch.tensor([t]), states)
            up = math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)
            down = math.sqrt(following**2 - up**2)
            x = x + (down - sigma) * noise
            x = x + up * torch.randn((1, 4, 8, 8), generator=generator)
    torch.testing.assert_close(ours, x, atol=5e-3, rtol=1e-3)


def test_ddim_has_compvis_timesteps() -> None:
    scheduler = make_scheduler(SAMPLERS["DDIM"], SCHEDULE, "epsilon", 20)
    assert scheduler.timesteps.tolist() == list(range(951, 0, -50))


def test_karras_sigmas() -> None:
    """Karras et al. 2022, equation 5, ρ = 7, from the model's largest σ to its smallest."""
    scheduler = make_scheduler(SAMPLERS["DPM++ 2M Karras"], SCHEDULE, "epsilon", 10)
    low, high = float(SIGMAS[0]) ** (1 / 7), float(SIGMAS[-1]) ** (1 / 7)
    expected = [(high + i / 9 * (low - high)) ** 7 for i in range(10)] + [0.0]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_depends_on_its_seed_alone(tiny: Checkpoint, name: str) -> None:
    states = torch.zeros(1, 77, 32)
    before = torch.random.get_rng_state()
    batch = sample(tiny, SAMPLERS[name], Conditioning(states), Conditioning(states + 1), (8, 8), [7, 8, 9], 4, 3.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    alone = sample(tiny, SAMPLERS[name], Conditioning(states), Conditioning(states + 1), (8, 8), [8], 4, 3.0)
    torch.testing.assert_close(batch[1:2], alone, atol=2e-2, rtol=1e-3)
    again = sample(tiny, SAMPLERS[name], Conditioning(states), Conditioning(states + 1), (8, 8), [8], 4, 3.0)
    assert torch.equal(alone, again)
    assert not torch.allclose(batch[0], batch[1])


def test_guidance_moves_away_from_the_negative_prompt(tiny: Checkpoint) -> None:
    """ε = ε₋ + s·(ε₊ − ε₋): at scale 1 the negative prompt has no say."""
    states, other = torch.zeros(1, 77, 32), torch.ones(1, 77, 32)
    sampler = SAMPLERS["Euler"]
    assert torch.equal(
        sample(tiny, sampler, Conditioning(states), Conditioning(other), (8, 8), [1], 2, 1.0),
        sample(tiny, sampler, Conditioning(states), Conditioning(states), (8, 8), [1], 2, 1.0),
    )
    assert not torch.allclose(
        sample(tiny, sampler, Conditioning(states), Conditioning(other), (8, 8), [1], 2, 4.0),
        sample(tiny, sampler, Conditioning(states), Conditioning(states), (8, 8), [1], 2, 4.0),
    )


def test_progress_counts_the_steps(tiny: Checkpoint) -> None:
    seen: list[tuple[int, int]] = []
    states = torch.zeros(1, 77, 32)
    sample(
        tiny,
        SAMPLERS["Euler"],
        Conditioning(states),
        Conditioning(states),
        (8, 8),
        [1],
        3,
        2.0,
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_unknown_sampler_is_refused_with_the_names() -> None:
    with pytest.raises(UserError, match="'Heun' is unknown; allowed: Euler a, Euler, DDIM"):
        find_sampler("Heun")


def test_pictures_are_eight_bit_rgb() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(4, 1, 1, 1).expand(4, 3, 2, 5)
    pictures = to_pictures(images)
    assert [picture.getpixel((4, 1))[0] for picture in pictures] == [0, 0, 127, 255]
    assert (pictures[0].size, pictures[0].mode) == ((5, 2), "RGB")
