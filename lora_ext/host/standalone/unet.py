"""The diffusion U-Net in ldm layout: modules and classes named as ldm's `UNetModel` has them, so keys need no mapping.

Letters in shape comments: b batch, c channels, h and w latent height and width, n image tokens (h·w), t text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_ext.checkpoint.sinusoids import timestep_embedding


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net; exactly one of `num_heads` and `num_head_channels` is set.

    `transformer_depth` counts the transformer blocks of each attention, per resolution level (0 = no attention).
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    num_res_blocks: int = 2
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    transformer_depth_middle: int = 1
    num_heads: int | None = None
    num_head_channels: int | None = None
    context_dim: int = 768
    use_linear_in_transformer: bool = False
    adm_in_channels: int | None = None

    def __post_init__(self) -> None:
        if (self.num_heads is None) == (self.num_head_channels is None):
            raise ValueError(
                f"set one of num_heads and num_head_channels, not {self.num_heads!r} and {self.num_head_channels!r}"
            )
        if len(self.transformer_depth) != len(self.channel_mult):
            raise ValueError(
                f"transformer_depth {self.transformer_depth} and channel_mult {self.channel_mult} differ in length"
            )

    def heads(self, channels: int) -> int:
        """Number of attention heads at a width of `channels`."""
        if self.num_heads is not None:
            return self.num_heads
        assert self.num_head_channels is not None
        return channels // self.num_head_channels


SD1_UNET = UNetConfig(num_heads=8)
SD2_UNET = UNetConfig(num_head_channels=64, context_dim=1024, use_linear_in_transformer=True)
SDXL_UNET = UNetConfig(
    channel_mult=(1, 2, 4),
    transformer_depth=(0, 2, 10),
    transformer_depth_middle=10,
    num_head_channels=64,
    context_dim=2048,
    use_linear_in_transformer=True,
    adm_in_channels=2816,
)


def zero_module(module: nn.Module) -> nn.Module:
    """Set every parameter of `module` to zero, so that its residual branch starts as nothing; returns it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GEGLU(nn.Module):
    """GELU-gated linear unit (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, dim_in) -> (b, n, dim_out)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """GEGLU of four times the width, and a projection back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Dropout(0.0), nn.Linear(dim * 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, dim) -> the same shape."""
        result: Tensor = self.net(x)
        return result


class CrossAttention(nn.Module):
    """Multi-head attention of image tokens to `context`, or to themselves where it is None."""

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, dim_head: int) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.scale = dim_head**-0.5
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(b, n, query_dim) with (b, t, context_dim) -> (b, n, query_dim)."""
        context = x if context is None else context
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, heads, n or t, dim_head)
            for projected in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))  # (b, n, heads * dim_head) -> (b, n, query)
        return result


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each after a LayerNorm and added to its input."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, heads, dim_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(b, n, dim) with (b, t, context_dim) -> (b, n, dim)."""
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        x = self.ff(self.norm3(x)) + x
        return x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, projected in and out (1×1 convolutions or linears)."""

    def __init__(
        self, channels: int, heads: int, dim_head: int, depth: int, context_dim: int, use_linear: bool
    ) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        self.use_linear = use_linear
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in: nn.Module = nn.Linear(channels, inner_dim) if use_linear else nn.Conv2d(channels, inner_dim, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner_dim, heads, dim_head, context_dim) for _ in range(depth)
        )
        self.proj_out = zero_module(nn.Linear(inner_dim, channels) if use_linear else nn.Conv2d(inner_dim, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(b, c, h, w) with (b, t, context_dim) -> (b, c, h, w)."""
        size = x.shape[-2:]
        hidden = self.norm(x)
        if not self.use_linear:
            hidden = self.proj_in(hidden)
        hidden = hidden.flatten(2).transpose(1, 2)  # (b, c, h, w) -> (b, n, c)
        if self.use_linear:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        if self.use_linear:
            hidden = self.proj_out(hidden)
        hidden = hidden.transpose(1, 2).unflatten(2, size)  # (b, n, c) -> (b, c, h, w)
        if not self.use_linear:
            hidden = self.proj_out(hidden)
        return hidden + x


class ResBlock(nn.Module):
    """Two convolutions with the timestep embedding added between them, and a skip connection."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Dropout(0.0),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(b, channels, h, w) with (b, emb_channels) -> (b, out_channels, h, w)."""
        hidden = self.in_layers(x)
        hidden = hidden + self.emb_layers(emb)[:, :, None, None].to(hidden.dtype)
        result: Tensor = self.skip_connection(x) + self.out_layers(hidden)
        return result


class Downsample(nn.Module):
    """Half the size, by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, ⌈h/2⌉, ⌈w/2⌉)."""
        result: Tensor = self.op(x)
        return result


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size` (twice the size where it is None), and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(b, c, h, w) -> (b, c, *size)."""
        size = size or (x.shape[-2] * 2, x.shape[-1] * 2)
        result: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return result


class TimestepEmbedSequential(nn.Sequential):
    """A sequence whose layers are given what their kind takes: timestep embedding, text, or a target size."""

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """(b, c, h, w) -> the last layer's output; `size` is what an `Upsample` in it ends at."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """ldm's `UNetModel`: predicts noise (or v) from noisy latents, timesteps and text."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        emb_channels = config.model_channels * 4
        self.time_embed = _mlp(config.model_channels, emb_channels)
        if config.adm_in_channels is not None:
            self.label_emb = nn.Sequential(_mlp(config.adm_in_channels, emb_channels))
        self.input_blocks, skip_channels = self._input_blocks(emb_channels)
        channels = skip_channels[-1]
        middle: list[nn.Module] = [ResBlock(channels, emb_channels, channels)]
        if config.transformer_depth_middle:
            middle.append(self._transformer(channels, config.transformer_depth_middle))
        middle.append(ResBlock(channels, emb_channels, channels))
        self.middle_block = TimestepEmbedSequential(*middle)
        self.output_blocks = self._output_blocks(skip_channels, emb_channels)
        self.out = nn.Sequential(
            nn.GroupNorm(32, config.model_channels),
            nn.SiLU(),
            zero_module(nn.Conv2d(config.model_channels, config.out_channels, 3, padding=1)),
        )

    def _transformer(self, channels: int, depth: int) -> SpatialTransformer:
        heads = self.config.heads(channels)
        return SpatialTransformer(
            channels, heads, channels // heads, depth, self.config.context_dim, self.config.use_linear_in_transformer
        )

    def _input_blocks(self, emb_channels: int) -> tuple[nn.ModuleList, list[int]]:
        """The way down, and the channels of each of its outputs."""
        config = self.config
        channels = config.model_channels
        blocks = [TimestepEmbedSequential(nn.Conv2d(config.in_channels, channels, 3, padding=1))]
        skip_channels = [channels]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, emb_channels, mult * config.model_channels)]
                channels = mult * config.model_channels
                if config.transformer_depth[level]:
                    layers.append(self._transformer(channels, config.transformer_depth[level]))
                blocks.append(TimestepEmbedSequential(*layers))
                skip_channels.append(channels)
            if level != len(config.channel_mult) - 1:
                blocks.append(TimestepEmbedSequential(Downsample(channels)))
                skip_channels.append(channels)
        return nn.ModuleList(blocks), skip_channels

    def _output_blocks(self, skip_channels: list[int], emb_channels: int) -> nn.ModuleList:
        config = self.config
        skips = list(skip_channels)
        channels = skips[-1]
        blocks: list[nn.Module] = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks + 1):
                out_channels = mult * config.model_channels
                layers: list[nn.Module] = [ResBlock(channels + skips.pop(), emb_channels, out_channels)]
                channels = out_channels
                if config.transformer_depth[level]:
                    layers.append(self._transformer(channels, config.transformer_depth[level]))
                if level and index == config.num_res_blocks:
                    layers.append(Upsample(channels))
                blocks.append(TimestepEmbedSequential(*layers))
        return nn.ModuleList(blocks)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Predict from latents (b, in, h, w), timesteps (b,), text (b, t, context_dim) and SDXL's `y` (b, adm_in)."""
        if (y is None) != (self.config.adm_in_channels is None):
            raise ValueError(f"y must be given exactly where adm_in_channels is set ({self.config.adm_in_channels})")
        emb = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(x.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        skips: list[Tensor] = []
        hidden = x
        for block in self.input_blocks:
            hidden = block(hidden, emb, context)
            skips.append(hidden)
        hidden = self.middle_block(hidden, emb, context)
        for block in self.output_blocks:
            skip = skips.pop()
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            hidden = block(torch.cat([hidden, skip], dim=1), emb, context, size)
        result: Tensor = self.out(hidden)
        return result


def _mlp(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, dim_out), nn.SiLU(), nn.Linear(dim_out, dim_out))
