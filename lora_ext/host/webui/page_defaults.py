"""What stands in the fields of a page that has had no run yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import sd_models

from lora_ext.config.toml_files import read_config
from lora_ext.config.train_config import flat_values
from lora_ext.protocols import UserError

_DEMO = "lora-workshop-demo"
_DEMO_SIZES = {"resolution": "64", "min_bucket_reso": 32, "bucket_reso_steps": 8}

DemoFiles = tuple[Callable[[], Path], Callable[[], Path]]
"""What gives the paths of the demo's settings and of its pictures; UserError where a copy has none."""


def page_defaults(demo: DemoFiles) -> dict[str, Any]:
    """Settings that differ from the declared defaults: the demo's run where its checkpoint is the chosen one."""
    chosen = sd_models.select_checkpoint() if sd_models.checkpoints_list else None
    if chosen is None or chosen.name_for_extra != _DEMO:
        return {}
    settings_path, pictures_path = demo
    try:
        return {**flat_values(read_config(settings_path())), "train_data_dir": str(pictures_path())}
    except UserError:  # the checkpoint draws at 64 pixels, with the demo's pictures or without
        return dict(_DEMO_SIZES)
