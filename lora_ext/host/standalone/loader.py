"""Loading an SD1, SD2 or SDXL checkpoint of any size into our networks, with a report of what did not match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint, PredictionType, TextEncoder
from lora_ext.checkpoint.file_kinds import architecture_of, refuse_other_kinds
from lora_ext.checkpoint.inpainting import INPAINTING_CHANNELS
from lora_ext.checkpoint.layouts import LAYOUTS, PART_WORDS, Layout, Shapes, current_name
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.checkpoint.stated_prediction import VELOCITY_MARK
from lora_ext.checkpoint.tensor_files import TensorFile, open_tensor_file
from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.checkpoint.text.openclip import SD2_TEXT, OpenClipText, OpenClipTextEncoder
from lora_ext.checkpoint.text_part import TextPart
from lora_ext.host.standalone.architecture import (
    clip_config,
    openclip_config,
    unet_config,
    vae_config,
)
from lora_ext.host.standalone.checkpoint_yaml import CheckpointYaml, read_checkpoint_yaml
from lora_ext.host.standalone.file_hashes import cached_sha256
from lora_ext.host.standalone.unet import UNet
from lora_ext.host.standalone.vae import VAE
from lora_ext.merge.memory import check_memory
from lora_ext.protocols import UserError
from lora_ext.training.precision import has_bf16

SCHEDULE_BUFFERS = re.compile(
    r"betas|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?|logvar|lvlb_weights"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
)
ZERO_SNR_MARK = "ztsnr"
"""A tensor that some SDXL checkpoints carry to say that they predict from pure noise."""

OPTIONAL = ("denoiser.sigmas", VELOCITY_MARK, ZERO_SNR_MARK)
NAMES_SHOWN = 5
DTYPE_NAMES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint ready for use, with the names of the tensors that did not match.

    `missing` ones can be made anew; `unexpected` ones are known neither to the model nor as optional.
    """

    checkpoint: Checkpoint
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]


def choose_dtype(device: torch.device, dtype: str = "auto") -> torch.dtype:
    """The dtype of that name; "auto" is fp32 on a CPU, and on a GPU bf16 where it has that, else fp16."""
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if has_bf16(device) else torch.float16
    if dtype not in DTYPE_NAMES:
        raise UserError(f"dtype {dtype!r} is unknown; allowed: auto, {', '.join(DTYPE_NAMES)}.")
    return DTYPE_NAMES[dtype]


def _is_optional(name: str) -> bool:
    """Whether a tensor belongs to a checkpoint but is nothing that we load."""
    ending = name.endswith(("position_ids", "logit_scale"))
    return ending or name in OPTIONAL or name.startswith("model_ema.") or SCHEDULE_BUFFERS.fullmatch(name) is not None


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    ordered = list(names)
    shown = ", ".join(ordered[:NAMES_SHOWN])
    more = len(ordered) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


@dataclass(frozen=True)
class _Plan:
    """Which stored tensor goes where: by part, name in the module → name in the file."""

    prefixes: dict[str, str]
    sources: dict[str, dict[str, str]]
    shapes: dict[str, dict[str, tuple[int, ...]]]
    unexpected: tuple[str, ...]
    optional: frozenset[str]
    notes: tuple[str, ...]


def _sort_names(file: TensorFile, layout: Layout) -> _Plan:
    prefixes = layout.parts
    sources: dict[str, dict[str, str]] = {part: {} for part in prefixes}
    unexpected, optional, renamed = [], [], 0
    for stored in file.shapes:
        name = current_name(stored, layout)
        renamed += name != stored
        part = next((part for part, prefix in prefixes.items() if name.startswith(prefix)), None)
        if _is_optional(name):
            optional.append(name)
        elif part is None:
            unexpected.append(stored)
        else:
            sources[part][name.removeprefix(prefixes[part])] = stored
    notes = []
    if optional:
        notes.append(f"{len(optional)} tensors are not needed and were left out ({_some(optional)})")
    if renamed:
        notes.append(f"{renamed} tensors of the text encoder have names of the old style and were renamed")
    shapes = {part: {name: file.shapes[stored] for name, stored in names.items()} for part, names in sources.items()}
    return _Plan(prefixes, sources, shapes, tuple(unexpected), frozenset(optional), tuple(notes))


def _modules(plan: _Plan, described: CheckpointYaml, parts: Iterable[str]) -> dict[str, nn.Module]:
    """Parts as modules without storage."""
    shapes = plan.shapes
    builders: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: UNet(unet_config(shapes["unet"], described)),
        "vae": lambda: VAE(vae_config(shapes["vae"])),
        "clip": lambda: _clip_module(shapes["clip"], described),
        "openclip": lambda: OpenClipText(openclip_config(shapes["openclip"], described)),
    }
    return {part: _make(builders[part]) for part in parts}


def _clip_module(shapes: dict[str, tuple[int, ...]], described: CheckpointYaml) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**clip_config(shapes, described)))


def _text_encoders(modules: dict[str, nn.Module], architecture: Architecture) -> list[TextEncoder]:
    """The text encoders in the order in which their states stand side by side."""
    if architecture == "SD1":
        return [HFClipTextEncoder(modules["clip"])]
    openclip = modules["openclip"]
    assert isinstance(openclip, OpenClipText)
    if architecture == "SDXL":
        first = HFClipTextEncoder(modules["clip"], "lora_te1", penultimate=True)
        return [first, OpenClipTextEncoder(openclip, "lora_te2", pools=True)]
    whole = (openclip.config.width, openclip.config.layers) != (SD2_TEXT.width, SD2_TEXT.layers - 1)
    return [OpenClipTextEncoder(openclip, penultimate=whole)]


Module = TypeVar("Module", bound=nn.Module)


def _make(build: Callable[[], Module]) -> Module:
    """A module without storage, for evaluation, whose parameters take no gradients."""
    with torch.device("meta"):
        module = build()
    return module.eval().requires_grad_(False)


def _check_names(path: Path, module: nn.Module, part: str, plan: _Plan) -> tuple[list[str], list[str]]:
    """(missing, unexpected) names of one part in full; shapes that differ raise `UserError`."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = plan.shapes[part]
    prefix = plan.prefixes[part]
    wrong = [
        f"{prefix}{name} is {given[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    if wrong:
        raise UserError(f"{path}: {len(wrong)} tensors have shapes that do not fit the model: {_some(wrong)}.")
    missing = [prefix + name for name in wanted if name not in given and prefix + name not in plan.optional]
    unexpected = [plan.sources[part][name] for name in given if name not in wanted]
    return missing, unexpected


@torch.no_grad()
def _fill(
    module: nn.Module, sources: dict[str, str], file: TensorFile, device: torch.device, dtype: torch.dtype
) -> None:
    """Put the file's tensors into `module` as its parameters, converted one at a time."""
    wanted = set(module.state_dict())
    names = {stored: name for name, stored in sources.items() if name in wanted}
    state: dict[str, Tensor] = {}
    for stored, tensor in file.read(set(names)):
        state[names[stored]] = tensor.to(device=device, dtype=dtype)
    module.load_state_dict(state, strict=False, assign=True)
    module.requires_grad_(False)  # torch before 2.2 makes assigned parameters take gradients
    for owner in module.modules():
        position_ids = owner._buffers.get("position_ids")
        if position_ids is not None:
            owner._buffers["position_ids"] = torch.arange(position_ids.shape[-1], device=device)[None]


def load_checkpoint(
    path: Path, device: torch.device, dtype: torch.dtype, hash_cache: Path | None = None
) -> LoadedCheckpoint:
    """Load an SD1, SD2 or SDXL checkpoint; a file that is none raises `UserError`, which says what it seems to be.

    U-Net and text encoders are in `dtype`. The VAE is in fp32 always: it runs once an image, and half precision
    gives it banding (bf16) or NaN (fp16). `hash_cache` is a file where the sha256 of large files are remembered.
    """
    file, architecture, plan = _opened(path)
    _refuse_without(path, plan, plan.prefixes)
    yaml = _yaml_of(path)
    described = yaml or CheckpointYaml()
    modules = _modules(plan, described, plan.prefixes)
    missing, unexpected = _check_all_names(path, modules, plan)
    for part, module in modules.items():
        _fill(module, plan.sources[part], file, device, torch.float32 if part == "vae" else dtype)
    unet: Any = modules["unet"]
    kind, reason = (described.prediction_type, "") if yaml else _found_prediction(file.shapes, unet, architecture)
    schedule = NoiseSchedule.scaled_linear(described.linear_start, described.linear_end, described.timesteps)
    checkpoint = Checkpoint(
        unet=unet,
        vae=modules["vae"],
        text_encoders=_text_encoders(modules, architecture),
        schedule=schedule.with_zero_terminal_snr() if ZERO_SNR_MARK in file.shapes else schedule,
        architecture=architecture,
        prediction_type=kind,
        name=path.stem,
        path=path,
        sha256=cached_sha256(path, hash_cache),
        latent_scale=LAYOUTS[architecture].latent_scale if described.scale_factor is None else described.scale_factor,
        input_channels=unet.config.in_channels,
    )
    notes = [*described.notes, *([reason] if reason else []), *plan.notes]
    if unexpected:
        notes.append(f"{len(unexpected)} tensors are not known and were left out: {_some(unexpected)}")
    return LoadedCheckpoint(checkpoint, tuple(missing), tuple(unexpected), tuple(notes))


def load_text_encoders(path: Path, device: torch.device) -> TextPart:
    """The text encoders of a checkpoint's file alone, in fp32; raises UserError as `load_checkpoint` does.

    Also where there is no memory for them.
    """
    file, architecture, plan = _opened(path)
    parts = [part for part in plan.prefixes if part in ("clip", "openclip")]
    _refuse_without(path, plan, parts)
    numbers = sum(prod(shape) for part in parts for shape in plan.shapes[part].values())
    check_memory(4 * numbers, f"loading the text encoders of {path.name}", device)
    modules = _modules(plan, _yaml_of(path) or CheckpointYaml(), parts)
    _check_all_names(path, modules, plan)
    for part, module in modules.items():
        _fill(module, plan.sources[part], file, device, torch.float32)
    return TextPart(path.stem, architecture, _text_encoders(modules, architecture), path.stem)


def _opened(path: Path) -> tuple[TensorFile, Architecture, _Plan]:
    file = open_tensor_file(path)
    refuse_other_kinds(path, file.shapes)
    architecture = architecture_of(file.shapes)
    return file, architecture, _sort_names(file, LAYOUTS[architecture])


def _refuse_without(path: Path, plan: _Plan, parts: Iterable[str]) -> None:
    absent = [PART_WORDS[part] for part in parts if not plan.sources[part]]
    if absent:
        raise UserError(f"{path}: has no {' and no '.join(absent)}: choose a full checkpoint.")


def _yaml_of(path: Path) -> CheckpointYaml | None:
    yaml = path.with_suffix(".yaml")
    return read_checkpoint_yaml(yaml) if yaml.is_file() else None


def _check_all_names(path: Path, modules: dict[str, nn.Module], plan: _Plan) -> tuple[list[str], list[str]]:
    """(missing, unexpected) names in full; UserError where the checkpoint cannot do without one."""
    missing: list[str] = []
    unexpected = list(plan.unexpected)
    for part, module in modules.items():
        part_missing, part_unexpected = _check_names(path, module, part, plan)
        missing += part_missing
        unexpected += part_unexpected
    if "clip" in modules and "openclip" in modules and "text_projection" not in plan.sources["openclip"]:
        missing.append(f"{plan.prefixes['openclip']}text_projection")
    lacking = [name for name in missing if not _is_optional(name)]
    if lacking:
        raise UserError(f"{path}: is not complete: {len(lacking)} tensors are missing: {_some(lacking)}.")
    return missing, unexpected


@torch.no_grad()
def _found_prediction(shapes: Shapes, unet: Any, architecture: Architecture) -> tuple[PredictionType, str]:
    """What a checkpoint without a YAML predicts, and how that was found.

    SDXL files may carry a mark. SD2's are alike, but inpainting ones predict the noise; as in the WebUI, what the
    U-Net makes of a constant at the last timestep tells: a velocity there is the latents' opposite, the noise is not.
    """
    if VELOCITY_MARK in shapes:
        return "v_prediction", f"the file is marked ({VELOCITY_MARK}) as one that predicts the velocity"
    if architecture != "SD2" or unet.config.in_channels == INPAINTING_CHANNELS:
        return "epsilon", ""
    weight = next(unet.parameters())
    latents = torch.full((1, unet.config.in_channels, 8, 8), 0.5).to(weight)
    context = torch.full((1, 2, unet.config.context_dim), 0.5).to(weight)
    predicted = unet(latents, torch.tensor([999], device=weight.device), context)
    if float((predicted - latents).float().mean()) < -1:
        return "v_prediction", "the U-Net was tried and predicts the velocity; a YAML beside the file would decide"
    return "epsilon", "the U-Net was tried and predicts the noise; a YAML beside the file would decide"
