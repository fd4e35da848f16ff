from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.conditioning import Conditioning
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.config.train_config import make_config
from lora_ext.dataset.dataset import Batch
from lora_ext.protocols import UserError
from lora_ext.training.noise import SeededNoise
from lora_ext.training.step import TrainingStep, windows

NOISE = SeededNoise(seed=42, timesteps=1000)


class TextlessUNet(nn.Module):
    """One convolution, shifted by the text's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        result: Tensor = self.conv(x) + context.mean()
        return result


def make_step(rate: float = 1.0, **values: Any) -> tuple[TrainingStep, TextlessUNet]:
    torch.manual_seed(0)
    unet = TextlessUNet()
    checkpoint = Checkpoint(unet, nn.Identity(), [], NoiseSchedule.scaled_linear(), "SD1", "epsilon", "fake", None, "")
    optimizer = torch.optim.SGD([{"params": list(unet.parameters()), "initial_lr": rate, "part": "unet"}], lr=rate)
    encode: Callable[[list[str]], Conditioning] = lambda captions: Conditioning(torch.zeros(len(captions), 77, 8))  # noqa: E731
    return TrainingStep(checkpoint, make_config(values), optimizer, encode), unet


def batch_of(size: int, seed: int) -> Batch:
    latents = torch.randn(size, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Batch(latents, ["x"] * size, torch.ones(size), [(64, 64)] * size)


@pytest.mark.parametrize(("size", "lists"), [(1, [[1], [2], [3]]), (2, [[1, 2], [3]]), (9, [[1, 2, 3]])])
def test_windows_end_with_the_items(size: int, lists: list[list[int]]) -> None:
    assert list(windows([1, 2, 3], size)) == lists


@pytest.mark.parametrize("window", [3, 4])  # the last window of an epoch may have fewer batches
def test_accumulation_gives_every_batch_the_same_weight(window: int) -> None:
    """As accelerate, which sd-scripts uses: a batch counts 1 / gradient_accumulation_steps wherever it stands."""
    batches = [batch_of(2, 1), batch_of(1, 2), batch_of(2, 3)]
    step, unet = make_step(max_grad_norm=0, gradient_accumulation_steps=window)
    before = [parameter.detach().clone() for parameter in unet.parameters()]
    mean_loss = step.update(batches, 0)
    reference, reference_unet = make_step()
    losses = [reference.loss(batch, NOISE(batch.latents, 0, part)) for part, batch in enumerate(batches)]
    (sum(losses, torch.zeros(())) / window).backward()
    assert mean_loss == pytest.approx(sum(loss.item() for loss in losses) / 3, rel=1e-6)
    for old, new, expected in zip(before, unet.parameters(), reference_unet.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(old - new, expected.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("limit", "clipped"), [(0.01, True), (0, False), (1e6, False)])
def test_gradients_are_clipped_by_their_norm(limit: float, clipped: bool) -> None:
    step, unet = make_step(max_grad_norm=limit)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in unet.parameters()])
    step.update([batch_of(2, 1)], 0)
    change = (torch.cat([parameter.detach().flatten() for parameter in unet.parameters()]) - before).norm().item()
    assert change == pytest.approx(0.01, rel=1e-3) if clipped else change > 0.02


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    step, unet = make_step()
    unet.conv.weight.register_hook(lambda gradient: gradient * math.inf)
    before = [parameter.detach().clone() for parameter in unet.parameters()]
    loss = step.update([batch_of(2, 1)], 0)
    assert math.isfinite(loss) and (step.bad_steps, step.left_out) == (1, "its gradient is inf")
    assert all(torch.equal(old, new) for old, new in zip(before, unet.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_loss_weights_reach_the_loss() -> None:
    batch = batch_of(2, 1)
    plain = make_step(min_snr_gamma=None)[0].loss(batch, NOISE(batch.latents, 0, 0)).item()
    batch.loss_weights = torch.full((2,), 0.25)
    assert make_step(min_snr_gamma=None)[0].loss(batch, NOISE(batch.latents, 0, 0)).item() == pytest.approx(plain / 4)


def test_what_modules_draw_depends_on_seed_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def draw(unet: TextlessUNet, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        drawn.append(torch.rand(()).item())
        result: Tensor = unet.conv(x)
        return result

    monkeypatch.setattr(TextlessUNet, "forward", draw)
    step, _ = make_step()
    torch.manual_seed(1)
    step.update([batch_of(2, 1), batch_of(2, 2)], 0)
    outside = torch.rand(()).item()
    step.update([batch_of(2, 1)], 1)
    torch.manual_seed(2)
    step.update([batch_of(2, 1), batch_of(2, 2)], 0)
    assert drawn[:2] == drawn[3:] and len(set(drawn)) == 3
    torch.manual_seed(1)
    assert outside == torch.rand(()).item(), "the program around goes on as if nothing had been drawn"


def test_what_an_optimizer_draws_depends_on_seed_and_step_alone() -> None:
    """Such as those that round weights of 16 bits at random."""
    drawn: list[float] = []
    step, _ = make_step()
    step.optimizer.register_step_pre_hook(lambda *_: drawn.append(torch.rand(()).item()))
    for number, seed in ((0, 1), (1, 1), (0, 2)):
        torch.manual_seed(seed)
        step.update([batch_of(2, 1)], number)
    outside = torch.rand(()).item()
    assert drawn[0] == drawn[2] != drawn[1]
    torch.manual_seed(2)
    assert outside == torch.rand(()).item(), "the program around goes on as if nothing had been drawn"


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_step_that_leaves_out_every_adapter_changes_nothing(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As module dropout may in a network of few of them."""
    monkeypatch.setattr(TextlessUNet, "forward", lambda unet, x, timesteps, context: x)
    step, unet = make_step(mixed_precision=precision)
    before = unet.conv.weight.detach().clone()
    assert math.isfinite(step.update([batch_of(2, 1)], 0))
    assert torch.equal(unet.conv.weight, before) and not step.left_out


def test_an_overflow_of_the_factor_is_no_bad_step() -> None:
    step, unet = make_step(mixed_precision="fp16", stop_after_bad_steps=2)
    assert step.scaler is not None
    step.scaler.scale = 4.0
    unet.conv.weight.register_hook(lambda gradient: gradient * math.inf)
    states = []
    for number in range(3):
        step.update([batch_of(2, 1)], number)
        states.append((step.scaler.scale, step.bad_steps))
    assert states == [(2.0, 0), (1.0, 0), (0.5, 1)]
    with pytest.raises(UserError, match=r"2 steps in a row had no finite loss or gradient .*its gradient is inf"):
        step.update([batch_of(2, 1)], 3)


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
@pytest.mark.parametrize(
    "values",
    [
        {"debiased_estimation_loss": True},
        {"v_pred_like_loss": 1.0},
        {"prediction_type": "v_prediction", "debiased_estimation_loss": True},
        {"prediction_type": "v_prediction", "scale_v_pred_loss_like_noise_pred": True},
    ],
)
def test_pure_noise_gives_a_loss_and_a_gradient_that_are_numbers(loss_type: str, values: dict[str, Any]) -> None:
    """At the last timestep of zero terminal SNR, where the ratio of signal to noise is 0."""
    step, unet = make_step(
        zero_terminal_snr=True, min_timestep=999, loss_type=loss_type, noise_offset=0.1, adaptive_noise_scale=-1.0,
        multires_noise_iterations=6, ip_noise_gamma=0.1, **values,
    )  # fmt: skip
    loss = step.update([batch_of(3, 1)], 0)
    assert math.isfinite(loss) and step.bad_steps == 0 and step.bands == {"750-1000": pytest.approx(loss, rel=1e-5)}
    assert all(bool(torch.isfinite(parameter).all()) for parameter in unet.parameters())


def test_masks_reach_the_loss() -> None:
    batch = batch_of(2, 1)
    draw = NOISE(batch.latents, 0, 0)
    whole = make_step()[0].diffusion.losses(batch, draw)
    batch.masks = torch.zeros(2, 1, 8, 8)
    batch.masks[0] = 0.5
    masked = make_step()[0].diffusion.losses(batch, draw)
    assert masked.tolist() == [pytest.approx(whole[0].item(), rel=1e-5), 0.0]
    dimmed = make_step(masked_loss_normalize=False)[0].diffusion.losses(batch, draw)
    assert dimmed.tolist() == [pytest.approx(whole[0].item() / 2, rel=1e-5), 0.0]


def test_bands_are_the_losses_of_the_whole_window() -> None:
    step, _ = make_step(rate=0.0)
    batches = [batch_of(2, 1), batch_of(3, 2)]
    step.update(batches, 0)
    draws = [NOISE(batch.latents, 0, part) for part, batch in enumerate(batches)]
    losses = torch.cat([step.diffusion.losses(batch, draw) for batch, draw in zip(batches, draws, strict=True)])
    timesteps = torch.cat([draw.timesteps for draw in draws])
    expected = {
        f"{start}-{start + 250}": losses[(timesteps >= start) & (timesteps < start + 250)].mean().item()
        for start in (0, 250, 500, 750)
    }
    found = {name: value for name, value in expected.items() if not math.isnan(value)}
    assert step.bands == {name: pytest.approx(value, rel=1e-5) for name, value in found.items()}
