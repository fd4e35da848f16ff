"""Runs inside the WebUI under test: what our tags do there, and how long they take beside the built-in's."""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import time
import weakref

import torch
from modules import call_queue, extra_networks, processing, script_callbacks, scripts, sd_models, shared

from lora_ext.host.webui import builtin_lora


def _timed(work, times):
    seconds = []
    for turn in range(times):
        started = time.perf_counter()
        work(turn)
        seconds.append(time.perf_counter() - started)
    return {"median": statistics.median(seconds), "best": min(seconds)}


def _params(name, weight):
    return [extra_networks.ExtraNetworkParams(items=[name, str(weight)])]


def idle():
    """Activation without any tag, and with one whose network is in the weights already."""
    ours = extra_networks.extra_network_registry["lora"]
    p = processing.StableDiffusionProcessingTxt2Img()
    ours.activate(p, [])
    return _timed(lambda _: ours.activate(p, []), 300)


@torch.no_grad()
def switch(name, times):
    """From one weight of a network to another: ours, and the built-in's with all of its layers."""
    p = processing.StableDiffusionProcessingTxt2Img()
    ours, theirs = extra_networks.extra_network_registry["lora"], builtin_lora.network_handler()
    model = sd_models.model_data.sd_model
    layers = [module for module in model.modules() if isinstance(module, builtin_lora.PATCHED_KINDS)]

    def by_builtin(turn):
        theirs.activate(p, _params(name, 0.3 + turn / 100))
        for layer in layers:
            builtin_lora.networks_module().network_apply_weights(layer)

    ours.activate(p, _params(name, 0.2))
    figures = {"ours": _timed(lambda turn: ours.activate(p, _params(name, 0.3 + turn / 100)), times)}
    ours.activate(p, [])
    by_builtin(-1)
    figures["built-in"] = _timed(by_builtin, times)
    builtin_lora.restore_all(model)
    return figures


def interleaved(times):
    """Images without a tag, in pairs: `lora` and `lyco` ours, and as where the extension is disabled.

    Seconds of the processor, which are the image's own: those on the clock are also other programs'.
    """
    registry, aliases = extra_networks.extra_network_registry, extra_networks.extra_network_aliases
    ours, theirs = registry["lora"], builtin_lora.network_handler()

    def render(handler, seed):
        registry["lora"] = aliases["lyco"] = handler
        p = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model,
            prompt="a house",
            seed=seed,
            steps=2,
            width=128,
            height=128,
            do_not_save_samples=True,
        )
        started = time.process_time()
        processing.process_images(p)
        return time.process_time() - started

    pairs = []
    with call_queue.queue_lock:
        try:
            for turn in range(times):
                order = (ours, theirs) if turn % 2 else (theirs, ours)
                seconds = {handler: render(handler, turn) for handler in order}
                pairs.append([seconds[ours], seconds[theirs]])
        finally:
            registry["lora"] = aliases["lyco"] = ours
    return pairs


class Comments(scripts.Script):
    """Keeps what stands under the last image; the API does not tell it."""

    last = []

    def title(self):
        return "LoRA Workshop probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def postprocess(self, p, processed, *args):
        Comments.last = list(p.comments)


def load_again():
    """The checkpoint's file once more into the model that holds it already; which networks it then has."""
    with call_queue.queue_lock:
        sd_models.reload_model_weights(forced_reload=True)
    return {"tags": [tag.name for tag in extra_networks.extra_network_registry["lora"].tags]}


def replace_model():
    """The model is thrown away, as one of another kind takes its place: whether a weight is, and the networks then."""
    with call_queue.queue_lock:
        model = sd_models.model_data.sd_model
        held, info = weakref.ref(model.model.diffusion_model.middle_block[1].proj_in.weight), model.sd_checkpoint_info
        sd_models.model_data.loaded_sd_models.remove(model)
        sd_models.send_model_to_trash(model)
        is_gone = held() is None
        sd_models.load_model(info)
    return {"is_gone": is_gone, "tags": [tag.name for tag in extra_networks.extra_network_registry["lora"].tags]}


def _a_weight():
    """Of the model that is in use at the moment: a refiner may be another one."""
    return sd_models.model_data.sd_model.model.diffusion_model.middle_block[1].proj_in.weight.detach()


class Watched:
    """Whether a weight of the U-Net is another one than at the start, in each call of the model since."""

    def __init__(self):
        self.original, self.calls, self.stop_after = None, [], None

    def start(self, stop_after):
        extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})
        self.original, self.calls, self.stop_after = _a_weight().clone(), [], stop_after

    def called(self, _):
        if self.original is None:
            return
        self.calls.append(not torch.equal(_a_weight(), self.original))
        if len(self.calls) == self.stop_after:
            shared.state.interrupted = True

    def seen(self):
        calls, self.calls = "".join(".#"[changed] for changed in self.calls), []
        return {"calls": calls}


watched = Watched()
script_callbacks.on_cfg_denoised(watched.called)


def fail_at_step(step):
    """The next time that networks are wanted in this sampling step, that fails."""
    module = importlib.import_module("lora_ext.host.webui.loaded_model")
    original = module.tags_at

    def failing(found, now):
        if now < step:
            return original(found, now)
        module.tags_at = original
        raise RuntimeError("injected between steps")

    module.tags_at = failing


def fail_once():
    """The next time that networks are put into the weights, that fails."""
    module = importlib.import_module("lora_ext.apply.active")
    original = module.patches_of

    def failing(shares):
        module.patches_of = original
        raise RuntimeError("injected while patching")

    module.patches_of = failing


def set_regions(masks):
    """From now on these names have these masks (rows of numbers) wherever a tag holds them; none gives them up."""
    tags = importlib.import_module("lora_ext.host.webui.tags")
    region = importlib.import_module("lora_ext.networks.region_mask").RegionMask
    original = getattr(tags._tags_of, "original", tags._tags_of)

    def with_masks(p, params_list):
        found = original(p, params_list)
        return [
            dataclasses.replace(tag, region=region.of(torch.tensor(masks[tag.name]))) if tag.name in masks else tag
            for tag in found
        ]

    with_masks.original = original
    tags._tags_of = with_masks if masks else original


def owner():
    """Who `lora` and `lyco` belong to, and whether that is the code which an import would give now."""
    lora, lyco = extra_networks.extra_network_registry["lora"], extra_networks.extra_network_aliases["lyco"]
    present = importlib.import_module("lora_ext.host.webui.tags").WorkshopNetworks
    return {
        "lora": type(lora).__name__, "lyco": type(lyco).__name__, "present": type(lora) is type(lyco) is present,
        "code": id(present),
    }  # fmt: skip


def started(_, app):
    app.get("/lw-probe/tags/idle")(idle)
    app.get("/lw-probe/tags/comments")(lambda: Comments.last)
    app.get("/lw-probe/tags/owner")(owner)
    app.post("/lw-probe/tags/load-again")(load_again)
    app.post("/lw-probe/tags/replace-model")(replace_model)
    app.post("/lw-probe/tags/fail-once")(fail_once)

    app.get("/lw-probe/tags/calls")(watched.seen)

    @app.post("/lw-probe/tags/watch")
    def route_watch(body: dict):
        return watched.start(body.get("stop_after"))

    @app.post("/lw-probe/tags/fail-at-step")
    def route_fail(body: dict):
        return fail_at_step(body["step"])

    @app.post("/lw-probe/tags/regions")
    def route_regions(body: dict):
        return set_regions(body)

    @app.post("/lw-probe/tags/interleaved")
    def route_interleaved(body: dict):
        return interleaved(body["times"])

    @app.post("/lw-probe/tags/switch")
    def route_switch(body: dict):
        return switch(body["name"], body["times"])


script_callbacks.on_app_started(started)
