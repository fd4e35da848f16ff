"""Pictures to latents by the checkpoint's VAE, in fp32, with the weights of another VAE where one is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.vae_file import read_vae_file
from lora_ext.checkpoint.weights_hash import weights_hash
from lora_ext.config.given_path import given_path
from lora_ext.protocols import UserError

_DECODING = ("decoder.", "post_quant_conv.", "loss.")


@dataclass(frozen=True)
class Posterior:
    """What the VAE makes of pictures: mean and log-variance, each (batch, 4, h/8, w/8), fp32 on the CPU, unscaled."""

    mean: Tensor
    logvar: Tensor

    def of(self, place: int) -> Posterior:
        """That of one picture of the batch, in memory of its own."""
        return Posterior(self.mean[place : place + 1].clone(), self.logvar[place : place + 1].clone())

    def draw(self, generators: list[torch.Generator]) -> Tensor:
        """One draw for each picture, (batch, 4, h/8, w/8), from its own CPU generator."""
        noise = torch.stack([torch.randn(self.mean.shape[1:], generator=each) for each in generators])
        return self.mean + torch.exp(0.5 * self.logvar) * noise


def vae_file(setting: str) -> Path | None:
    """The file that the setting `vae` names, None where it is empty."""
    return given_path(setting) if setting.strip() else None


class PictureEncoder:
    """Encodes in fp32, because half precision gives NaN (fp16) or banding (bf16).

    The checkpoint's VAE has these weights during a call alone, then its own again, in the memory that they were in.
    """

    def __init__(self, checkpoint: Checkpoint, vae_file: Path | None = None) -> None:
        """UserError where `vae_file` holds no VAE of the same build."""
        self._checkpoint = checkpoint
        self._file = vae_file
        self._weights = read_vae_file(vae_file) if vae_file else {}
        self._replacements: list[tuple[Tensor, Tensor]] | None = None
        if vae_file:
            _check_build(vae_file, self._weights, checkpoint.vae)

    @property
    def latent_scale(self) -> float:
        """The factor between the VAE's latents and the U-Net's."""
        return self._checkpoint.latent_scale

    def use(self, checkpoint: Checkpoint) -> None:
        """Encode with another instance of the same checkpoint from now on."""
        self._checkpoint = checkpoint
        self.release()

    def release(self) -> None:
        """Free what is kept between calls; the next one makes it anew."""
        self._replacements = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Posterior:
        """The posterior of images (batch, 3, h, w) in −1…1."""
        with self._encoding_weights():
            mean, logvar = self._checkpoint.encode_images(images)
        return Posterior(mean.float().cpu(), logvar.float().cpu())

    def weights_hash(self) -> str:
        """A digest of the weights that encode; the same for the same VAE wherever it was loaded from."""
        with self._encoding_weights():
            return weights_hash(_encoding_tensors(self._checkpoint.vae))

    @contextmanager
    def _encoding_weights(self) -> Iterator[None]:
        if self._replacements is None:
            self._replacements = self._made_replacements()
        originals = [(tensor, tensor.data) for tensor, _ in self._replacements]
        try:
            for tensor, replacement in self._replacements:
                tensor.data = replacement
            yield
        finally:
            for tensor, original in originals:
                tensor.data = original

    def _made_replacements(self) -> list[tuple[Tensor, Tensor]]:
        """The VAE's tensors that are not what encodes, each with what does."""
        made = []
        for name, tensor in _encoding_tensors(self._checkpoint.vae).items():
            if name in self._weights:
                made.append((tensor, self._weights[name].to(tensor.device, torch.float32)))
            elif tensor.is_floating_point() and tensor.dtype != torch.float32:
                made.append((tensor, tensor.data.to(torch.float32)))
        return made


def _encoding_tensors(vae: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without those that only decode."""
    tensors: dict[str, Tensor] = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    return {name: tensor for name, tensor in sorted(tensors.items()) if not name.startswith(_DECODING)}


def _check_build(path: Path, weights: Mapping[str, Tensor], vae: nn.Module) -> None:
    """Raise UserError where the file does not fit the checkpoint's VAE."""
    wanted = _encoding_tensors(vae)
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise UserError(f"vae = {path}: lacks {len(missing)} tensors, {missing[0]} among them: choose a whole VAE file")
    for name, tensor in wanted.items():
        if tensor.shape != weights[name].shape:
            raise UserError(
                f"vae = {path}: {name} has the shape {tuple(weights[name].shape)}, the checkpoint's VAE "
                f"{tuple(tensor.shape)}: choose a VAE of the same kind"
            )
