"""Weights of an autoencoder from a file of its own, or from a checkpoint that holds one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open  # type: ignore[attr-defined]
from torch import Tensor

from lora_ext.checkpoint.pickled import read_pickled_content, tensors_by_name
from lora_ext.protocols import UserError

_PREFIX = "first_stage_model."
_FIRST_LAYER = "encoder.conv_in.weight"
_DIFFUSERS_LAYER = "encoder.down_blocks.0.resnets.0.conv1.weight"
_PICKLED = (".pt", ".pth", ".ckpt", ".bin")


def read_vae_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a VAE in ldm's layout by their names in the module, on the CPU.

    Reads a VAE alone and a whole checkpoint; UserError where the file is neither, or holds more than weights.
    """
    try:
        there = path.is_file()
    except OSError as error:  # no right to look, or a name that no file system takes
        raise UserError(f"vae = {path}: cannot be read ({error.strerror or error})") from error
    if not there:
        raise UserError(f"vae = {path}: there is no such file; give a VAE's .safetensors, .pt or .ckpt, or nothing")
    suffix = path.suffix.lower()
    if suffix != ".safetensors" and suffix not in _PICKLED:
        raise UserError(f"vae = {path}: allowed are files ending in .safetensors, {', '.join(_PICKLED)}")
    try:
        tensors = _read_safetensors(path) if suffix == ".safetensors" else _read_pickled(path)
    except OSError as error:
        raise UserError(f"vae = {path}: cannot be read ({error.strerror or error})") from error
    if _FIRST_LAYER not in tensors:
        kind = "is a VAE in diffusers' layout: give one" if _DIFFUSERS_LAYER in tensors else "holds no VAE: give a file"
        raise UserError(f"vae = {path}: {kind} with names such as {_FIRST_LAYER}")
    return tensors


def _of_the_vae(names: Iterable[str]) -> list[str]:
    """The names of a checkpoint's VAE, or all of them where the file is a VAE alone."""
    every = list(names)
    return [name for name in every if name.startswith(_PREFIX)] or every


def _module_name(stored: str) -> str:
    return stored.removeprefix(_PREFIX)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            return {_module_name(name): file.get_tensor(name) for name in _of_the_vae(file.keys())}
    except SafetensorError as error:
        raise UserError(f"vae = {path}: is no whole safetensors file ({error}): copy or download it again") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        tensors = tensors_by_name(read_pickled_content(path)) or {}
    except UserError as error:
        raise UserError(f"vae = {error}") from error
    return {_module_name(name): tensors[name] for name in _of_the_vae(tensors)}
