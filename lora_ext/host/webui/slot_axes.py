"""The axes "AddNet …" of the WebUI's X/Y/Z plot: the panel's slots, in sd-webui-additional-networks' names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_ext.apply.slots import SLOTS
from lora_ext.grid.values import format_number, parse_numbers
from lora_ext.host.webui.slots import AXES
from lora_ext.host.webui.state import get_host
from lora_ext.protocols import UserError

WITHOUT = "None"
_WEIGHTS = {"Weight": "weight", "UNet Weight": "unet", "TEnc Weight": "te"}


def register() -> None:
    """Add the axes to the X/Y/Z plot's, once; to be called before the page is built, as often as that is."""
    from modules import scripts  # the WebUI's

    for data in scripts.scripts_data:
        if Path(data.path).name == "xyz_grid.py":
            present = {option.label for option in data.module.axis_options}
            options = [option for number in range(1, SLOTS + 1) for option in _options(data.module, number)]
            data.module.axis_options += [option for option in options if option.label not in present]


def _options(xyz_grid: Any, number: int) -> list[Any]:
    model = xyz_grid.AxisOption(
        f"AddNet Model {number}", str, _apply(number, "network"), _model_label, _confirm_models, 0.5, model_choices
    )
    weights = [
        xyz_grid.AxisOption(f"AddNet {word} {number}", str, _apply(number, part), _weight_label, _confirm_weights, 0.1)
        for word, part in _WEIGHTS.items()
    ]
    return [model, *weights]


def model_choices() -> list[str]:
    """What 📒 fills in: an empty slot, and every network."""
    return [WITHOUT, *get_host().library.names()]


def _confirm_models(p: Any, xs: list[Any]) -> None:
    library = get_host().library
    xs[:] = [None if str(x).strip() in ("", WITHOUT) else str(x).strip() for x in xs]
    missing = [x for x in xs if x is not None and library.find(x) is None]
    if missing:
        raise UserError(f"AddNet Model: there is no network {missing[0]}; press 📒 for those that there are")


def _confirm_weights(p: Any, xs: list[Any]) -> None:
    xs[:] = parse_numbers(",".join(str(x) for x in xs))


def _apply(number: int, part: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, x: Any, xs: Any) -> None:
        """Note the value on the copied request of the cell; the panel's script puts it into the slot."""
        setattr(p, AXES, {**getattr(p, AXES, {}), (number, part): x})

    return apply


def _model_label(p: Any, option: Any, value: Any) -> str:
    return value or WITHOUT


def _weight_label(p: Any, option: Any, value: Any) -> str:
    return f"{option.label}: {format_number(value)}"
