"""Runs inside the WebUI under test: says in what state its model is, and makes trainings fail at a chosen place."""

from __future__ import annotations

import hashlib
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from modules import (
    devices,
    lowvram,
    options,
    paths_internal,
    script_callbacks,
    sd_hijack,
    sd_models,
    sd_samplers_cfg_denoiser,
    sd_unet,
    sd_vae,
    shared,
)

from lora_ext.protocols import GenerateRequest


def _digest(parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()


def _bytes_of(tensor):
    """Also of dtypes that NumPy does not know (fp8)."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _overrides(root):
    """Everything that sits on instances and could be left behind by a training."""
    for name, module in root.named_modules():
        own = {key: id(value) for key, value in module.__dict__.items() if key in ("forward", "encode", "decode")}
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        flags = (getattr(module, "checkpoint", None) is True, getattr(module, "use_checkpoint", None) is True)
        yield name, own, hooks, flags


def _class_level():
    import ldm.modules.attention
    import ldm.modules.diffusionmodules.openaimodel as unet
    import open_clip.transformer
    import sgm.modules.attention
    import sgm.modules.diffusionmodules.openaimodel as sgm_unet
    import sgm.modules.encoders.modules as sgm_encoders

    owners = (
        (sgm.modules.attention.CrossAttention, "forward"),
        (sgm.modules.attention.BasicTransformerBlock, "forward"),
        (sgm_unet.UNetModel, "forward"),
        (sgm_unet, "timestep_embedding"),
        (sgm_encoders.GeneralConditioner, "forward"),
        (open_clip.transformer.ResidualAttentionBlock, "forward"),
        (torch.nn.MultiheadAttention, "forward"),
        (ldm.modules.attention.CrossAttention, "forward"),
        (ldm.modules.attention.BasicTransformerBlock, "forward"),
        (unet.UNetModel, "forward"),
        (unet, "timestep_embedding"),
        (torch.nn.Linear, "forward"),
        (torch.nn.Conv2d, "forward"),
        (sd_models, "send_model_to_cpu"),
        (sd_models, "reload_model_weights"),
        (sd_vae, "reload_vae_weights"),
    )
    places = ((getattr(owner, "__module__", ""), owner.__name__, name, owner) for owner, name in owners)
    return {".".join(words): id(getattr(owner, words[-1])) for *words, owner in places}


def snapshot():
    model = sd_models.model_data.sd_model
    parameters = list(model.named_parameters())
    kinds = ((name, str(p.dtype), str(p.device), p.requires_grad, p.grad is None) for name, p in parameters)
    return {
        "weights": _digest(_bytes_of(parameter) for _, parameter in parameters),
        "storage": _digest(parameter.data_ptr() for _, parameter in parameters),
        "buffers": _digest(_bytes_of(buffer) for _, buffer in model.named_buffers()),
        "kinds": _digest(kinds),
        "grad": sum(parameter.requires_grad for _, parameter in parameters),
        "modes": _digest((name, module.training) for name, module in model.named_modules()),
        "overrides": _digest(_overrides(model)),
        "classes": _class_level(),
        "random": _digest(
            [torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()]
        ),
        "options": _digest(sorted((key, str(value)) for key, value in shared.opts.data.items())),
        "options class": sorted(vars(options.Options)),
        "state": sorted(vars(shared.state)),
        "attention": [str(sd_hijack.model_hijack.optimization_method), str(id(sd_hijack.current_optimizer))],
        "unet": [str(sd_unet.current_unet_option), str(lowvram.module_in_gpu)],
        "VAE": str(devices.dtype_vae),
        "job": [shared.state.job, shared.state.job_count, shared.state.interrupted],
    }


def arm(phase):
    """The next training fails once in this phase."""
    from lora_ext.dataset import latents
    from lora_ext.training import saving, step

    owner, name, calls = {
        "caching": (latents, "load_image", 2),
        "first step": (step.TrainingStep, "begin", 1),
        "mid-run": (step.TrainingStep, "begin", 3),
        "out of memory": (step.TrainingStep, "begin", 2),
        "saving": (saving, "write_network", 1),
        "preview": (sd_samplers_cfg_denoiser.CFGDenoiser, "forward", 2),
        "VAE of a preview": (devices, "test_for_nans", 2),
    }[phase]
    original = getattr(owner, name)
    left = [calls]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] > 0:
            return original(*args, **kwargs)
        setattr(owner, name, original)
        if phase == "out of memory":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (injected)")
        if phase == "VAE of a preview":
            raise devices.NansException("injected")
        raise RuntimeError(f"injected while {phase}")

    setattr(owner, name, failing)


def hold(seconds):
    """The next run that goes on after a pause takes so long with the checkpoint before its first step."""
    from lora_ext.training.session import Session

    original = Session.enter_again

    def slow(self, checkpoint):
        Session.enter_again = original
        time.sleep(seconds)
        return original(self, checkpoint)

    Session.enter_again = slow


def press(demo, elem_id):
    """Call what a button of the page calls."""
    (button,) = (number for number, block in demo.blocks.items() if getattr(block, "elem_id", None) == elem_id)
    known = zip(demo.fns, demo.dependencies, strict=True)
    (function,) = (each.fn for each, wired in known if button in wired["targets"])
    return {"shown": function()}


def picture(settings):
    from lora_ext.host.webui.state import get_host

    images = get_host().generate(GenerateRequest(**settings))
    return [
        {"seed": each.seed, "infotext": each.infotext, "pixels": _digest([each.image.tobytes()])} for each in images
    ]


def started(demo, app):
    """Asking a WebUI before it has added its API makes it fail: the tests wait for this file."""
    mark = Path(paths_internal.data_path, f"lw-probe-started-{shared.cmd_opts.port}")
    mark.write_text(str(time.time()), encoding="utf-8")
    app.get("/lw-probe/state")(snapshot)
    app.get("/lw-probe/loaded")(lambda: sorted({"transformers", "diffusers", "lycoris"} & set(sys.modules)))

    @app.post("/lw-probe/arm")
    def route_arm(body: dict):
        arm(body["phase"])
        return {}

    @app.post("/lw-probe/hold")
    def route_hold(body: dict):
        hold(body["seconds"])
        return {}

    @app.post("/lw-probe/press")
    def route_press(body: dict):
        return press(demo, body["elem_id"])

    @app.post("/lw-probe/reload-vae")
    def route_reload_vae():
        sd_vae.reload_vae_weights()
        return {}

    @app.post("/lw-probe/reload")
    def route_reload():
        shared.state.request_restart()
        return {}

    @app.post("/lw-probe/picture")
    def route_picture(body: dict):
        return picture(body["settings"])


script_callbacks.on_app_started(started)
