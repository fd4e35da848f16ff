"""Pictures rendered by the WebUI's own pipeline, for a request of the core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from modules import processing, script_callbacks, sd_models, shared

from lora_ext.apply.tags import parse_tags
from lora_ext.protocols import Cancelled, GeneratedImage, GenerateRequest, Progress, UserError

_STATE = ("job", "job_no", "job_count", "sampling_step", "sampling_steps", "skipped", "textinfo")
_UNSET = object()
_PLAIN = {"sd_unet": "None", "token_merging_ratio": 0.0, "live_previews_enable": False}
"""Options during a training: nothing that takes the U-Net's place, changes its classes, or decodes beside it."""


def render(
    request: GenerateRequest, sd_model: Any, progress: Progress | None, in_training: bool
) -> list[GeneratedImage]:
    """Render under the WebUI's queue lock, which the caller holds.

    `in_training`: in the thread of a training and with its adapters attached; then tags are left out, the checkpoint
    is held, and the WebUI's counters and what it remembers of prompts stay as they are. An interrupt stays to be seen
    by the training. `progress` is told of each step, and may end the picture by an exception.
    """
    override: dict[str, Any] = {"CLIP_stop_at_last_layers": request.clip_skip}
    if in_training:
        override |= {**_PLAIN, "sd_model_checkpoint": _title(sd_model)}
    parsed = parse_tags(request.prompt)
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=sd_model,
        prompt=parsed.text if in_training else request.prompt,
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
        override_settings=dict(override),
        override_settings_restore_afterwards=False,
    )
    p.cached_c, p.cached_uc = [None, None], [None, None]
    p.cached_hr_c, p.cached_hr_uc = [None, None], [None, None]
    with ExitStack() as undo:
        undo.callback(_put_options_back, override, {name: shared.opts.data.get(name, _UNSET) for name in override})
        if in_training:
            undo.callback(_put_back, {name: getattr(shared.state, name) for name in _STATE})
        else:
            shared.state.begin(job="LoRA Workshop pictures")
            undo.callback(shared.state.end)
        undo.callback(p.close)
        undo.callback(shared.total_tqdm.clear)
        undo.enter_context(_steps_told(progress))
        done = processing.process_images(p)
        if in_training and shared.state.interrupted:
            raise Cancelled("interrupted in the middle of a picture")
    left_out = [f"{tag.text()} is left out while a network is in training" for tag in parsed.tags if in_training]
    return _pictures(done, left_out)


def _title(sd_model: Any) -> str:
    """The loaded checkpoint's name for the WebUI, which would load the one of the settings where it knows none.

    The settings may name another checkpoint already, to which the WebUI switches after the training.
    """
    title: str = sd_model.sd_checkpoint_info.title
    if sd_models.checkpoint_aliases.get(title) is None:
        raise UserError(f"{title} is no longer in the WebUI's list of checkpoints: put its file back for samples")
    return title


@contextmanager
def _steps_told(progress: Progress | None) -> Iterator[None]:
    """`progress` is called at each step of the sampler; where it raises, the picture is given up.

    The WebUI swallows exceptions of callbacks, so the sampler is interrupted and the exception raised again here.
    """
    if progress is None:
        yield
        return
    raised: list[Cancelled] = []

    def tell(params: Any) -> None:
        try:
            progress(int(params.sampling_step), int(params.total_sampling_steps))
        except Cancelled as cancelled:
            raised.append(cancelled)
            shared.state.interrupted = True

    script_callbacks.on_cfg_denoiser(tell, name="lora_workshop_progress")
    try:
        yield
    finally:
        script_callbacks.remove_callbacks_for_function(tell)
        if raised:
            shared.state.interrupted = False
            raise raised[0]


def _put_back(values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(shared.state, name, value)
    shared.state.current_latent = None


def _put_options_back(ours: dict[str, Any], before: dict[str, Any]) -> None:
    """The options as they were, except those that a person has changed while the picture was drawn.

    The WebUI itself would leave an option changed that stood at its default, and put a person's choice away.
    """
    options = shared.opts.data
    for name, value in before.items():
        if options.get(name, _UNSET) != ours[name]:
            continue
        if value is _UNSET:
            del options[name]
        else:
            options[name] = value


def _pictures(done: Any, left_out: Sequence[str]) -> list[GeneratedImage]:
    """The pictures with their infotexts, without the grid that the WebUI puts first."""
    first = done.index_of_first_image
    if len(done.images) <= first:
        raise UserError("the WebUI made no picture: it was interrupted")
    messages = (*left_out, *(line for line in (done.comments or "").splitlines() if line))
    return [
        GeneratedImage(image, int(seed), infotext, messages)
        for image, seed, infotext in zip(done.images[first:], done.all_seeds, done.infotexts[first:], strict=False)
    ]
