"""A file of ours does in diffusers and peft what it does here: U-Net and text encoder, read by diffusers' loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_conversion import diffusers_unet  # tests/host
from torch import Tensor

from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.tags import LoraTag
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.config.groups import NetworkSettings
from lora_ext.networks.file import write_network
from lora_ext.networks.library import NetworkLibrary
from lora_ext.networks.network import Network
from lora_ext.networks.targets import find_targets

RANK, ALPHA = 4, 2.0


def write_trained(checkpoint: Checkpoint, path: Path) -> None:
    """A file of a network that changes the prediction well beyond the tolerance."""
    settings = NetworkSettings(network_dim=RANK, network_alpha=ALPHA)
    network = Network(find_targets(checkpoint, settings), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in network.adapters.values():
            adapter.lora_up.weight.copy_(torch.randn(adapter.lora_up.weight.shape, generator=generator) * 0.05)
    write_network(path, network.state_dict_for_file(), {"ss_output_name": "test"}, "float")


def load_into_diffusers(path: Path, unet: Any, text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The U-Net's part by diffusers' loader, which asks for a newer transformers although this part does not use it;
    the text encoder's part, for which it does, by peft itself from what diffusers' loader has read.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, lora_pipeline
    from diffusers.loaders import unet as unet_loader
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    loader: Any = StableDiffusionLoraLoaderMixin
    tensors, alphas = loader.lora_state_dict(str(path.parent), weight_name=path.name, unet_config=unet.config)
    monkeypatch.setattr(lora_pipeline, "USE_PEFT_BACKEND", True)
    monkeypatch.setattr(unet_loader, "USE_PEFT_BACKEND", True)
    loader.load_lora_into_unet(tensors, alphas, unet)

    prefix = "text_encoder."
    texts = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    texts = convert_state_dict_to_peft(convert_state_dict_to_diffusers(texts))
    scaled = {alpha for key, alpha in alphas.items() if key.startswith(prefix)}
    assert scaled == {ALPHA}
    names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names), text)
    assert set_peft_model_state_dict(text, texts).unexpected_keys == []


def test_diffusers_renders_the_same(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trained(checkpoint, tmp_path / "test.safetensors")
    encoder: Any = checkpoint.text_encoders[0]
    weights = {key: value.clone() for key, value in checkpoint.unet.state_dict().items()}
    unet: Any = diffusers_unet(weights, checkpoint.unet.config)
    text: Any = type(encoder.module)(encoder.module.config).eval()
    text.load_state_dict(encoder.module.state_dict())

    generator = torch.Generator().manual_seed(2)
    latents, timestep = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([600, 30])
    ids = torch.randint(0, 400, (2, 1, 77), generator=generator)

    def ours() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            states = encoder.encode(ids)
            return states, checkpoint.unet(latents, timestep, states)

    def theirs() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            states = text(ids[:, 0]).last_hidden_state
            return states, unet(latents, timestep, encoder_hidden_states=states).sample

    base = ours()
    for mine, other in zip(base, theirs(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)

    active = ActiveNetworks(checkpoint, PatchLedger(), NetworkLibrary([tmp_path]))
    assert active.activate([LoraTag("test", 1.0)]) == []
    load_into_diffusers(tmp_path / "test.safetensors", unet, text, monkeypatch)
    for mine, other, before in zip(ours(), theirs(), base, strict=True):
        assert (mine - before).abs().max() > 0.01
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
