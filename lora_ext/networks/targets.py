"""Which modules of a checkpoint a network adapts, and how."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import text_modules, unet_module_names
from lora_ext.config.algorithms import HAS_ALPHA, HAS_RANK, KERNEL_PRESETS, is_own_preset
from lora_ext.config.groups import NetworkSettings
from lora_ext.networks.blocks import block_index, number_of_block, numbers_by_block
from lora_ext.networks.forms import PLAIN, AdapterForm, effective_alpha, only_its_own, whole_form
from lora_ext.networks.presets import Preset, Role, filter_lines, filter_pattern, find_preset, matches
from lora_ext.protocols import UserError

TargetGroup = Literal["unet", "text_encoder"]
_ENDS: dict[str, Role] = {
    "lora_unet_conv_in": "conv_in",
    "lora_unet_conv_out": "conv_out",
    "lora_unet_time_embedding_linear_1": "time_embedding",
    "lora_unet_time_embedding_linear_2": "time_embedding",
}
_SAMPLERS = ("op", "conv")


@dataclass(frozen=True)
class Target:
    """A module to adapt: its key in files, rank, alpha (never 0), learning-rate group, block of the U-Net, and how.

    Alpha is what files have: with rsLoRA √rank is in it.
    """

    key: str
    module: nn.Module
    rank: int
    alpha: float
    group: TargetGroup
    block: int | None = None
    form: AdapterForm = PLAIN

    @property
    def is_in_second_encoder(self) -> bool:
        """Whether it belongs to SDXL's second text encoder."""
        return self.key.startswith("lora_te2_")


@dataclass(frozen=True)
class Candidate:
    """A module that could be adapted: its key, what it is part of, and its group."""

    key: str
    module: nn.Module
    group: TargetGroup
    roles: frozenset[Role]

    @property
    def name(self) -> str:
        """The key without its prefix, as presets and filters mean it."""
        return self.key.split("_", 2)[2]

    @property
    def is_norm(self) -> bool:
        """Whether it is a norm layer."""
        return isinstance(self.module, nn.LayerNorm | nn.GroupNorm)

    @property
    def has_kernel(self) -> bool:
        """Whether it is a convolution of more than one pixel."""
        return isinstance(self.module, nn.Conv2d) and self.module.kernel_size != (1, 1)


@dataclass(frozen=True)
class Selection:
    """The modules that a network adapts, sorted by key, and what a person should know of the choice."""

    targets: list[Target]
    notes: list[str]
    warnings: list[str]


def find_targets(
    checkpoint: Checkpoint, settings: NetworkSettings, block_rates: Sequence[float] | None = None
) -> list[Target]:
    """The targets of `select_targets`."""
    return select_targets(checkpoint, settings, block_rates).targets


def select_targets(
    checkpoint: Checkpoint, settings: NetworkSettings, block_rates: Sequence[float] | None = None
) -> Selection:
    """The modules that the settings' preset adapts, by filters, blocks and parts; sorted by key, the order in files.

    The default is sd-scripts' LoRA set: every linear layer and 1×1 convolution in the U-Net's transformers, and the
    attention and MLP layers of the text encoders (SD1 192 + 72, SDXL 722 + 72 + 192); with a rank for 3×3 convolutions
    (LoCon) the resnets, downsamplers and upsamplers too. An alpha of 0 becomes the rank. Blocks with rank 0, or 0 among
    `block_rates`, are left out.
    """
    preset = find_preset(settings.network_preset, adapts_convolutions(settings))
    chosen = [each for each in candidates(checkpoint) if _is_chosen(each, preset, settings)]
    chosen, notes, warnings = _filtered(chosen, settings)
    made = _TargetMaker(checkpoint, settings, preset, block_rates)
    found = [target for each in chosen for target in made.target(each)]
    if not found:
        raise UserError(
            f"{checkpoint.name}: none of its modules is one that a network adapts under these settings "
            f"(network_preset = {settings.network_preset}), or all are left out by block or by name: load a Stable "
            "Diffusion checkpoint, and leave a block"
        )
    return Selection(sorted(found, key=lambda target: target.key), notes, warnings + made.warnings())


def candidates(checkpoint: Checkpoint) -> Iterator[Candidate]:
    """Every linear layer, convolution and norm layer of the U-Net that has a name in files, and the text encoders'."""
    unet = checkpoint.unet
    for key, path in unet_module_names(unet, checkpoint.architecture).items():
        module = unet.get_submodule(path)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm):
            yield Candidate(key, module, "unet", frozenset(_unet_roles(unet, key, path)))
    for encoder in checkpoint.text_encoders:
        for key, module in text_modules(encoder).items():
            if isinstance(module, nn.Linear):
                role: Role = "attention" if "_self_attn_" in key else "mlp"
                yield Candidate(key, module, "text_encoder", frozenset({role}))


def adapts_convolutions(settings: NetworkSettings) -> bool:
    """Whether the settings give the 3×3 convolutions a rank."""
    return settings.conv_dim is not None or bool(settings.conv_block_dims.strip())


def described(targets: Sequence[Target]) -> str:
    """How many modules are adapted, by part and algorithm, in a sentence."""
    parts = Counter(_part_name(target) for target in targets)
    kinds = Counter(
        f"{target.form.algorithm} rank {target.rank}" if target.form.algorithm in HAS_RANK else target.form.algorithm
        for target in targets
    )
    where = ", ".join(f"{count} in the {part}" for part, count in parts.items())
    how = ", ".join(f"{kind}: {count}" if len(kinds) > 1 else kind for kind, count in kinds.most_common(6))
    more = f" and {len(kinds) - 6} more kinds" if len(kinds) > 6 else ""
    return f"Adapts {len(targets)} modules: {where} ({how}{more})."


def _part_name(target: Target) -> str:
    if target.group == "unet":
        return "U-Net"
    number = re.match(r"lora_te(\d?)_", target.key)
    return f"text encoder {number[1]}".rstrip() if number else "text encoder"


def _unet_roles(unet: nn.Module, key: str, path: str) -> Iterator[Role]:
    """What a module of the U-Net is part of, by what its parents look like in ldm's and sgm's trees."""
    if key in _ENDS:
        yield _ENDS[key]
    *parents, last = path.split(".")
    for depth in range(1, len(parents) + 1):
        parent = unet.get_submodule(".".join(parents[:depth]))
        if hasattr(parent, "transformer_blocks"):
            yield "transformer"
        if hasattr(parent, "in_layers"):
            yield "resnet"
    if "transformer_blocks" in parents:
        yield "transformer_block"
        if not {"attn1", "attn2"}.isdisjoint(parents):
            yield "attention"
        if "ff" in parents:
            yield "feed_forward"
    if last in _SAMPLERS and len(parents) > 1:
        yield "sampler"


def _is_chosen(candidate: Candidate, preset: Preset, settings: NetworkSettings) -> bool:
    """Whether parts and preset want a module."""
    is_unet = candidate.group == "unet"
    if settings.network_train_text_encoder_only if is_unet else settings.network_train_unet_only:
        return False
    if candidate.is_norm and not settings.train_norm:
        return False
    if any(matches(pattern, candidate.name) for pattern in preset.excluded):
        return False
    names = preset.unet_names if is_unet else preset.text_names
    if any(matches(pattern, candidate.name) for pattern in names):
        return True
    wanted = preset.unet if is_unet else preset.text
    return not wanted.isdisjoint(candidate.roles) and (preset.kernels or not candidate.has_kernel)


def _filtered(chosen: list[Candidate], settings: NetworkSettings) -> tuple[list[Candidate], list[str], list[str]]:
    """The modules that the name filters leave, what each line of them has matched, and which lines nothing."""
    notes, warnings = [], []
    hits: dict[str, list[set[str]]] = {"network_include": [], "network_exclude": []}
    for setting, found in hits.items():
        for line in filter_lines(getattr(settings, setting)):
            pattern = filter_pattern(line)
            found.append({each.key for each in chosen if matches(pattern, each.name)})
            if found[-1]:
                notes.append(f"{setting}: {line} matches {len(found[-1])} modules.")
            else:
                warnings.append(f"{setting}: {line} matches none of the {len(chosen)} modules that there are.")
    wanted = set().union(*hits["network_include"]) if hits["network_include"] else {each.key for each in chosen}
    left = wanted - set().union(*hits["network_exclude"])
    return [each for each in chosen if each.key in left], notes, warnings


class _TargetMaker:
    """Gives modules their form, rank and alpha: those of their names and roles, of their block, or of all."""

    def __init__(
        self, checkpoint: Checkpoint, settings: NetworkSettings, preset: Preset, block_rates: Sequence[float] | None
    ) -> None:
        self.architecture = kind = checkpoint.architecture
        self.settings, self.preset, self.rates = settings, preset, block_rates
        self.form = whole_form(settings)
        self.dims, self.alphas, self.conv_dims, self.conv_alphas = (
            numbers_by_block(name, getattr(settings, name), kind)
            for name in ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
        )
        own = preset.kernels and (settings.network_preset.strip() in KERNEL_PRESETS or is_own_preset(settings))
        self.conv_dim = settings.conv_dim if settings.conv_dim is not None else settings.network_dim if own else 0
        fallback = settings.network_alpha if own else 1.0
        self.conv_alpha = fallback if settings.conv_alpha is None else settings.conv_alpha
        self.left_out: list[str] = []

    def target(self, candidate: Candidate) -> Iterator[Target]:
        """The target of a module; none where its block has rank 0 or a rate of 0."""
        block = block_index(candidate.key, self.architecture) if candidate.group == "unet" else None
        changes = self._changes(candidate)
        form, rank, alpha = self._made(candidate, block, changes)
        if form.algorithm == "tlora" and candidate.has_kernel:
            self.left_out.append(candidate.key)
        elif rank and number_of_block(self.rates, block, 1.0):
            yield Target(candidate.key, candidate.module, rank, alpha, candidate.group, block, form)

    def warnings(self) -> list[str]:
        """What has been left out for its algorithm's sake."""
        if not self.left_out:
            return []
        return [f"tlora cannot adapt 3×3 convolutions: {len(self.left_out)} are left out."]

    def _changes(self, candidate: Candidate) -> dict[str, Any]:
        """What the preset says of a module: of its role first, then of its name."""
        changes: dict[str, Any] = {}
        for override in self.preset.overrides:
            if override.role in candidate.roles and override.in_text == (candidate.group == "text_encoder"):
                changes |= override.changes
        for override in self.preset.overrides:
            if override.role is None and matches(override.pattern, candidate.name):
                changes |= override.changes
        return changes

    def _made(self, candidate: Candidate, block: int | None, changes: dict[str, Any]) -> tuple[AdapterForm, int, float]:
        if candidate.is_norm:
            return AdapterForm("norm"), 1, 1.0
        kept = {name: value for name, value in changes.items() if name not in ("rank", "alpha")}
        form = only_its_own(replace(self.form, **kept))
        if candidate.has_kernel:
            rank = int(number_of_block(self.conv_dims, block, self.conv_dim))
            alpha = number_of_block(self.conv_alphas, block, self.conv_alpha)
        else:
            rank = int(number_of_block(self.dims, block, self.settings.network_dim))
            alpha = number_of_block(self.alphas, block, self.settings.network_alpha)
        rank, alpha = changes.get("rank", rank), float(changes.get("alpha", alpha))
        if form.algorithm not in HAS_RANK:
            return form, min(rank, 1), 1.0
        if form.algorithm not in HAS_ALPHA:
            return form, rank, 1.0
        return form, rank, effective_alpha(alpha, rank, self.settings.rs_lora) if rank else alpha
