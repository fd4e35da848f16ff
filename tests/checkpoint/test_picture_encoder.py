"""The VAE in fp32, its own or another's weights, and always its own again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.picture_encoder import PictureEncoder
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.host.standalone.random_checkpoint import fill_randomly
from lora_ext.host.standalone.vae import VAE, VAEConfig
from lora_ext.protocols import UserError

CONFIG = VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 24).reshape(2, 3, 16, 24)


def vae_of(seed: int) -> VAE:
    vae = VAE(CONFIG).requires_grad_(False)
    fill_randomly(vae, seed)
    return vae


def checkpoint_of(vae: VAE) -> Checkpoint:
    return Checkpoint(
        unet=torch.nn.Linear(1, 1), vae=vae, text_encoders=[], schedule=NoiseSchedule.scaled_linear(),
        architecture="SD1", prediction_type="epsilon", name="stand-in", path=None, sha256="",
    )  # fmt: skip


def weights(vae: VAE) -> list[tuple[int, torch.dtype, bytes]]:
    return [(each.data_ptr(), each.dtype, each.float().numpy().tobytes()) for each in vae.parameters()]


def bare(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def prefixed(state: dict[str, Tensor], path: Path) -> Path:
    others = {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    save_file(
        {f"first_stage_model.{key}": value for key, value in state.items()} | others, path.with_suffix(".safetensors")
    )
    return path.with_suffix(".safetensors")


def pickled(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": {**state, "loss.logvar": torch.zeros(1)}}, path.with_suffix(".ckpt"))
    return path.with_suffix(".ckpt")


def encoding_only(state: dict[str, Tensor], path: Path) -> Path:
    kept = {key: value for key, value in state.items() if key.startswith(("encoder.", "quant_conv."))}
    torch.save(kept, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def test_half_precision_encodes_in_fp32_and_is_half_again() -> None:
    half, full = vae_of(3).half(), vae_of(3).half().float()
    before = weights(half)
    posterior = PictureEncoder(checkpoint_of(half))(IMAGES)
    assert weights(half) == before
    expected = full.encode(IMAGES)
    assert posterior.mean.equal(expected.mean) and posterior.logvar.equal(expected.logvar)
    assert posterior.mean.dtype == torch.float32 and posterior.mean.shape == (2, 4, 2, 3)


@pytest.mark.parametrize("write", [bare, prefixed, pickled, encoding_only])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_vae_encodes_and_the_own_one_stays(
    write: Callable[[dict[str, Tensor], Path], Path], dtype: torch.dtype, tmp_path: Path
) -> None:
    own, other = vae_of(3).to(dtype), vae_of(4)
    before = weights(own)
    encoder = PictureEncoder(checkpoint_of(own), write(other.state_dict(), tmp_path / "vae"))
    for _ in range(2):
        assert encoder(IMAGES).mean.equal(other.encode(IMAGES).mean)
        assert weights(own) == before
    assert encoder.weights_hash() == PictureEncoder(checkpoint_of(other)).weights_hash()
    assert encoder.weights_hash() != PictureEncoder(checkpoint_of(own)).weights_hash()
    assert weights(own) == before


def test_the_own_weights_come_back_after_an_error(tmp_path: Path) -> None:
    own = vae_of(3).half()
    before = weights(own)
    encoder = PictureEncoder(checkpoint_of(own), bare(vae_of(4).state_dict(), tmp_path / "vae"))
    with pytest.raises(RuntimeError):
        encoder(torch.zeros(1, 5, 16, 16))
    assert weights(own) == before


def test_it_goes_on_with_another_instance(tmp_path: Path) -> None:
    first, second = vae_of(3).half(), vae_of(3).half()
    encoder = PictureEncoder(checkpoint_of(first))
    expected = encoder(IMAGES).mean
    encoder.use(checkpoint_of(second))
    first.encoder.conv_in.weight.zero_()
    assert encoder(IMAGES).mean.equal(expected)


def test_each_picture_has_a_draw_of_its_own() -> None:
    posterior = PictureEncoder(checkpoint_of(vae_of(3)))(IMAGES)
    seeded = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    drawn = posterior.draw(seeded)
    alone = posterior.of(1).draw([torch.Generator().manual_seed(6)])
    assert drawn[1].equal(alone[0])
    noise = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(5))
    assert drawn[0].equal(posterior.mean[0] + torch.exp(0.5 * posterior.logvar[0]) * noise)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    checkpoint, state = checkpoint_of(vae_of(3)), vae_of(4).state_dict()
    lacking = {key: value for key, value in state.items() if key != "quant_conv.bias"}
    wrong = {**state, "quant_conv.bias": torch.zeros(3)}
    (tmp_path / "text.ckpt").write_text("no tensors", encoding="utf-8")
    (tmp_path / "cut.safetensors").write_bytes(bare(state, tmp_path / "whole").read_bytes()[:1000])
    (tmp_path / "a.png").touch()
    for path, message in (
        (tmp_path / "none.safetensors", "there is no such file"),
        (tmp_path / f"{'x' * 300}.safetensors", "cannot be read|there is no such file"),
        (tmp_path / "a.png", "allowed are files ending in .safetensors, .pt"),
        (tmp_path / "text.ckpt", "is not opened|is no VAE"),
        (tmp_path / "cut.safetensors", "is no whole safetensors file"),
        (bare({"lora_up.weight": torch.zeros(1)}, tmp_path / "lora"), "holds no VAE"),
        (
            bare({"encoder.down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, tmp_path / "diffusers"),
            "is a VAE in diffusers' layout",
        ),
        (bare(lacking, tmp_path / "lacking"), "lacks 1 tensors, quant_conv.bias among them"),
        (bare(wrong, tmp_path / "wrong"), r"quant_conv.bias has the shape \(3,\), the checkpoint's VAE \(8,\)"),
    ):
        with pytest.raises(UserError, match=message):
            PictureEncoder(checkpoint, path)
