"""Pictures rendered by the WebUI's own pipeline, for a request of the core."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from modules import processing, shared

from lora_ext.host.webui.borrow import random_states_kept
from lora_ext.protocols import GeneratedImage, GenerateRequest, Progress, UserError

_STATE = ("job", "job_no", "job_count", "sampling_step", "sampling_steps", "skipped", "interrupted", "textinfo")


def render(
    request: GenerateRequest, sd_model: Any, progress: Progress | None, in_training: bool
) -> list[GeneratedImage]:
    """Render under the WebUI's queue lock, which the caller holds.

    `in_training`: in the thread of a training and with its adapters attached; then no tag is looked at, the checkpoint
    is held, and the random state, the WebUI's counters and what it remembers of prompts stay as they are.
    """
    override: dict[str, Any] = {"CLIP_stop_at_last_layers": request.clip_skip}
    if in_training:  # the settings may name another checkpoint already, to which it switches after the training
        override["sd_model_checkpoint"] = sd_model.sd_checkpoint_info.title
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=sd_model,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        sampler_name=request.sampler,
        batch_size=request.batch_size,
        steps=request.steps,
        cfg_scale=request.cfg_scale,
        width=request.width,
        height=request.height,
        do_not_save_samples=True,
        do_not_save_grid=True,
        disable_extra_networks=in_training,
        override_settings=override,
    )
    p.cached_c, p.cached_uc = [None, None], [None, None]
    p.cached_hr_c, p.cached_hr_uc = [None, None], [None, None]
    with ExitStack() as undo:
        if in_training:
            undo.enter_context(random_states_kept())
            undo.callback(_put_back, {name: getattr(shared.state, name) for name in _STATE})
        else:
            shared.state.begin(job="LoRA Workshop pictures")
            undo.callback(shared.state.end)
        undo.callback(p.close)
        done = processing.process_images(p)
    if progress is not None:
        progress(request.steps, request.steps)
    return _pictures(done)


def _put_back(values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(shared.state, name, value)
    shared.state.current_latent = None


def _pictures(done: Any) -> list[GeneratedImage]:
    """The pictures with their infotexts, without the grid that the WebUI puts first."""
    first = done.index_of_first_image
    if len(done.images) <= first:
        raise UserError("the WebUI made no picture: it was interrupted")
    messages = tuple(line for line in (done.comments or "").splitlines() if line)
    return [
        GeneratedImage(image, int(seed), infotext, messages)
        for image, seed, infotext in zip(done.images[first:], done.all_seeds, done.infotexts[first:], strict=False)
    ]
