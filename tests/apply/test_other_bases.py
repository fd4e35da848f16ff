"""SD2, SDXL and inpainting checkpoints: fused attention, two text encoders, nine channels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.tags import LoraTag
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.checkpoint.weight_views import WeightView
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.host.standalone.random_checkpoint import TINY_KINDS, write_random_kind
from lora_ext.networks.file import write_network
from lora_ext.networks.library import NetworkLibrary

KINDS = ("sd2", "sdxl", "sd1-inpainting")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    checkpoints = {}
    for kind in KINDS:
        path = tmp_path_factory.mktemp("checkpoints") / f"{kind}.safetensors"
        write_random_kind(path, TINY_KINDS[kind])
        checkpoints[kind] = load_checkpoint(path, torch.device("cpu"), torch.float32).checkpoint
    return checkpoints


def lora(view: WeightView, generator: torch.Generator, channels: int | None = None) -> tuple[Tensor, Tensor]:
    """Up and down of rank 2; of a convolution's first channels alone where that is given."""
    out, columns, *kernel = view.shape
    up = torch.randn(out, 2, *[1] * len(kernel), generator=generator) * 0.1
    return up, torch.randn(2, channels or columns, *kernel, generator=generator) * 0.1


def product(up: Tensor, down: Tensor) -> Tensor:
    return (up.flatten(1).double() @ down.flatten(1).double()).reshape(len(up), *down.shape[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_changed_by_its_own_network_and_restored(
    loaded: dict[str, Checkpoint], kind: str, tmp_path: Path
) -> None:
    """U-Net at 0.5, text encoders at 2; q, k and v of fused attention each by their own factors."""
    checkpoint = copy.deepcopy(loaded[kind])
    views = {key: view for key, view in checkpoint_weights(checkpoint).items() if len(view.shape) > 1}
    generator = torch.Generator().manual_seed(0)
    factors = {key: lora(view, generator) for key, view in views.items()}
    tensors = {
        f"{key}.lora_{suffix}.weight": tensor
        for key, pair in factors.items()
        for suffix, tensor in zip(("up", "down"), pair, strict=True)
    }
    write_network(tmp_path / "all.safetensors", tensors, {}, "float")
    before = {key: view.detach().clone() for key, view in views.items()}
    active = ActiveNetworks(checkpoint, checkpoint.ledger, NetworkLibrary([tmp_path]))
    assert active.activate([LoraTag("all", 2.0, 0.5)]) == []
    for key, view in views.items():
        strength = 2.0 if key.startswith("lora_te") else 0.5
        exact = before[key].double() + strength * product(*factors[key]).reshape(view.shape)
        torch.testing.assert_close(view.detach().double(), exact, rtol=1e-6, atol=1e-7)
    active.deactivate()
    assert all(torch.equal(view.detach(), before[key]) for key, view in views.items())


def test_the_text_encoders_of_sdxl_have_keys_of_their_own(loaded: dict[str, Checkpoint]) -> None:
    prefixes = {key.split("_text_model")[0] for key in checkpoint_weights(loaded["sdxl"]) if key.startswith("lora_te")}
    assert prefixes == {"lora_te1", "lora_te2"}


def test_fused_attention_computes_with_the_network(loaded: dict[str, Checkpoint], tmp_path: Path) -> None:
    """A network of q and out alone changes what SD2's text encoder says, and nothing of k and v's weights."""
    checkpoint = copy.deepcopy(loaded["sd2"])
    encoder = checkpoint.text_encoders[0]
    views = checkpoint_weights(checkpoint)
    ids = torch.randint(1, 400, (1, 1, 77), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    tensors: dict[str, Tensor] = {}
    for name in ("q", "out"):
        key = f"lora_te_text_model_encoder_layers_0_self_attn_{name}_proj"
        up, down = lora(views[key], generator)
        tensors |= {f"{key}.lora_up.weight": up * 10, f"{key}.lora_down.weight": down * 10}
    write_network(tmp_path / "q.safetensors", tensors, {}, "float")
    fused = views["lora_te_text_model_encoder_layers_0_self_attn_k_proj"].parameter
    base, rows = fused.detach().clone(), fused.shape[0] // 3
    with torch.no_grad():
        said = encoder.encode(ids)
        active = ActiveNetworks(checkpoint, checkpoint.ledger, NetworkLibrary([tmp_path]))
        assert active.activate([LoraTag("q")]) == []
        assert (encoder.encode(ids) - said).abs().max() > 1e-3
        assert not torch.equal(fused[:rows], base[:rows])
        assert torch.equal(fused[rows:], base[rows:])
        active.deactivate()
        assert torch.equal(encoder.encode(ids), said)


def test_a_network_of_four_channels_in_an_inpainting_checkpoint(loaded: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Mask and masked picture are taken in as before."""
    checkpoint = copy.deepcopy(loaded["sd1-inpainting"])
    view = checkpoint_weights(checkpoint)["lora_unet_conv_in"]
    base = view.detach().clone()
    assert base.shape[1] == 9
    up, down = lora(view, torch.Generator().manual_seed(0), channels=4)
    tensors = {"lora_unet_conv_in.lora_up.weight": up, "lora_unet_conv_in.lora_down.weight": down}
    write_network(tmp_path / "first.safetensors", tensors, {}, "float")
    active = ActiveNetworks(checkpoint, checkpoint.ledger, NetworkLibrary([tmp_path]))
    assert active.activate([LoraTag("first")]) == []
    torch.testing.assert_close(view.detach()[:, :4].double(), base[:, :4].double() + product(up, down))
    assert torch.equal(view.detach()[:, 4:], base[:, 4:])
