"""Loading an SD1 checkpoint of any size into our networks, with a report of what did not match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.host.standalone.architecture import CHECKPOINT_PREFIXES, clip_config, unet_config, vae_config
from lora_ext.host.standalone.checkpoint_yaml import CheckpointYaml, read_checkpoint_yaml
from lora_ext.host.standalone.file_hashes import cached_sha256
from lora_ext.host.standalone.file_kinds import refuse_other_kinds
from lora_ext.host.standalone.tensor_files import TensorFile, open_tensor_file
from lora_ext.host.standalone.unet import UNet
from lora_ext.host.standalone.vae import VAE
from lora_ext.protocols import UserError
from lora_ext.training.precision import has_bf16

SCHEDULE_BUFFERS = re.compile(
    r"betas|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?|logvar|lvlb_weights"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
)
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


def choose_device(device: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first CUDA device where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown; allowed: auto, cpu, cuda, cuda:0, …") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: torch finds no CUDA device here; use cpu or auto.")
    return chosen


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
    return ending or name.startswith("model_ema.") or SCHEDULE_BUFFERS.fullmatch(name) is not None


def _current_name(stored: str) -> str:
    """The name of a tensor in today's files: older ones lack `text_model.` in the text encoder's."""
    prefix = CHECKPOINT_PREFIXES.text
    if stored.startswith(prefix) and not stored.startswith(prefix + "text_model."):
        rest = stored.removeprefix(prefix)
        if rest.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            return f"{prefix}text_model.{rest}"
    return stored


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    ordered = list(names)
    shown = ", ".join(ordered[:NAMES_SHOWN])
    more = len(ordered) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


@dataclass(frozen=True)
class _Plan:
    """Which stored tensor goes where: by part, name in the module → name in the file."""

    sources: dict[str, dict[str, str]]
    shapes: dict[str, dict[str, tuple[int, ...]]]
    unexpected: tuple[str, ...]
    optional: frozenset[str]
    notes: tuple[str, ...]


def _sort_names(file: TensorFile) -> _Plan:
    prefixes = {"unet": CHECKPOINT_PREFIXES.unet, "vae": CHECKPOINT_PREFIXES.vae, "text": CHECKPOINT_PREFIXES.text}
    sources: dict[str, dict[str, str]] = {part: {} for part in prefixes}
    unexpected, optional, renamed = [], [], 0
    for stored in file.shapes:
        name = _current_name(stored)
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
    return _Plan(sources, shapes, tuple(unexpected), frozenset(optional), tuple(notes))


def _text_module(shapes: dict[str, tuple[int, ...]], described: CheckpointYaml) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**clip_config(shapes, described)))


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
    prefix = getattr(CHECKPOINT_PREFIXES, part)
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
    """Load an SD1 checkpoint; whatever is wrong with the file raises `UserError` that says what it seems to be.

    U-Net and text encoder are in `dtype`. The VAE is in fp32 always: it runs once an image, and half precision
    gives it banding (bf16) or NaN (fp16). `hash_cache` is a file where the sha256 of large files are remembered.
    """
    file = open_tensor_file(path)
    refuse_other_kinds(path, file.shapes)
    plan = _sort_names(file)
    absent = [part for part, names in plan.sources.items() if not names]
    if absent:
        words = {"unet": "U-Net", "vae": "VAE", "text": "text encoder"}
        raise UserError(f"{path}: has no {' and no '.join(words[part] for part in absent)}: choose a full checkpoint.")
    yaml_path = path.with_suffix(".yaml")
    described = read_checkpoint_yaml(yaml_path) if yaml_path.is_file() else CheckpointYaml()
    modules: dict[str, nn.Module] = {
        "unet": _make(lambda: UNet(unet_config(plan.shapes["unet"], described))),
        "vae": _make(lambda: VAE(vae_config(plan.shapes["vae"]))),
        "text": _make(lambda: _text_module(plan.shapes["text"], described)),
    }
    missing: list[str] = []
    unexpected = list(plan.unexpected)
    for part, module in modules.items():
        part_missing, part_unexpected = _check_names(path, module, part, plan)
        missing += part_missing
        unexpected += part_unexpected
    lacking = [name for name in missing if not _is_optional(name)]
    if lacking:
        raise UserError(f"{path}: is not complete: {len(lacking)} tensors are missing: {_some(lacking)}.")
    for part, module in modules.items():
        _fill(module, plan.sources[part], file, device, torch.float32 if part == "vae" else dtype)
    checkpoint = Checkpoint(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoders=[HFClipTextEncoder(modules["text"])],
        schedule=NoiseSchedule.scaled_linear(described.linear_start, described.linear_end, described.timesteps),
        architecture="SD1",
        prediction_type=described.prediction_type,
        name=path.stem,
        path=path,
        sha256=cached_sha256(path, hash_cache),
        latent_scale=described.scale_factor,
    )
    notes = [*described.notes, *plan.notes]
    if unexpected:
        notes.append(f"{len(unexpected)} tensors are not known and were left out: {_some(unexpected)}")
    return LoadedCheckpoint(checkpoint, tuple(missing), tuple(unexpected), tuple(notes))
