from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.groups import NetworkSettings
from lora_ext.networks.network import Network
from lora_ext.networks.targets import find_targets
from lora_ext.training.checkpointing import checkpointed_blocks, gradient_checkpointing
from lora_ext.training.freezing import frozen
from lora_ext.training.noise import generator_for


def gradients(checkpoint: Checkpoint, network: Network) -> list[Tensor]:
    encoder = checkpoint.text_encoders[0]
    ids = encoder.tokenize(["a cat", "a dog"], 75)
    latents = torch.randn(2, 4, 8, 8, generator=generator_for(0, "latents"))
    prediction = checkpoint.unet(latents, torch.tensor([10, 900]), encoder.encode(ids, 1))
    network.zero_grad()
    prediction.square().mean().backward()
    found = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def test_gradients_are_identical_and_nothing_is_left_behind(checkpoint: Checkpoint) -> None:
    with frozen(checkpoint):
        network = Network(find_targets(checkpoint, NetworkSettings(network_dim=4)), generator_for(1, "network"))
        for name, parameter in network.named_parameters():
            if "lora_up" in name:
                with torch.no_grad():
                    parameter.normal_(std=0.1, generator=generator_for(2, name))
        blocks = checkpointed_blocks(checkpoint, with_text_encoders=True)
        assert len(blocks) == 12 + 1 + 12 + 2
        with network.attached():
            plain = gradients(checkpoint, network)
            calls = []
            handle = checkpoint.unet.middle_block[0].register_forward_hook(lambda *_: calls.append(1))
            with gradient_checkpointing(blocks):
                saving = gradients(checkpoint, network)
            handle.remove()
            assert len(calls) == 2  # once forward, once again for the backward pass
            assert all("forward" not in block.__dict__ for block in blocks)
    assert all(torch.equal(one, other) for one, other in zip(plain, saving, strict=True))


def test_an_override_that_was_there_comes_back(checkpoint: Checkpoint) -> None:
    block = checkpoint.unet.middle_block
    original = block.forward
    block.__dict__["forward"] = original
    try:
        with pytest.raises(ValueError, match="x"), gradient_checkpointing([block]):
            assert block.__dict__["forward"] is not original
            raise ValueError("x")
        assert block.__dict__["forward"] is original
    finally:
        del block.__dict__["forward"]
