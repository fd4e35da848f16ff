"""The WebUI's entry: registers callbacks, nothing else."""

from lora_ext.demo.assets import demo_config_path, demo_dataset_path
from lora_ext.host.webui.callbacks import Upstairs, register
from lora_ext.ui.tab import make_tab
from lora_ext.web.planning import PlanningDesk
from lora_ext.web.routes import make_router

register(Upstairs(make_tab, make_router, PlanningDesk, (demo_config_path, demo_dataset_path)))
