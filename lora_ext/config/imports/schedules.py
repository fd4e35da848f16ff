"""The learning-rate schedule of a configuration, by the names that people bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_ext.config.imports.networks import arguments_of
from lora_ext.config.imports.result import Carried

_OWN_CLASSES = {
    "cosineannealingwarmuprestarts": "cosine_annealing_warmup_restarts",
    "cosineannealingwarmrestarts": "cosine_annealing_warmup_restarts",
    "rexannealingwarmrestarts": "rex",
    "rex": "rex",
}
"""Classes of add-ons and of a file that the guides have people replace; what they do is built in here."""

_OWN_ARGUMENTS = {
    "gamma_min_lr": "lr_scheduler_min_lr_ratio",
    "min_lr_ratio": "lr_scheduler_min_lr_ratio",
    "decay": "lr_cycle_decay",
    "gamma": "lr_cycle_decay",
    "down_factor": "lr_cycle_decay",
    "warmup_steps": "lr_warmup_steps",
    "cycle_warmup": "lr_cycle_warmup_steps",
}
_LENGTHS = ("T_0", "first_cycle_steps")


def carry_schedule(carried: Carried, present: Mapping[str, Any]) -> None:
    """Schedule, its arguments, warmup and decay."""
    name = str(present.get("lr_scheduler", "")).strip()
    path = str(present.get("lr_scheduler_type", "")).strip()
    arguments = arguments_of(present.get("lr_scheduler_args", {}))
    class_name = path.rpartition(".")[2].lower()
    if class_name in _OWN_CLASSES and not path.startswith("torch."):
        carried.set("lr_scheduler_type", "lr_scheduler", _OWN_CLASSES[class_name], f"{path} is built in")
        _carry_own_arguments(carried, arguments)
    else:
        if path:
            full = path if "." in path else f"torch.optim.lr_scheduler.{path}"
            carried.set("lr_scheduler_type", "lr_scheduler", full, "it wins over lr_scheduler")
        elif name:
            carried.set("lr_scheduler", "lr_scheduler", name)
        if arguments:
            text = " ".join(f"{key}={value}" for key, value in arguments.items())
            carried.set("lr_scheduler_args", "lr_scheduler_args", text)
    if name and path:
        carried.note("lr_scheduler", "explained", f"{name}: lr_scheduler_type wins over it")
    for option in ("lr_warmup_steps", "lr_decay_steps"):
        if option in present:
            carried.set(option, option, share_or_steps(present[option]))
    if "lr_warmup_ratio" in present:
        carried.set("lr_warmup_ratio", "lr_warmup_steps", present["lr_warmup_ratio"], "a share of all steps")


def _carry_own_arguments(carried: Carried, arguments: Mapping[str, str]) -> None:
    for name, value in arguments.items():
        if name in _OWN_ARGUMENTS:
            carried.set(f"lr_scheduler_args {name}", _OWN_ARGUMENTS[name], value)
        elif name in _LENGTHS:
            text = "the cycles' length follows from lr_scheduler_num_cycles and the number of steps: set that one"
            carried.note(f"lr_scheduler_args {name}", "lost", f"{value}: {text}")
        else:
            carried.note(f"lr_scheduler_args {name}", "lost", f"{value}: the schedule has no such argument here")


def share_or_steps(value: Any) -> Any:
    """Steps, or a share of them: sd-scripts writes a share as "10%" too."""
    text = str(value).strip()
    if text.endswith("%"):
        try:
            return f"{float(text[:-1]) / 100:.12g}"
        except ValueError:
            return value
    return value
