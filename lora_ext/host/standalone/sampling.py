"""Sampling through diffusers' schedulers, set up so that each follows the WebUI's sampler of the same name.

Noise comes from one CPU generator a picture, the first draw being the starting noise: a picture depends neither on
the batch that it is rendered in, nor on the device, nor on anyone's global random state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lora_ext.checkpoint.conditioning import Conditioning, Frame, concatenated
from lora_ext.checkpoint.inpainting import UNetInput
from lora_ext.protocols import Progress, UserError

if TYPE_CHECKING:
    from PIL import Image

    from lora_ext.checkpoint.checkpoint import Checkpoint
    from lora_ext.checkpoint.schedule import NoiseSchedule


_LEAST_ALPHA = 2.0**-24  # schedulers divide by the signal, of which zero terminal SNR leaves none at the last timestep


@dataclass(frozen=True)
class Sampler:
    """A sampler as the WebUI names it: `infotext_name` and `schedule_type` are two entries of its infotext."""

    infotext_name: str
    schedule_type: str
    make: Callable[[dict[str, Any], int], Any]
    """(arguments that all schedulers take, steps) → a diffusers scheduler whose timesteps are set."""


def _spacing(kind: str, steps: int) -> str:
    """diffusers' name of how timesteps are spread; a single step starts at the last timestep, not near 0."""
    return kind if steps > 1 else "trailing"


def _euler(common: dict[str, Any], steps: int) -> Any:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**common, timestep_spacing=_spacing("linspace", steps))
    scheduler.set_timesteps(steps)
    return scheduler


def _euler_ancestral(common: dict[str, Any], steps: int) -> Any:
    from diffusers import EulerAncestralDiscreteScheduler

    scheduler = EulerAncestralDiscreteScheduler(**common, timestep_spacing=_spacing("linspace", steps))
    scheduler.set_timesteps(steps)
    return scheduler


def _ddim(common: dict[str, Any], steps: int) -> Any:
    """Timesteps 1, 1 + 1000 // steps, …, and ᾱ₀ behind the last of them, as CompVis has it."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **common,
        timestep_spacing=_spacing("leading", steps),
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def _dpmpp_2m(common: dict[str, Any], steps: int) -> Any:
    """Timesteps spread evenly from the last to 0, as k-diffusion spreads them."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    last = common["num_train_timesteps"] - 1
    scheduler.set_timesteps(timesteps=[round(float(t)) for t in np.linspace(last, 0, steps)])
    return scheduler


def _dpmpp_2m_karras(common: dict[str, Any], steps: int) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        **common, algorithm_type="dpmsolver++", final_sigmas_type="zero", use_karras_sigmas=True
    )
    scheduler.set_timesteps(steps)
    return scheduler


SAMPLERS: dict[str, Sampler] = {
    "Euler a": Sampler("Euler a", "Automatic", _euler_ancestral),
    "Euler": Sampler("Euler", "Automatic", _euler),
    "DDIM": Sampler("DDIM", "Automatic", _ddim),
    "DPM++ 2M": Sampler("DPM++ 2M", "Uniform", _dpmpp_2m),
    "DPM++ 2M Karras": Sampler("DPM++ 2M", "Karras", _dpmpp_2m_karras),
}


def find_sampler(name: str) -> Sampler:
    """The sampler of that name; an unknown one raises `UserError` with the names that there are."""
    if name not in SAMPLERS:
        raise UserError(f"sampler {name!r} is unknown; allowed: {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


def make_scheduler(sampler: Sampler, schedule: NoiseSchedule, prediction_type: str, steps: int) -> Any:
    """A diffusers scheduler with the checkpoint's own noise schedule and `steps` timesteps set."""
    alphas = schedule.alphas_cumprod.clamp(min=_LEAST_ALPHA)
    ratios = alphas[1:] / alphas[:-1]
    betas = 1 - torch.cat([alphas[:1], ratios])
    common = {
        "num_train_timesteps": len(schedule),
        "trained_betas": betas.tolist(),
        "prediction_type": prediction_type,
    }
    return sampler.make(common, steps)


class Guided:
    """Predictions under a prompt, led away from another by classifier-free guidance (Ho & Salimans 2022).

    At `cfg_scale` 1 the negative prompt has no say and is not computed.
    """

    def __init__(
        self, checkpoint: Checkpoint, prompt: Conditioning, negative: Conditioning, frames: Sequence[Frame],
        cfg_scale: float,
    ) -> None:  # fmt: skip
        """`prompt` and `negative` have batch 1, `frames` are those of the pictures."""
        self._checkpoint = checkpoint
        self._input = UNetInput()
        self._cfg_scale = cfg_scale
        sides = [prompt] if cfg_scale == 1.0 else [prompt, negative]
        count = len(frames)
        given = concatenated([side.map(lambda each: each.expand(count, *each.shape[1:])) for side in sides])
        given = given.map(lambda each: each.to(checkpoint.device, checkpoint.dtype))
        vector = given.vector([*frames] * len(sides))
        self._context = given.context  # (count or 2·count, tokens, width)
        self._beside = {} if vector is None else {"y": vector}

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """fp32 (b, 4, h, w) for latents (b, 4, h, w); both sides in one batch."""
        count = len(latents)
        both = latents.repeat(len(self._context) // count, 1, 1, 1)
        given = self._input(self._checkpoint, both.to(self._checkpoint.dtype))
        timesteps = timestep.to(latents.device).expand(len(both))
        predicted: Tensor = self._checkpoint.unet(given, timesteps, self._context, **self._beside).float()
        if len(both) == count:
            return predicted
        with_text, without = predicted[:count], predicted[count:]
        return without + self._cfg_scale * (with_text - without)


@torch.no_grad()
def sample(
    checkpoint: Checkpoint,
    sampler: Sampler,
    prompt: Conditioning,
    negative: Conditioning,
    size: tuple[int, int],
    seeds: Sequence[int],
    steps: int,
    cfg_scale: float,
    progress: Progress | None = None,
) -> Tensor:
    """Latents (len(seeds), 4, h, w), scaled, fp32; both prompts have batch 1, `size` is (h, w) in latents."""
    scheduler = make_scheduler(sampler, checkpoint.schedule, checkpoint.prediction_type, steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn((4, *size), generator=generator) for generator in generators])
    latents = noise.to(checkpoint.device) * float(scheduler.init_noise_sigma)
    frames = [Frame.whole((size[1] * 8, size[0] * 8))] * len(seeds)
    predict = Guided(checkpoint, prompt, negative, frames, cfg_scale)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": generators} if takes_generator else {}
    for index, timestep in enumerate(scheduler.timesteps):
        predicted = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(predicted, timestep, latents, **extra, return_dict=False)[0]
        if progress is not None:
            progress(index + 1, len(scheduler.timesteps))
    return latents.float()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """RGB pictures of (b, 3, h, w) in −1…1; values are cut off, not rounded, to 8 bits, as the WebUI does."""
    from PIL import Image

    scaled = ((images.float() + 1) / 2).clamp(0, 1) * 255
    arrays = scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)  # (b, 3, h, w) -> (b, h, w, 3)
    return [Image.fromarray(array) for array in arrays]
