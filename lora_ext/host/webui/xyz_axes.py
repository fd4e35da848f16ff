"""The axes "[LoRA] …" of the WebUI's X/Y/Z plot: cells with real tags in their prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_ext.apply.tags import LoraTag, parse_tags
from lora_ext.grid.axes import NetworkChoice, network_file, network_names, prompt_with, runs_with_epochs
from lora_ext.grid.values import format_number, parse_epochs, parse_values
from lora_ext.host.webui import settings
from lora_ext.host.webui.state import get_host
from lora_ext.networks.block_weights import BlockWeights, parse_block_weights, preset_names
from lora_ext.networks.library import Epoch, NetworkLibrary
from lora_ext.protocols import UserError

NETWORK, EPOCH, WEIGHT = "[LoRA] Network", "[LoRA] Epoch", "[LoRA] Weight"
UNET_WEIGHT, TE_WEIGHT = "[LoRA] U-Net weight", "[LoRA] TE weight"
BLOCKS = "[LoRA] Block weights"
WITHOUT = "None"

_AXES_ON_REQUEST = "lora_workshop_axes"
_CELL = "lora_workshop_cell"
_EPOCH_SUFFIX = re.compile(r"-\d{6}$")


@dataclass(frozen=True)
class BaseTag:
    """The network that the prompt itself names, by its tag: `epoch` None is the file of exactly this name."""

    network: str
    epoch: Epoch | None
    tag: LoraTag


@dataclass
class Cell:
    """One cell's values by axis, and the network they change; kept on the copy of the request that renders the cell.

    Every axis rewrites the whole tag from here, so that their order does not matter.
    """

    base: BaseTag | None
    own_names: set[str]
    has_network_axis: bool
    picked: dict[str, Any] = field(default_factory=dict)

    def tag(self, library: NetworkLibrary) -> str | None:
        """The cell's tag, None without a network. Raises UserError where there is no such file."""
        if None in self.picked.values():
            return None
        base = self.base or BaseTag("", None, LoraTag(""))
        name, weight = self.picked.get(NETWORK), self.picked.get(WEIGHT)
        epoch = self.picked.get(EPOCH, base.epoch if name is None else None)
        path = network_file(NetworkChoice(base.network if name is None else name, epoch), library)
        if path is None:
            return None
        te = self.picked.get(TE_WEIGHT, base.tag.te if weight is None else weight)
        unet = self.picked.get(UNET_WEIGHT, base.tag.unet_multiplier if weight is None else weight)
        lbw = self.picked.get(BLOCKS, base.tag.lbw)
        tag = replace(base.tag, name=path.stem, te=te, unet=None if unet == te else unet, epoch=None, lbw=lbw)
        return tag.text()


def register() -> None:
    """Add the axes to the X/Y/Z plot's, once; to be called before the page is built, as often as that is."""
    from modules import scripts  # the WebUI's

    for data in scripts.scripts_data:
        if Path(data.path).name == "xyz_grid.py":
            _add_axes(data.module)


def _add_axes(xyz_grid: Any) -> None:
    present = {option.label for option in xyz_grid.axis_options}
    parsers: dict[str, tuple[Callable[[list[str], Any], list[Any]], Callable[[], list[str]] | None, float]] = {
        NETWORK: (_parse_networks, network_choices, 0.6),
        EPOCH: (_parse_epochs, epoch_choices, 0.5),
        WEIGHT: (_parse_weights, None, 0.1),
        UNET_WEIGHT: (_parse_weights, None, 0.1),
        TE_WEIGHT: (_parse_weights, None, 0.1),
        BLOCKS: (_parse_blocks, block_choices, 0.1),
    }
    for label, (parse, choices, cost) in parsers.items():
        if label not in present:
            xyz_grid.axis_options.append(
                xyz_grid.AxisOption(
                    label, _as_it_is, _apply_to(label), _label, _confirm_for(label, parse), cost, choices
                )
            )


def network_choices() -> list[str]:
    """What 📒 fills in: every network on the disk, its epochs under one name, after a column without one."""
    return [WITHOUT, *network_names(get_host().library)]


def epoch_choices() -> list[str]:
    """What 📒 fills in: the epochs of the network that was written last, in order, after a column without one.

    Other networks' epochs can be written with "Use text inputs instead of dropdowns".
    """
    runs = runs_with_epochs(get_host().library)
    if not runs:
        return [WITHOUT, "last"]
    newest = max(runs, key=lambda files: max(path.stat().st_mtime_ns for _, path in files))
    return [WITHOUT, *(str(epoch) for epoch, _ in newest[:-1]), "last"]


def block_choices() -> list[str]:
    """What 📒 fills in: every preset for `lbw=`, after a column without a network."""
    return [WITHOUT, *preset_names(settings.block_presets())]


def _as_it_is(value: Any) -> Any:
    return value


def _confirm_for(label: str, parse: Callable[[list[str], Any], list[Any]]) -> Callable[[Any, list[Any]], None]:
    def confirm(p: Any, xs: list[Any]) -> None:
        """Put the values in place of what was written, and refuse what there is no file for."""
        xs[:] = parse([str(x).strip() for x in xs], p)
        if not xs:
            raise UserError(f"{label}: no values are given; choose some, or press 📒")
        axes = getattr(p, _AXES_ON_REQUEST, None) or {}
        axes = {**axes, label: list(xs)}
        setattr(p, _AXES_ON_REQUEST, axes)
        _check_files(p, axes)

    return confirm


def _parse_networks(items: list[str], p: Any) -> list[str | None]:
    return [None if _is_without(name) else name for name in items if name]


def _parse_blocks(items: list[str], p: Any) -> list[BlockWeights | None]:
    """Presets and lists of numbers, which stand in quotation marks where they are typed, with None between them."""
    presets, architecture = settings.block_presets(), get_host().checkpoint().architecture
    found = [None if _is_without(item) else parse_block_weights(item, presets) for item in items if item]
    for weights in found:
        if weights is not None:
            weights.numbers(architecture)
    return found


def _is_without(item: str) -> bool:
    return item.lower() == WITHOUT.lower()


def _parse_epochs(items: list[str], p: Any) -> list[Epoch | None]:
    """Epochs with None for a column without a network; empty or "all" is every epoch of the prompt's network."""
    found: list[Epoch | None] = []
    for item in [item for item in items if item] or ["all"]:
        if _is_without(item):
            found.append(None)
            continue
        found += parse_epochs(item, EPOCH) or _every_epoch(p)
    return found


def _every_epoch(p: Any) -> list[Epoch]:
    base = base_tag(p)
    if base is None or NETWORK in _chosen_labels(p):
        raise UserError(f"{EPOCH}: every epoch of which network? Write epochs like 1-5, last, or one tag in the prompt")
    files = get_host().library.epochs_of(base.network)
    epochs: list[Epoch] = [epoch for epoch, _ in files[:-1] if epoch is not None]
    return [*epochs, "last"]


def _parse_weights(items: list[str], p: Any) -> list[float | None]:
    text = ",".join(items)
    found: list[float | None] = []
    for value in parse_values(text, "weights"):
        if isinstance(value, str) and not _is_without(value):
            raise UserError(f"weights = {text!r}: {value!r} is no number; allowed are 0.8, 0.4-1.2 (+0.2), and None")
        found.append(None if isinstance(value, str) else float(value))
    return found


def _check_files(p: Any, axes: dict[str, list[Any]]) -> None:
    """Raise UserError where a combination of the axes confirmed so far has no file."""
    chosen = _chosen_labels(p)
    if NETWORK in chosen and NETWORK not in axes:
        return  # its confirm comes later, and knows of this axis
    base = base_tag(p)
    names = axes.get(NETWORK) or [None if base is None else base.network]
    if NETWORK not in axes and base is None:
        raise UserError(
            f"{' and '.join(axes)}: of which network? Write one tag in the prompt, like <lora:name:1>, or add the axis "
            f"{NETWORK}"
        )
    library = get_host().library
    default = base.epoch if base is not None and NETWORK not in axes else None
    for name in (name for name in names if name is not None):
        for epoch in axes.get(EPOCH, [default]):
            network_file(NetworkChoice(name, epoch, used=EPOCH not in axes or epoch is not None), library)


def _chosen_labels(p: Any) -> set[str]:
    """The labels of the axes that the X/Y/Z plot was started with."""
    runner = getattr(p, "scripts", None)
    script = runner.script("X/Y/Z plot") if runner is not None else None
    if script is None or not p.script_args:
        return set()
    arguments = p.script_args[script.args_from : script.args_to]
    return {script.current_axis_options[index or 0].label for index in (arguments[0], arguments[3], arguments[6])}


def base_tag(p: Any) -> BaseTag | None:
    """The first network in the prompt: with its epoch where its name is that of a run's epoch, or the tag says it."""
    presets = settings.block_presets()
    tags = [tag for prompt in _prompts(p.prompt) for tag in parse_tags(prompt, presets).tags]
    return _base_of(tags[0]) if tags else None


def _base_of(tag: LoraTag) -> BaseTag:
    stem = _EPOCH_SUFFIX.sub("", tag.name)
    if tag.epoch is not None:
        return BaseTag(stem, tag.epoch, tag)
    for epoch, path in get_host().library.epochs_of(stem) if stem != tag.name else ():
        if path.stem == tag.name:
            return BaseTag(stem, epoch, tag)
    return BaseTag(tag.name, None, tag)


def _apply_to(label: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, x: Any, xs: Any) -> None:
        """Write the cell's tag into the copied request, in place of the one that stands there."""
        cell = getattr(p, _CELL, None)
        if cell is None:
            cell = _new_cell(p)
            setattr(p, _CELL, cell)
        cell.picked[label] = x
        if cell.has_network_axis and NETWORK not in cell.picked:
            return  # that axis comes later, and writes the tag with this value in it
        tag = cell.tag(get_host().library)
        p.prompt = _rewritten(p.prompt, cell.own_names, tag)
        if getattr(p, "hr_prompt", None):
            p.hr_prompt = _rewritten(p.hr_prompt, cell.own_names, tag)

    return apply


def _new_cell(p: Any) -> Cell:
    axes = getattr(p, _AXES_ON_REQUEST, None) or {}
    names = [name for name in axes.get(NETWORK, ()) if name is not None]
    base = base_tag(p)
    replaced = [base.network] if base is not None and (not names or base.network in names) else []
    own = set(_all_names([*names, *replaced]))
    if base is not None and not replaced:
        base = None  # a network beside the one that the axes are about
    return Cell(base, own, bool(axes.get(NETWORK)))


def _all_names(names: Sequence[str]) -> Iterator[str]:
    """Every name under which these networks may stand in a prompt."""
    library = get_host().library
    for name in names:
        yield name
        yield from (path.stem for _, path in library.epochs_of(name))


def _rewritten(prompt: Any, own_names: set[str], tag: str | None) -> Any:
    if isinstance(prompt, list):
        return [prompt_with(each, own_names, tag) for each in prompt]
    return prompt_with(prompt, own_names, tag)


def _prompts(prompt: Any) -> list[str]:
    return list(prompt) if isinstance(prompt, list) else [prompt or ""]


def _label(p: Any, option: Any, value: Any) -> str:
    """What stands beside the row or column."""
    if value is None:
        return "no LoRA"
    if option.label == EPOCH:
        return _last_label(p) if value == "last" else f"epoch {value}"
    if option.label == BLOCKS:
        return f"blocks {value.text}"
    short = option.label.removeprefix("[LoRA] ")
    return str(value) if option.label == NETWORK else f"{short}: {format_number(value)}"


def _last_label(p: Any) -> str:
    base = base_tag(p)
    files = get_host().library.epochs_of(base.network) if base is not None else []
    number = files[-1][0] if files and NETWORK not in _chosen_labels(p) else None
    return "last epoch" if number is None else f"epoch {number} (last)"
