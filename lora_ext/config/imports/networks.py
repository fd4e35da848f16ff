"""`network_module` and `network_args`: which algorithm, and its own settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lora_ext.config.algorithms import KERNEL_PRESETS
from lora_ext.config.groups.network import ALGORITHMS, PRESETS
from lora_ext.config.imports.command_line import words_of
from lora_ext.config.imports.explained import PROGRAMS
from lora_ext.config.imports.result import Carried, joined
from lora_ext.config.network_arguments import OF_BOTH, OF_LEARNING, OF_LYCORIS

_MODULES = {
    "networks.lora": "lora",
    "networks.lora_fa": "lora",
    "networks.dylora": "dylora",
    "lycoris.kohya": "",
    "locon.locon_kohya": "lora",
    "lycoris.locon_kohya": "lora",
}
"""Modules that are known, with their algorithm; LyCORIS is told one."""

_ALGORITHMS = {"locon": "lora", "diag_oft": "diag-oft", "dag-oft": "diag-oft"}
"""What algorithms are called otherwise."""

_DIRECT = (*OF_BOTH, *OF_LEARNING)
"""Arguments of `networks.lora` that are settings of the same name here."""

_RENAMED = {
    "dropout": "network_dropout", "use_cp": "use_tucker", "use_conv_cp": "use_tucker", "unit": "block_size",
    "constrain": "constraint", "weight_decompose": "dora_wd", "wd_on_out": "wd_on_output",
    "weight_decompose_output": "wd_on_output", "unbalanced": "unbalanced_factorization",
}  # fmt: skip
"""Arguments that are called otherwise here."""

_RATE_PARTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_LOST_IF_ON = {"train_t5xxl": "it is for models of another kind"}
_OFF = ("", "0", "-1", "false", "none")
_NONE = ("", "None")
HIGHEST_RANK = 1024
"""The highest that `network_dim` takes."""


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
    algorithm = _carry_algorithm(carried, module, arguments.get("algo", ""))
    convolutions: dict[str, Any] = {
        name: value for name, value in arguments.items() if name in ("conv_dim", "conv_alpha") and value not in _NONE
    }
    if module == "lycoris.kohya":
        convolutions = _carry_preset(carried, arguments.get("preset", ""), convolutions)
    elif module in ("locon.locon_kohya", "lycoris.locon_kohya"):
        convolutions = {"conv_dim": rank, "conv_alpha": alpha} | convolutions
    for name, value in arguments.items():
        if name not in ("algo", "preset", "conv_dim", "conv_alpha", "block_lr_zero_threshold", *_RATE_PARTS):
            _carry_argument(carried, name, value)
    if "conv_dim" in convolutions and _is_zero(convolutions["conv_dim"]):
        convolutions = {name: value for name, value in arguments.items() if name == "conv_alpha"}
    for name, value in convolutions.items():
        given = name in arguments
        carried.set(name, name, value, "" if given else f"{module} takes the linear layers' where it is not given")
    if algorithm == "lokr" and stands_for_whole(rank):
        carried.set("network_dim", "full_matrix", True, f"rank {rank} stands for whole matrices")
    _carry_block_rates(carried, arguments, sdxl)


def _carry_algorithm(carried: Carried, module: str, algo: str) -> str:
    """The algorithm of a module and its `algo`."""
    if module not in _MODULES:
        if module:
            near = "; the nearest is network_algorithm = diag-oft" if module == "networks.oft" else ""
            carried.note("network_module", "lost", f"{module} cannot be trained here{near}")
        return "lora"
    given = algo.strip().lower()
    algorithm = _MODULES[module] or _ALGORITHMS.get(given, given) or "lora"
    if algorithm not in ALGORITHMS:
        carried.note("algo", "lost", f"{algo}: allowed are {', '.join(ALGORITHMS)}")
        return "lora"
    if module == "networks.lora_fa":
        carried.set("network_module", "lora_fa", True)
    elif algorithm == "lora":
        carried.note("network_module", "explained", f"{module}: LoRA, with convolutions (LoCon) where conv_dim is set")
    else:
        carried.set("algo" if given else "network_module", "network_algorithm", algorithm)
    if module == "networks.dylora":
        carried.note("unit", "explained", "blocks count as in LyCORIS' DyLoRA, whose strength differs from sd-scripts'")
    return algorithm


def _carry_preset(carried: Carried, name: str, convolutions: dict[str, Any]) -> dict[str, Any]:
    """LyCORIS' preset, "full" where none is given; returns what is left to say of convolutions."""
    preset = name.strip() or "full"
    no_convolutions = "conv_dim" in convolutions and _is_zero(convolutions["conv_dim"])
    if preset == "full" and no_convolutions:
        preset = "full-lin"
    if preset not in PRESETS and not preset.lower().endswith(".toml"):
        carried.note("preset", "lost", f"{preset}: allowed are {', '.join(PRESETS)}, and the path of a .toml file")
        return convolutions
    why = "" if name.strip() == preset else "LyCORIS' own where none is given"
    if no_convolutions:
        why = "full without convolutions"
    carried.set("preset", "network_preset", preset, why)
    return convolutions if preset in KERNEL_PRESETS or preset.lower().endswith(".toml") else {}


def _carry_argument(carried: Carried, name: str, value: str) -> None:
    off = value.strip().lower() in _OFF
    setting = _RENAMED.get(name, name)
    if setting == "wd_on_output":
        carried.set(name, setting, not off)
    elif setting == "factor" and value.strip():
        carried.set(name, setting, value)
    elif setting in _DIRECT or setting in OF_LYCORIS or setting == "network_dropout":
        if off and setting != "network_dropout":
            carried.note(name, "explained", "is off")
        else:
            carried.set(name, setting, value or 0)
    elif name in _LOST_IF_ON:
        carried.note(name, "explained" if off else "lost", "is off" if off else _LOST_IF_ON[name])
    elif name in PROGRAMS:
        carried.note(name, "explained", PROGRAMS[name])
    else:
        carried.note(name, "unknown", "no argument of a network that is known here")


def stands_for_whole(rank: Any) -> bool:
    """Whether a rank is one that LyCORIS' users give for LoKr's factors to be whole."""
    try:
        return float(rank) > HIGHEST_RANK
    except (TypeError, ValueError):
        return False


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
