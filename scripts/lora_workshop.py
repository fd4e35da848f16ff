"""The WebUI's entry: registers callbacks and the slot panel, nothing else."""

import sys
from typing import Any


def forget_loaded() -> None:
    """Let everything of ours be imported anew: "Reload UI" runs this file again, perhaps after an update.

    Modules of an old and a new version would not fit each other. What they held was closed before, when the WebUI
    unloaded its scripts.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "lora_ext"]:
        del sys.modules[name]


def register_callbacks() -> None:
    """Tell the WebUI of the tab, the routes, the tags and the axes."""
    from lora_ext.demo.assets import demo_config_path, demo_dataset_path
    from lora_ext.host.webui.callbacks import Upstairs, register
    from lora_ext.ui.tab import make_tab
    from lora_ext.web.planning import PlanningDesk
    from lora_ext.web.routes import make_router

    register(Upstairs(make_tab, make_router, PlanningDesk, (demo_config_path, demo_dataset_path)))


def panel_script() -> Any:
    """The script class of the slot panel; the WebUI finds it among this file's names."""
    from lora_ext.host.webui.slots import slot_script
    from lora_ext.ui.slot_panel import build_slot_panel

    return slot_script(build_slot_panel)


forget_loaded()
register_callbacks()
SlotScript = panel_script()
