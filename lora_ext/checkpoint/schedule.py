"""The noise schedule of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.checkpoint.transfer import on_device


@dataclass(frozen=True)
class NoiseSchedule:
    """ᾱ_t of a variance-preserving diffusion; `alphas_cumprod` has shape (steps,), fp64 on the CPU."""

    alphas_cumprod: Tensor

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> NoiseSchedule:
        """Stable Diffusion's schedule: √β runs linearly (Rombach et al. 2022, `linear` in ldm's YAML)."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1.0 - betas, dim=0))

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """This schedule with √ᾱ shifted and stretched so that the last timestep is pure noise and the first stays.

        Lin et al. 2023, arXiv:2305.08891, algorithm 1; a schedule that ends in pure noise comes out as it was.
        """
        signal = self.alphas_cumprod.sqrt()
        first, last = signal[0], signal[-1]
        return NoiseSchedule(((signal - last) * (first / (first - last))) ** 2)

    def __len__(self) -> int:
        return self.alphas_cumprod.shape[0]

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(√ᾱ_t, √(1−ᾱ_t)), each (batch, 1, 1, 1) in the dtype and on the device of `like`."""
        alphas = self.alphas_cumprod[timesteps.cpu()]
        shape = (-1, *([1] * (like.ndim - 1)))
        signal, sigma = on_device(torch.stack([alphas.sqrt(), (1 - alphas).sqrt()]).to(like.dtype), like.device)
        return signal.reshape(shape), sigma.reshape(shape)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε; latents and noise (batch, channels, h, w), timesteps (batch,)."""
        signal, sigma = self.signal_and_noise(timesteps, latents)
        return signal * latents + sigma * noise

    def velocity(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = √ᾱ_t·ε − √(1−ᾱ_t)·x₀ (Salimans & Ho 2022)."""
        signal, sigma = self.signal_and_noise(timesteps, latents)
        return signal * noise - sigma * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1−ᾱ_t), fp32 (batch,) on the device of `timesteps`."""
        alphas = self.alphas_cumprod[timesteps.cpu()]
        return (alphas / (1 - alphas)).float().to(timesteps.device)
