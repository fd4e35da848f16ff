"""In which sampling step the WebUI's sampler is."""

from __future__ import annotations

from typing import Any

_CALLS_OF_ADAPTIVE = 3
"""A step that DPM adaptive tries takes three calls of the model, whether it is then accepted or not."""


def sampling_step(denoiser: Any) -> int:
    """The step, from 0, that the next call of the WebUI's `CFGDenoiser` belongs to.

    Counted by calls of the model in this pass: a second-order sampler makes two a step, as the WebUI itself has it for
    prompts that change on the way. In DPM fast each call is a step, as "Sampling steps" are calls there. PLMS makes two
    calls in its first step.
    """
    calls: int = denoiser.step
    config = getattr(denoiser.sampler, "config", None)
    name = getattr(config, "name", "")
    if name == "PLMS":
        return max(calls - 1, 0)
    if name == "DPM adaptive":
        return calls // _CALLS_OF_ADAPTIVE
    if not denoiser.steps or not denoiser.total_steps:  # a sampler of another extension that does not say
        return calls
    return calls * int(denoiser.steps) // int(denoiser.total_steps)
