"""The WebUI's model lent to a training: taken out of use, made plain, and put back exactly as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from modules import call_queue, devices, lowvram, sd_hijack, sd_models, sd_unet, sd_vae, shared
from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.inpainting import INPAINTING_CHANNELS
from lora_ext.checkpoint.patches import TRAINING, PatchLedger
from lora_ext.host.webui import builtin_lora
from lora_ext.host.webui.checkpoint_view import checkpoint_view
from lora_ext.host.webui.plain_unet import attribute_set, plain_unet
from lora_ext.protocols import UserError
from lora_ext.training.random_states import random_states_kept

JOB = "LoRA Workshop training"
_KNOWN_CHANNELS = (4, INPAINTING_CHANNELS)


@contextmanager
def queue_held() -> Iterator[None]:
    """Nothing of the WebUI renders, switches checkpoints or changes attention meanwhile: all that waits in its queue.

    The lock belongs to no thread, so a training's thread may hold it.
    """
    call_queue.queue_lock.acquire()
    try:
        yield
    finally:
        call_queue.queue_lock.release()


@contextmanager
def borrowed(sd_model: Any, ledger: PatchLedger, end_run: Callable[[], None]) -> Iterator[Checkpoint]:
    """The model without any network in its weights, frozen, differentiable, for one training alone.

    The caller holds the queue. `end_run` tells the training to stop in order; it is called in other threads when
    someone wants the model moved away. Token merging needs no care: the WebUI takes it out of the model after every
    image. Options are not touched.
    """
    refuse_unsuitable(sd_model)
    with ExitStack() as undo:
        undo.enter_context(state_shown())
        undo.enter_context(random_states_kept())
        undo.enter_context(parameters_and_modes_kept(sd_model))
        builtin_lora.restore_all(sd_model)
        undo.enter_context(ledger.exclusive(TRAINING))
        undo.enter_context(own_unet_in_use())
        undo.enter_context(others_wait(sd_models, "send_model_to_cpu", end_run))
        undo.enter_context(others_wait(sd_vae, "reload_vae_weights"))
        undo.enter_context(on_the_device(sd_model))
        undo.enter_context(vae_precision_kept(sd_model.first_stage_model))
        checkpoint = replace(checkpoint_view(sd_model), ledger=ledger)
        undo.enter_context(plain_unet(checkpoint.unet, checkpoint.vae))
        undo.enter_context(edges_plain())
        yield checkpoint


def refuse_unsuitable(sd_model: Any) -> None:
    """Raise UserError where this model cannot be trained on in the way in which the WebUI was started."""
    if shared.cmd_opts.lowvram:
        raise UserError(
            "the WebUI was started with --lowvram, which keeps only parts of the U-Net on the GPU: "
            "start it with --medvram to train (networks can be used with --lowvram)"
        )
    if devices.fp8 or any(str(parameter.dtype).startswith("torch.float8") for parameter in sd_model.parameters()):
        raise UserError(
            "the checkpoint's weights are in 8 bits (fp8), too coarse to train on: switch FP8 weight off in "
            "Settings > Optimizations (networks can be used with it)"
        )
    checkpoint = checkpoint_view(sd_model)
    if checkpoint.input_channels not in _KNOWN_CHANNELS:
        raise UserError(
            f"{checkpoint.name} has a U-Net of {checkpoint.input_channels} input channels (editing or depth): load "
            "another checkpoint to train (networks can be used with it)"
        )


@contextmanager
def state_shown() -> Iterator[None]:
    """The training stands in the WebUI's progress as a job; live previews find nothing to decode."""
    shared.state.begin(job=JOB)
    shared.state.current_latent = None
    try:
        yield
    finally:
        shared.state.interrupted = False
        shared.state.skipped = False
        shared.state.stopping_generation = False
        shared.state.end()


@contextmanager
def parameters_and_modes_kept(root: nn.Module) -> Iterator[None]:
    """Every parameter frozen, afterwards as it was: `requires_grad`, no gradient; every module's train/eval mode too.

    The WebUI's U-Net comes with `requires_grad` on, and its built-in restores weights under autograd only if it is off.
    """
    gradients = [(parameter, parameter.requires_grad, parameter.grad) for parameter in root.parameters()]
    modes = [(module, module.training) for module in root.modules()]
    try:
        for parameter, _, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required, gradient in gradients:
            parameter.requires_grad_(required)
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode


@contextmanager
def vae_precision_kept(vae: nn.Module) -> Iterator[None]:
    """The VAE in the number format that it had, which a picture meanwhile may have changed.

    Where decoding gives NaN, as SDXL's own VAE does in fp16, the WebUI casts it to fp32 or bf16 for good; the next
    picture after the training finds that out anew.
    """
    dtype = devices.dtype_vae
    originals = [(tensor, tensor.data) for tensor in (*vae.parameters(), *vae.buffers())]
    try:
        yield
    finally:
        devices.dtype_vae = dtype
        for tensor, original in originals:
            tensor.data = original


@contextmanager
def own_unet_in_use() -> Iterator[None]:
    """Another program's U-Net (TensorRT and the like) is put aside: it would be called in place of the model's."""
    option = sd_unet.current_unet_option
    if option is None:
        yield
        return
    sd_unet.apply_unet("None")
    try:
        yield
    finally:
        sd_unet.apply_unet(option.label)


@contextmanager
def others_wait(module: Any, name: str, first: Callable[[], None] | None = None) -> Iterator[None]:
    """Other threads call `first`, then a function of the WebUI that ignores its queue takes its turn all the same.

    "Unload SD checkpoint" on the page and in the API (which hold functions above `send_model_to_cpu`) and a VAE chosen
    on a checkpoint's card are such. The queue is first come, first served: a run that waits borrows after them.
    """
    original = getattr(module, name)
    borrower = threading.get_ident()

    def waiting(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == borrower:
            return original(*args, **kwargs)
        if first is not None:
            first()
        with queue_held():
            return original(*args, **kwargs)

    with attribute_set(module, name, waiting):
        yield


@contextmanager
def edges_plain() -> Iterator[None]:
    """Convolutions pad with zeros: the last picture may have been a tile, which makes them go round."""
    circular = sd_hijack.model_hijack.circular_enabled
    sd_hijack.model_hijack.apply_circular(False)
    try:
        yield
    finally:
        sd_hijack.model_hijack.apply_circular(circular)


@contextmanager
def on_the_device(sd_model: Any) -> Iterator[None]:
    """All parts on the device that computes, whatever `--medvram` or an unloaded checkpoint had left where."""
    if getattr(sd_model, "lowvram", False):
        with _medvram_parts_pinned(sd_model):
            yield
        return
    places = [(module, next(module.parameters()).device) for module in _parts(sd_model)]
    if all(place.type == devices.device.type for _, place in places):
        yield
        return
    try:
        for module, _ in places:
            module.to(devices.device)
        yield
    finally:
        for module, place in places:
            module.to(place)


@contextmanager
def _medvram_parts_pinned(sd_model: Any) -> Iterator[None]:
    """U-Net, VAE and text encoder on the GPU together; the hooks that would push one out for the other are taken off.

    An SD1 checkpoint's parts fit next to each other where `--medvram` is of use at all; SDXL's take 7 GB in half
    precision. After each picture the WebUI would push out what decoded it, which the training may need next.
    """
    parts = _parts(sd_model)
    in_gpu = lowvram.module_in_gpu
    hooked = [module for part in parts for module in part.modules() if module._forward_pre_hooks]
    hooks = [(module, dict(module._forward_pre_hooks)) for module in hooked]
    lowvram.send_everything_to_cpu()
    try:
        for module, _ in hooks:
            module._forward_pre_hooks.clear()
        for part in parts:
            part.to(devices.device)
        with attribute_set(lowvram, "send_everything_to_cpu", lambda: None):
            yield
    finally:
        lowvram.module_in_gpu = None
        for part in parts:
            part.to(lowvram.cpu)
        for module, taken in hooks:
            module._forward_pre_hooks.clear()
            module._forward_pre_hooks.update(taken)
        if in_gpu is not None:
            in_gpu.to(devices.device)
            lowvram.module_in_gpu = in_gpu


def _parts(sd_model: Any) -> Sequence[nn.Module]:
    """What `--medvram` moves one by one: the U-Net in its wrapper, the VAE, the text encoder in its wrapper."""
    return (sd_model.model, sd_model.first_stage_model, sd_model.cond_stage_model)
