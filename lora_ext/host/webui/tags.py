"""`<lora:…>` and `<lyco:…>` in the WebUI's prompts: applied by us, or left to the built-in."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from modules import devices, errors, extra_networks, script_callbacks, sd_models, shared
from torch import nn

from lora_ext.apply.loaded_files import LoadedFiles
from lora_ext.apply.schedule import has_schedule
from lora_ext.apply.tags import LoraTag, parse_tags
from lora_ext.host.webui import builtin_lora, model_changes, settings, slots
from lora_ext.host.webui.loaded_model import LoadedModel
from lora_ext.host.webui.sampling_steps import sampling_step
from lora_ext.host.webui.state import get_host
from lora_ext.host.webui.text_caches import reset_text_caches
from lora_ext.networks.library import Identity, identity
from lora_ext.protocols import UserError

_KIND, _ALIAS = "lora", "lyco"
_REMEMBERED_PROMPTS = 64
_log = logging.getLogger(__name__)


class WorkshopNetworks(extra_networks.ExtraNetwork):
    """The WebUI's extra network `lora`: the registry's entry, for as long as the program runs.

    Every `activate` is authoritative: the WebUI skips `deactivate` in many cases.
    """

    def __init__(self) -> None:
        super().__init__(_KIND)
        self._model: LoadedModel | None = None
        self._files = LoadedFiles()
        self._builtin_was_used = True  # nobody knows what it did before we came
        self._left_files: list[Identity | None] = []
        self._conditions: dict[Hashable, Hashable] = {}
        self._logged: str | None = None
        self._request: weakref.ref[Any] | None = None

    def activate(self, p: Any, params_list: Sequence[Any]) -> None:
        """Make the weights those of these tags; what goes wrong is shown with the image, not raised.

        The WebUI would swallow an exception and render without the network.
        """
        try:
            with devices.without_autocast():
                self._activate(p, list(params_list))
        except Exception as error:
            errors.report("LoRA Workshop: activating the networks of the prompt failed", exc_info=True)
            if self._model is not None:
                self._model.deactivate()
            self._forget_states()
            _comment(p, f"LoRA Workshop: the networks of the prompt are left out: {error or type(error).__name__}")

    def deactivate(self, p: Any) -> None:
        """The built-in reports its errors here; ours are reported when they happen."""
        handler = builtin_lora.network_handler()
        if handler is not None and self._builtin_was_used:
            handler.deactivate(p)

    def model_changed(self, sd_model: nn.Module) -> None:
        """Another checkpoint renders, in this instance or another one (refiner): it gets the prompt's networks too."""
        self._move_to(sd_model, self.tags)

    def model_leaves(self, sd_model: nn.Module) -> None:
        """The memory of a model is about to be freed; the networks go on to the next one."""
        if self._model is not None and self._model.belongs_to(sd_model):
            self._model.let_go()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The networks come back after the block, in which the WebUI takes them out."""
        tags, request = self.tags, self._request
        yield
        self._move_to(sd_models.model_data.sd_model, tags)
        self._request = request

    def _move_to(self, sd_model: nn.Module, tags: list[LoraTag]) -> None:
        if self._model is None or not tags:
            return
        try:
            with devices.without_autocast():
                if not self._model.belongs_to(sd_model):
                    self.restore()
                    self._model = LoadedModel(sd_model, self._files)
                self._model.activate(tags)
        except UserError as error:
            _log.warning("LoRA Workshop leaves the networks of the prompt out of this checkpoint: %s", error)

    def before_denoising(self, denoiser: Any) -> None:
        """The model is about to be called: with a picture's networks that act in this step, and without the others.

        Of the picture that the tags were activated for, that is: others may be rendered in between. The WebUI swallows
        exceptions of callbacks, so the picture is ended where the weights cannot be changed.
        """
        if self._model is None or self._request is None or self._request() is not denoiser.p:
            return
        try:
            with devices.without_autocast():
                self._model.go_to_step(sampling_step(denoiser))
        except Exception as error:
            errors.report("LoRA Workshop: changing the networks between sampling steps failed", exc_info=True)
            _comment(denoiser.p, f"LoRA Workshop: the picture was ended: {error or type(error).__name__}")
            self._model.deactivate()
            shared.state.interrupted = True

    @property
    def tags(self) -> list[LoraTag]:
        """What is in the weights of the model that renders, by us."""
        return list(self._model.tags) if self._model is not None else []

    def restore(self) -> None:
        """Take our networks out of the weights."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def _activate(self, p: Any, params_list: list[Any]) -> None:
        key = tuple(tuple(params.items) for params in params_list)  # as the WebUI sees them, before the default
        tags, files = _with_files(p, [*_tags_of(p, params_list), *slots.tags_of(p, params_list)])
        self._leave_other_instance()
        theirs = settings.left_to_builtin()
        reason = self._why_not() if tags and not theirs else None
        left = theirs or (reason is not None and builtin_lora.network_handler() is not None)
        self._note_state(key, (left, *files, *tags))
        live = {tag.name for tag in tags if get_host().library.is_live(tag.name)}
        if live:
            get_host().note_live_problem(_whole_prompt_left(reason) if left and reason is not None else "")
            _warn_of_live(p, sorted(live) if left else [])
        if left:
            slots.note_left(p, reason)
            if reason not in (None, self._logged):
                _log.warning("LoRA Workshop leaves the networks of this prompt to the built-in: %s", reason)
            self._logged = reason
            _tell_what_is_ours_alone(p, tags)
            self._leave_to_builtin(p, [params for params in params_list if live.isdisjoint(params.items[:1])], files)
            return
        _report_missing(p, [tag.name for tag, file in zip(tags, files, strict=True) if file is None])
        self._apply(p, [tag for tag, file in zip(tags, files, strict=True) if file is not None], reason)

    def _apply(self, p: Any, tags: list[LoraTag], reason: str | None) -> None:
        """Put the networks of the tags into the weights; `reason` is why a part of them cannot be."""
        if self._builtin_was_used or builtin_lora.has_networks():
            builtin_lora.restore_all(sd_models.model_data.sd_model)
            self._builtin_was_used = False
        hashes: dict[str, str] = {}
        if self._model is not None:
            self._files.memory_limit = settings.memory_limit()
            for message in self._model.activate(tags):
                _comment(p, message)
            if not self._model.active.is_complete:
                self._forget_states()
            self._request = weakref.ref(p) if has_schedule(tags) else None
            hashes = self._model.active.hashes()
        elif tags:
            _comment(p, f"LoRA Workshop: the networks of the prompt are left out: {reason}")
        _write_hashes(p, hashes)

    def _leave_other_instance(self) -> None:
        """Restore and let go of the instance that was in use before another one was loaded or chosen."""
        if self._model is not None and not self._model.belongs_to(sd_models.model_data.sd_model):
            self.restore()

    def _why_not(self) -> str | None:
        """Why the networks of a prompt cannot be ours; None where they can."""
        sd_model = sd_models.model_data.sd_model
        if sd_model is None:
            return "no checkpoint is loaded"
        if devices.fp8:
            return "the checkpoint's weights are in 8 bits"
        if self._model is None:
            try:
                self._model = LoadedModel(sd_model, self._files)
            except UserError as error:
                return str(error)
        return None

    def _leave_to_builtin(self, p: Any, params_list: list[Any], files: list[Identity | None]) -> None:
        if self._model is not None:
            self._model.deactivate()
        if files != self._left_files:
            builtin_lora.restore_all(sd_models.model_data.sd_model)  # it would see a changed file as the same
        self._left_files = files
        self._builtin_was_used = True
        builtin_lora.hand_over(p, params_list)

    def _note_state(self, key: Hashable, state: Hashable) -> None:
        """Drop the WebUI's text encodings where the same tags stood for other files before.

        It keeps them by the tags' text, which says nothing of a changed file, of another default network, or of who
        applies them (with other roundings).
        """
        if self._conditions.get(key, state) != state or len(self._conditions) >= _REMEMBERED_PROMPTS:
            reset_text_caches()
            self._conditions.clear()
        self._conditions[key] = state

    def _forget_states(self) -> None:
        """Texts are encoded now without some of the networks that their tags stand for."""
        self._conditions = dict.fromkeys(self._conditions)


def _before_denoising(params: Any) -> None:
    _workshop_networks.before_denoising(params.denoiser)


def register() -> None:
    """Take `lora` and `lyco` over; to be called whenever the app has started, as often as that is."""
    script_callbacks.remove_callbacks_for_function(_before_denoising)
    script_callbacks.on_cfg_denoiser(_before_denoising, name="lora_workshop_steps")
    extra_networks.register_extra_network(_workshop_networks)
    extra_networks.register_extra_network_alias(_workshop_networks, _ALIAS)
    model_changes.watch(_workshop_networks.model_changed, _workshop_networks.kept, _workshop_networks.model_leaves)


def unregister() -> None:
    """Restore the weights, and give `lora` and `lyco` back to the built-in where it is in operation."""
    model_changes.unwatch()
    script_callbacks.remove_callbacks_for_function(_before_denoising)
    _workshop_networks.restore()
    handler = builtin_lora.network_handler()
    for names, name in ((extra_networks.extra_network_registry, _KIND), (extra_networks.extra_network_aliases, _ALIAS)):
        if names.get(name) is not _workshop_networks:
            continue
        if handler is not None:
            names[name] = handler
        else:
            del names[name]


def _tags_of(p: Any, params_list: list[Any]) -> list[LoraTag]:
    """The tags with their multipliers, and the settings' default network where they do not hold it."""
    written: list[LoraTag] = []
    presets = settings.block_presets() if params_list else {}
    for params in params_list:
        parsed = parse_tags(f"<{_KIND}:{':'.join(str(item) for item in params.items)}>", presets)
        written += parsed.tags
        for problem in parsed.problems:
            _comment(p, problem)
    default = getattr(shared.opts, "sd_lora", None)
    if default in (None, "", "None") or any(params.items[:1] == [default] for params in params_list):
        return written
    if get_host().library.find(default) is None:
        return written
    multiplier = float(shared.opts.extra_networks_default_multiplier)
    tag = LoraTag(default, multiplier)
    if getattr(p, "all_prompts", None):
        p.all_prompts = [x if tag.text() in x else x + tag.text() for x in p.all_prompts]
    params_list.append(extra_networks.ExtraNetworkParams(items=[default, multiplier]))
    return [*written, tag]


def _with_files(p: Any, tags: Sequence[LoraTag]) -> tuple[list[LoraTag], list[Identity | None]]:
    """The tags and the file of each, None where there is none of its name.

    One whose run has no file of its epoch is left out; which ones there are is told.
    """
    found: list[tuple[LoraTag, Identity | None]] = []
    for tag in tags:
        try:
            path = get_host().library.find(tag.name, tag.epoch)
        except UserError as error:
            _comment(p, f"{tag.text()} is left out: {error}")
            continue
        found.append((tag, identity(path) if path is not None else None))
    return [tag for tag, _ in found], [file for _, file in found]


def _tell_what_is_ours_alone(p: Any, tags: Sequence[LoraTag]) -> None:
    """Say which arguments the built-in, to which the tags are left, takes no notice of."""
    for tag in tags:
        if replace(tag, dyn=None).named_text():
            _comment(p, f"{tag.text()}: epoch, lbw, start, stop and step mean nothing to the built-in")


def _report_missing(p: Any, names: Sequence[str]) -> None:
    """Say that there is no such network, as the built-in does."""
    if not names:
        return
    message = f"Lora not found: {', '.join(dict.fromkeys(names))}"
    _comment(p, message)
    if getattr(shared.opts, "lora_not_found_warning_console", False):
        print(f"\n{message}\n")
    if getattr(shared.opts, "lora_not_found_gradio_warning", False):
        builtin_lora.show_warning(message)


def _whole_prompt_left(reason: str) -> str:
    """Why the network of a paused training does nothing where the settings do not say so."""
    return f"this prompt is left to {settings.UNKNOWN_THERE}: {reason}"


def _warn_of_live(p: Any, names: Sequence[str]) -> None:
    """Say under the image and in the log that the networks of a paused training do nothing; the tab asks the host."""
    for name in names:
        text = f"LoRA Workshop: <lora:{name}:1> does nothing: {get_host().live_network_problem()}"
        _log.warning(text)
        if hasattr(p, "comment"):
            p.comment(text)


def _write_hashes(p: Any, hashes: dict[str, str]) -> None:
    """Note the hashes for the infotext: of both passes with hires fix, of no other cell of a grid."""
    if not getattr(shared.opts, "lora_add_hashes_to_infotext", True) or not hasattr(p, "extra_generation_params"):
        return
    if not getattr(p, "is_hr_pass", False) or not hasattr(p, "lora_hashes"):
        p.lora_hashes = {}
    p.lora_hashes.update(hashes)
    if p.lora_hashes:
        p.extra_generation_params["Lora hashes"] = ", ".join(f"{name}: {hash}" for name, hash in p.lora_hashes.items())
    else:
        p.extra_generation_params.pop("Lora hashes", None)


def _comment(p: Any, text: str) -> None:
    """Show it under the image; where there is none, in the log."""
    if hasattr(p, "comment"):
        p.comment(text)
    else:
        _log.warning("LoRA Workshop: %s", text)


_workshop_networks = WorkshopNetworks()
