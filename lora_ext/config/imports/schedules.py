"""The learning-rate schedule of a configuration, by the names that people bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_ext.config.imports.networks import arguments_of
from lora_ext.config.imports.result import Carried

_RESTARTS = "cosine_annealing_warmup_restarts"
_OWN_CLASSES = {
    "cosineannealingwarmuprestarts": _RESTARTS,
    "cosineannealingwarmrestarts": _RESTARTS,
    "rexannealingwarmrestarts": "rex",
    "rex": "rex",
}
"""Classes of add-ons and of a file that the guides have people replace; what they do is built in here."""

_RESTARTS_ARGUMENTS = {
    **{name: name for name in ("T_0", "T_mult", "down_factor", "decay", "gamma_min_lr", "warmup_steps", "cycle_warmup",
                               "init_lr_ground")},
    "first_cycle_steps": "T_0",
    "cycle_mult": "T_mult",
    "gamma": "decay",
}  # fmt: skip
"""Arguments of the warm restarts in several programs, and what they are called here."""


def carry_schedule(carried: Carried, present: Mapping[str, Any]) -> None:
    """Schedule, its arguments, warmup and decay."""
    name = str(present.get("lr_scheduler", "")).strip()
    path = str(present.get("lr_scheduler_type", "")).strip()
    arguments = arguments_of(present.get("lr_scheduler_args", {}))
    own = _OWN_CLASSES.get(path.rpartition(".")[2].lower(), "") if not path.startswith("torch.") and "." in path else ""
    if own:
        carried.set("lr_scheduler_type", "lr_scheduler", own, f"{path} is built in")
        arguments = _own_arguments(carried, own, arguments, present.get("learning_rate"))
    elif path:
        full = path if "." in path else f"torch.optim.lr_scheduler.{path}"
        carried.set("lr_scheduler_type", "lr_scheduler", full)
    elif name.startswith("adafactor:"):
        carried.set("lr_scheduler", "lr_scheduler", "adafactor", f"{name}: AdaFactor sets the rate by itself")
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


def _own_arguments(carried: Carried, schedule: str, arguments: Mapping[str, str], rate: Any) -> dict[str, str]:
    """Arguments of a schedule that is built in, under our names; the lowest rate becomes a share of the rate."""
    known = _RESTARTS_ARGUMENTS if schedule == _RESTARTS else {}
    kept: dict[str, str] = {}
    for name, value in arguments.items():
        share = _share(value, rate) if name == "min_lr" else None
        if share is not None:
            carried.set(f"lr_scheduler_args {name}", "lr_scheduler_min_lr_ratio", share, f"{value} of {rate}")
        elif name in known:
            kept[known[name]] = value
        else:
            carried.note(f"lr_scheduler_args {name}", "lost", f"{value}: {schedule} takes no such argument here")
    return kept


def _share(value: Any, rate: Any) -> float | None:
    try:
        share = float(value) / float(rate)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return float(f"{share:.6g}") if 0 <= share <= 1 else None


def share_or_steps(value: Any) -> Any:
    """Steps, or a share of them: sd-scripts writes a share as "10%" too."""
    text = str(value).strip()
    if text.endswith("%"):
        try:
            return f"{float(text[:-1]) / 100:.12g}"
        except ValueError:
            return value
    return value
