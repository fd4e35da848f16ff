"""Pictures rendered by the WebUI's own pipeline, for a request of the core."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from modules import processing, script_callbacks, sd_models, shared

from lora_ext.apply.tags import parse_tags
from lora_ext.host.webui.plain_unet import attribute_set, method_replaced
from lora_ext.host.webui.thread_options import options_in_this_thread
from lora_ext.protocols import Cancelled, GeneratedImage, GenerateRequest, Progress, UserError

_STATE = ("job", "job_no", "job_count", "sampling_step", "sampling_steps", "skipped", "textinfo")
_PLAIN = {
    "sd_unet": "None",
    "token_merging_ratio": 0.0,
    "tiling": False,
    "live_previews_enable": False,
    "face_restoration": False,
}
"""Options during a training: nothing that takes the U-Net's place, changes it, decodes a preview or loads a model."""


def render(
    request: GenerateRequest, sd_model: Any, progress: Progress | None, in_training: bool
) -> list[GeneratedImage]:
    """Render under the WebUI's queue lock, which the caller holds.

    `in_training`: in the thread of a training and with its adapters attached; then tags are left out, the checkpoint
    is held, and the WebUI's counters and what it remembers of prompts stay as they are. An interrupt stays to be seen
    by the training. `progress` is told of each step, and may end the picture by an exception.
    """
    options = {"CLIP_stop_at_last_layers": request.clip_skip, **(_PLAIN if in_training else {})}
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
    )
    p.cached_c, p.cached_uc = [None, None], [None, None]
    p.cached_hr_c, p.cached_hr_uc = [None, None], [None, None]
    with ExitStack() as undo:
        undo.enter_context(options_in_this_thread(options))
        if in_training:
            undo.enter_context(_model_held(sd_model))
            undo.enter_context(method_replaced(shared.state, "set_current_image", _no_preview))
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


@contextmanager
def _model_held(sd_model: Any) -> Iterator[None]:
    """A picture is drawn with this model, whatever the settings name by now.

    Before each one the WebUI would load what they name (another checkpoint, the same in fp8); a person's change of
    them waits for the queue, and does so after the training.
    """
    original = sd_models.reload_model_weights
    renderer = threading.get_ident()

    def reload_model_weights(*args: Any, **kwargs: Any) -> Any:
        return sd_model if threading.get_ident() == renderer else original(*args, **kwargs)

    with attribute_set(sd_models, "reload_model_weights", reload_model_weights):
        yield


def _no_preview() -> None:
    """Pages that ask for a live preview decode it in their own threads, beside the U-Net that renders."""


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
