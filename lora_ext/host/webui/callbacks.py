"""What the WebUI calls: its tab, the routes, the settings, and the end of everything before a reload."""

from __future__ import annotations

import atexit
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import paths_internal, script_callbacks, shared

from lora_ext.host.webui import settings, slot_axes, xyz_axes
from lora_ext.host.webui.authentication import PAGE_KEY, make_authentication
from lora_ext.host.webui.page_defaults import DemoFiles, page_defaults
from lora_ext.host.webui.state import close_runner, get_host, get_runner

TITLE = "LoRA Workshop"
_ELEMENT = "lora_workshop"


@dataclass(frozen=True)
class Upstairs:
    """What lies in layers above the host, as the entry script hands it in.

    What makes the tab, the routes, and the desk that looks at datasets for them; and where the demo's files are.
    """

    make_tab: Callable[..., Any]
    make_router: Callable[..., Any]
    make_desk: Callable[..., Any]
    demo: DemoFiles


def register(upstairs: Upstairs) -> None:
    """Register everything; called at the start and after each "Reload UI", which forgets all callbacks."""
    atexit.register(close_runner)  # the server was stopped: a training ends in order, with what is trained kept
    settings.register()
    xyz_axes.register()  # under `--nowebui` the scripts' arguments are listed before any callback
    slot_axes.register()
    script_callbacks.on_before_ui(_before_ui)
    script_callbacks.on_ui_tabs(lambda: [(_tab(upstairs), TITLE, _ELEMENT)])
    script_callbacks.on_app_started(lambda _, app: _app_started(app, upstairs))
    script_callbacks.on_before_reload(close_runner)
    script_callbacks.on_script_unloaded(_unloaded)


def allowed_roots() -> Sequence[Path] | None:
    """Folders that pages and API calls may name; None is every one, where only this machine can reach the WebUI."""
    options = shared.cmd_opts
    if not options.webui_is_non_local:
        return None
    folders = [paths_internal.data_path, *get_host().folders().networks, *(options.gradio_allowed_path or ())]
    return [Path(folder).absolute() for folder in folders]


def _tab(upstairs: Upstairs) -> Any:
    defaults = page_defaults(upstairs.demo)
    tab = upstairs.make_tab(get_host(), defaults=defaults, page_key=PAGE_KEY)
    for component in tab.blocks.values():  # else the WebUI would keep today's defaults in ui-config.json for ever
        component.do_not_save_to_config = True
    return tab


def _app_started(app: Any, upstairs: Upstairs) -> None:
    host = get_host()
    authenticate = make_authentication(app, shared.cmd_opts.api_auth)
    desk = upstairs.make_desk(host, allowed_roots())
    app.include_router(upstairs.make_router(get_runner(), host, authenticate, desk))
    from lora_ext.host.webui import tags

    tags.register()


def _before_ui() -> None:
    xyz_axes.register()  # where the plot's script was loaded after us
    slot_axes.register()
    if shared.cmd_opts.api:
        # Adding the API fails, and with it the WebUI's start, where a page asks something just then. Most of that
        # moment would be this import; pages that were left open do ask.
        importlib.import_module("modules.api.api")


def _unloaded() -> None:
    """Leave nothing behind: the next to register are modules of their own, of another version perhaps."""
    from lora_ext.host.webui import tags

    close_runner()
    atexit.unregister(close_runner)
    tags.unregister()
