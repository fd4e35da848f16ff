"""What the U-Net is given beside the noisy latents: the states of a text and, in SDXL, a vector of text and sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import TextEncoder
from lora_ext.checkpoint.sinusoids import timestep_embedding
from lora_ext.checkpoint.transfer import on_device

SIZE_CHANNELS = 256
"""Sinusoids of one number of a picture's frame."""


@dataclass(frozen=True)
class Conditioning:
    """Texts as the U-Net sees them: `context` (batch, tokens, width), and `pooled` (batch, projection) for SDXL."""

    context: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: slice) -> Conditioning:
        return self.map(lambda tensor: tensor[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same with each tensor changed."""
        return Conditioning(change(self.context), None if self.pooled is None else change(self.pooled))

    def detached(self) -> Conditioning:
        """On the CPU and without its graph."""
        return self.map(lambda tensor: tensor.detach().cpu())

    def zeros(self) -> Conditioning:
        """What SDXL takes for no text at all."""
        return self.map(torch.zeros_like)

    def vector(self, frames: Sequence[Frame]) -> Tensor | None:
        """SDXL's `y` (batch, projection + 1536) with the frame of each picture; None without `pooled`."""
        if self.pooled is None:
            return None
        beside = on_device(frame_vectors(frames), self.pooled.device, self.pooled.dtype)
        return torch.cat([self.pooled, beside], dim=1)


def concatenated(parts: Sequence[Conditioning]) -> Conditioning:
    """Conditionings one below the other, all with as many tokens."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat([part.context for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class Frame:
    """What SDXL is told of a picture: its size before it was scaled, which part was cut out, and the size of that.

    Sizes are (width, height) in pixels, `corner` is (left, top) in the scaled picture (Podell et al. 2023,
    arXiv:2307.01952, section 2.2).
    """

    original: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Frame:
        """A picture of this size that nothing was cut off from: what is asked for when one is drawn."""
        return cls(size, (0, 0), size)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Heights before widths: original size, top and left, size."""
        return tuple(number for pair in (self.original, self.corner, self.size) for number in reversed(pair))


def frame_vectors(frames: Sequence[Frame]) -> Tensor:
    """(batch, 1536) fp32: 256 sinusoids of each of a frame's six numbers."""
    numbers = torch.tensor([frame.numbers for frame in frames])  # (batch, 6)
    return timestep_embedding(numbers.flatten(), SIZE_CHANNELS).unflatten(0, numbers.shape).flatten(1)


def joined_encoders(encoded: Sequence[tuple[Tensor, Tensor | None]]) -> Conditioning:
    """The states of each text encoder side by side, (batch, tokens, width), and the pooled vector of the last one."""
    states = [each for each, _ in encoded]
    return Conditioning(states[0] if len(states) == 1 else torch.cat(states, dim=2), encoded[-1][1])


def encode_prompts(encoders: Sequence[TextEncoder], prompts: Sequence[str], clip_skip: int = 1) -> Conditioning:
    """Prompts for rendering, with emphasis and BREAK; all with as many chunks as the longest needs."""
    return joined_encoders([encoder.encode_prompts_pooled(prompts, clip_skip) for encoder in encoders])
