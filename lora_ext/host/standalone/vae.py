"""The autoencoder in ldm layout: module names as in ldm's `AutoencoderKL`, so checkpoint keys load as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of an autoencoder; the defaults are those of SD1, SD2 and SDXL."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    embed_dim: int = 4
    in_channels: int = 3
    out_ch: int = 3


SD_VAE = VAEConfig()


class DiagonalGaussian:
    """The encoder's posterior: independent normal distributions, from (b, 2·z, h, w) moments."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents (b, z, h, w); the noise comes from the generator's own device."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def mode(self) -> Tensor:
        """The most likely latents (b, z, h, w)."""
        return self.mean


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions, each after a group norm and SiLU, added to the (projected) input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, h, w) -> (b, out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (self.nin_shortcut(x) if self.has_shortcut else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> the same shape."""
        hidden = self.norm(x)
        query, key, value = (
            layer(hidden).flatten(2).transpose(1, 2)[:, None]  # (b, c, h, w) -> (b, 1, h·w, c)
            for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        result: Tensor = x + self.proj_out(attended.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return result


class Downsample(nn.Module):
    """Half the size, by a convolution of stride 2 that is padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, ⌊h/2⌋, ⌊w/2⌋)."""
        result: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return result


class Upsample(nn.Module):
    """Twice the size, by nearest neighbours and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, 2h, 2w)."""
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class _Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> the same shape."""
        result: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return result


class _Level(nn.Module):
    """The residual blocks of one resolution, and the resampling after them where there is one."""

    def __init__(
        self, channels: list[int], downsample: Downsample | None = None, upsample: Upsample | None = None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(before, after) for before, after in zip(channels[:-1], channels[1:], strict=True)
        )
        if downsample is not None:
            self.downsample = downsample
        if upsample is not None:
            self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c', h', w')."""
        for child in self.block:
            x = child(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """Pictures to the moments of their latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        levels = []
        channels = config.ch
        for index, mult in enumerate(config.ch_mult):
            out = config.ch * mult
            last = index == len(config.ch_mult) - 1
            levels.append(_Level([channels] + [out] * config.num_res_blocks, None if last else Downsample(out)))
            channels = out
        self.down = nn.ModuleList(levels)
        self.mid = _Middle(channels)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, H, W) -> (b, 2·z, H/f, W/f)."""
        hidden = self.conv_in(x)
        for level in self.down:
            hidden = level(hidden)
        result: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(hidden))))
        return result


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = _Middle(channels)
        levels: list[_Level] = []
        for index, mult in reversed(list(enumerate(config.ch_mult))):
            out = config.ch * mult
            upsample = Upsample(out) if index else None
            levels.insert(0, _Level([channels] + [out] * (config.num_res_blocks + 1), upsample=upsample))
            channels = out
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(b, z, h, w) -> (b, 3, h·f, w·f)."""
        hidden = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            hidden = level(hidden)
        result: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return result


class VAE(nn.Module):
    """ldm's `AutoencoderKL`; pictures are in [-1, 1], latents are not yet multiplied by the scale factor."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """The posterior of pictures (b, 3, H, W) in [-1, 1]."""
        return DiagonalGaussian(self.quant_conv(self.encoder(images)))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (b, 3, h·f, w·f), about [-1, 1], of latents (b, embed_dim, h, w)."""
        result: Tensor = self.decoder(self.post_quant_conv(latents))
        return result
