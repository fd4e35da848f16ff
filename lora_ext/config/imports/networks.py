"""`network_module` and `network_args`: which algorithm, and its own settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lora_ext.config.imports.command_line import words_of
from lora_ext.config.imports.explained import PROGRAMS
from lora_ext.config.imports.result import Carried, joined

ALGORITHMS_HERE = ("lora", "locon")
_MODULES = {
    "networks.lora": "",
    "networks.dylora": "DyLoRA",
    "networks.oft": "OFT",
    "networks.lora_fa": "LoRA-FA",
    "lycoris.kohya": "",
    "locon.locon_kohya": "",
    "lycoris.locon_kohya": "",
}
"""Modules that are known, with the algorithm's name where it cannot be trained yet."""

_DIRECT = (
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims",
    "conv_block_alphas", "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
)  # fmt: skip
"""Arguments of `networks.lora` that are settings of the same name here."""

_RATE_PARTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_LOST_IF_ON = {
    "use_cp": "Tucker decomposition (use_cp) cannot be trained yet",
    "use_tucker": "Tucker decomposition cannot be trained yet",
    "dora_wd": "DoRA cannot be trained yet",
    "weight_decompose": "DoRA cannot be trained yet",
    "rs_lora": "rsLoRA cannot be trained yet: set network_alpha to √rank · alpha instead",
    "train_norm": "norm layers cannot be trained yet",
    "train_t5xxl": "it is for models of another kind",
}
_OFF = ("", "0", "-1", "false", "none")


def arguments_of(value: Any) -> dict[str, str]:
    """{name: value} from `network_args` as a list, a table, or one text: `["conv_dim=8", …]`, `conv_dim=8 "algo=lora"`.

    A part without "=" belongs to the value before it, which held a space.
    """
    if isinstance(value, Mapping):
        return {str(name): joined(each) if isinstance(each, list) else _text(each) for name, each in value.items()}
    parts = [str(each) for each in value] if isinstance(value, list | tuple) else words_of(str(value or ""))
    found: dict[str, str] = {}
    last = ""
    for part in parts:
        name, sign, text = part.partition("=")
        if sign and name.strip().isidentifier():
            last = name.strip()
            found[last] = text.strip().strip("\"'").replace(", ", ",")
        elif last and part.strip():
            found[last] += part.strip()
        elif part.strip():
            found[part.strip()] = ""
    return found


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def carry_network(
    carried: Carried, module: str, arguments: Mapping[str, str], rank: Any, alpha: Any, sdxl: bool = False
) -> None:
    """Settings from the network's module and arguments; `rank` and `alpha` are those of the linear layers.

    LyCORIS and the old LoCon adapt convolutions with the linear layers' rank and alpha where no others are given.
    """
    module = module.strip().removeprefix("sd_scripts.")
    algorithm = arguments.get("algo", "").strip().lower()
    is_lycoris = module in ("lycoris.kohya", "locon.locon_kohya", "lycoris.locon_kohya")
    _carry_module(carried, module, algorithm if is_lycoris else "")
    convolutions: dict[str, Any] = {}
    if is_lycoris and algorithm in ("", *ALGORITHMS_HERE):
        convolutions = {"conv_dim": rank, "conv_alpha": alpha}
    for name, value in arguments.items():
        if name in ("conv_dim", "conv_alpha") and value not in ("", "None"):
            convolutions[name] = value
        elif name not in ("algo", "conv_dim", "conv_alpha", "block_lr_zero_threshold", *_RATE_PARTS):
            _carry_argument(carried, name, value)
    if _is_zero(convolutions.get("conv_dim", 0)):
        convolutions = {
            name: value for name, value in convolutions.items() if name == "conv_alpha" and name in arguments
        }
    for name, value in convolutions.items():
        given = name in arguments
        carried.set(name, name, value, "" if given else f"{module} takes the linear layers' where it is not given")
    _carry_block_rates(carried, arguments, sdxl)


def _carry_module(carried: Carried, module: str, algorithm: str) -> None:
    if module not in _MODULES and module:
        carried.note("network_module", "lost", f"{module} cannot be trained here: only LoRA and LoCon can")
    elif _MODULES.get(module):
        carried.note("network_module", "lost", f"{_MODULES[module]} cannot be trained yet: only LoRA and LoCon can")
    elif algorithm and algorithm not in ALGORITHMS_HERE:
        carried.note("algo", "lost", f"{algorithm} cannot be trained yet: only LoRA and LoCon can")
    elif module:
        carried.note("network_module", "explained", f"{module}: LoRA, with convolutions (LoCon) where conv_dim is set")


def _carry_argument(carried: Carried, name: str, value: str) -> None:
    off = value.strip().lower() in _OFF
    if name in _DIRECT:
        if off:
            carried.note(name, "explained", "is off")
        else:
            carried.set(name, name, value)
    elif name == "dropout":
        carried.set(name, "network_dropout", value or 0)
    elif name in _LOST_IF_ON:
        carried.note(name, "explained" if off else "lost", "is off" if off else _LOST_IF_ON[name])
    elif name == "preset":
        carried.note(name, "explained", f"{value or 'full'}: attention, feed-forward and, with conv_dim, convolutions")
    elif name in PROGRAMS:
        carried.note(name, "explained", PROGRAMS[name])
    else:
        carried.note(name, "unknown", "no argument of a network that is known here")


def _is_zero(value: Any) -> bool:
    try:
        return float(value) <= 0
    except (TypeError, ValueError):
        return False


def _carry_block_rates(carried: Carried, arguments: Mapping[str, str], sdxl: bool) -> None:
    """`down_lr_weight`, `mid_lr_weight`, `up_lr_weight` become the 25 or 23 factors of `block_lr`.

    Lists of SDXL's lengths tell its kind too.
    """
    given = {name: arguments[name].strip() for name in _RATE_PARTS if arguments.get(name, "").strip()}
    if not given:
        return
    counts = {name: text.count(",") + 1 for name, text in given.items()}
    sdxl = sdxl or counts.get("mid_lr_weight") == 3 or any(counts.get(name) == 9 for name in _RATE_PARTS)
    sides, middle = (9, 3) if sdxl else (12, 1)
    factors: list[float] = []
    for name in _RATE_PARTS:
        length = middle if name == "mid_lr_weight" else sides
        part = _block_factors(given.get(name, ""), length)
        if part is None:
            carried.note(name, "lost", f"{given[name]!r} is no list of {length} numbers and no curve that is known")
            return
        factors += part
    text = arguments.get("block_lr_zero_threshold") or "0"
    try:
        threshold = float(text)
    except ValueError:
        carried.note("block_lr_zero_threshold", "lost", f"{text!r} is no number: factors stay as they are")
        threshold = 0.0
    factors = [factor if factor > threshold else 0.0 for factor in factors]
    if sdxl:
        factors = [1.0, *factors, 1.0]
    carried.set(" / ".join(given), "block_lr", joined(factors))


def _block_factors(text: str, length: int) -> list[float] | None:
    """`length` factors of a text: a list (filled up with 1), a curve's name with "+base", or 1 where it is empty."""
    if not text:
        return [1.0] * length
    name, _, base = text.partition("+")
    ramp = [place / max(1, length - 1) for place in range(length)]
    curves = {
        "sine": [math.sin(math.pi * place / 2) for place in ramp],
        "cosine": [math.sin(math.pi * place / 2) for place in reversed(ramp)],
        "linear": ramp,
        "reverse_linear": ramp[::-1],
        "zeros": [0.0] * length,
    }
    try:
        if name.strip() in curves:
            return [round(value + float(base or 0), 6) for value in curves[name.strip()]]
        numbers = [float(part) if part.strip() else 0.0 for part in text.split(",")]
    except ValueError:
        return None
    return (numbers + [1.0] * length)[:length]
