from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.groups import NetworkSettings
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.dataset.dataset import Batch
from lora_ext.dataset.folders import DatasetScan, Subset, Terms
from lora_ext.networks.network import Network
from lora_ext.networks.targets import find_targets
from lora_ext.training.conditioning import TextConditioning
from lora_ext.training.diffusion import DiffusionLoss
from lora_ext.training.freezing import frozen
from lora_ext.training.noise import SeededNoise, generator_for
from lora_ext.training.prior import PriorPrediction, prior_prediction
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


def batch(is_reg: list[bool]) -> Batch:
    latents = torch.randn(len(is_reg), 4, 8, 8, generator=torch.Generator().manual_seed(1))
    captions = [f"picture {number}" for number in range(len(is_reg))]
    return Batch(latents, captions, torch.ones(len(is_reg)), [(64, 64)] * len(is_reg), is_reg=is_reg)


def trained_network(checkpoint: Checkpoint) -> Network:
    """A network that changes what is predicted."""
    network = Network(find_targets(checkpoint, NetworkSettings(network_dim=4)), generator_for(0, "network"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator_for(1, str(tuple(parameter.shape)))) / 8)
    return network


def diffusion_loss(checkpoint: Checkpoint) -> DiffusionLoss:
    config = make_config({"min_snr_gamma": None})
    return DiffusionLoss(checkpoint, config, TextConditioning(checkpoint.text_encoders, config.captions).encode)


def test_the_base_is_as_it_was_where_the_network_is_disabled(checkpoint: Checkpoint) -> None:
    loss, network = diffusion_loss(checkpoint), trained_network(checkpoint)
    noisy, timesteps = torch.ones(2, 4, 8, 8), torch.tensor([3, 700])
    with frozen(checkpoint), torch.no_grad():
        base = loss.predict(noisy, timesteps, ["a", "b"])
        with network.attached():
            changed = loss.predict(noisy, timesteps, ["a", "b"])
            with network.disabled():
                assert torch.equal(loss.predict(noisy, timesteps, ["a", "b"]), base)
            assert torch.equal(loss.predict(noisy, timesteps, ["a", "b"]), changed) and not torch.equal(changed, base)


def test_regularisation_pictures_are_held_to_the_base(checkpoint: Checkpoint) -> None:
    loss, network = diffusion_loss(checkpoint), trained_network(checkpoint)
    pictures = batch([False, True])
    draw = SeededNoise(0, 1000)(pictures.latents, 0, 0)
    with frozen(checkpoint), network.attached():
        plain = loss.losses(pictures, draw)
        held = loss.losses(pictures, draw, PriorPrediction(network, 0.5))
        noisy = loss.schedule.add_noise(pictures.latents, draw.noise, draw.timesteps)
        own = loss.predict(noisy, draw.timesteps, pictures.captions)
        with network.disabled():
            base = loss.predict(noisy, draw.timesteps, pictures.captions)
    assert held[0].item() == plain[0].item()
    assert held[1].item() == pytest.approx(0.5 * (own - base)[1].square().mean().item(), rel=1e-4)


def test_without_regularisation_pictures_the_class_is_held(checkpoint: Checkpoint) -> None:
    loss, network = diffusion_loss(checkpoint), trained_network(checkpoint)
    pictures = batch([False, False])
    draw = SeededNoise(0, 1000)(pictures.latents, 0, 0)
    with frozen(checkpoint), network.attached():
        plain = loss.losses(pictures, draw)
        held = loss.losses(pictures, draw, PriorPrediction(network, 2.0, "a cat"))
        noisy = loss.schedule.add_noise(pictures.latents, draw.noise, draw.timesteps)
        own = loss.predict(noisy, draw.timesteps, ["a cat"] * 2)
        with network.disabled():
            base = loss.predict(noisy, draw.timesteps, ["a cat"] * 2)
    term = 2.0 * (own - base).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(held, plain + term, rtol=1e-4, atol=1e-7)


def test_a_new_network_has_nothing_to_be_held_back_from(checkpoint: Checkpoint) -> None:
    network = Network(find_targets(checkpoint, NetworkSettings(network_dim=4)), generator_for(0, "network"))
    pictures = batch([True, True])
    draw = SeededNoise(0, 1000)(pictures.latents, 0, 0)
    with frozen(checkpoint), network.attached():
        losses = diffusion_loss(checkpoint).losses(pictures, draw, PriorPrediction(network, 1.0))
    assert losses.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("values", "has_reg", "captions"),
    [
        ({}, False, None),
        ({"prior_prediction_weight": 1}, True, []),
        ({"prior_prediction_weight": 1}, False, [""]),
        ({"prior_prediction_weight": 1, "class_prompt": " a cat "}, False, ["a cat"]),
    ],
)
def test_what_is_held(
    values: dict[str, object], has_reg: bool, captions: list[str] | None, checkpoint: Checkpoint
) -> None:
    scan = DatasetScan([Subset(Path("1_cat"), 1, ""), Subset(Path("1_reg"), 1, "", terms=Terms(is_reg=has_reg))])
    network = Network(find_targets(checkpoint, NetworkSettings(network_dim=4))[:1], generator_for(0, "network"))
    prior = prior_prediction(make_config(values), scan, network)
    assert (None if prior is None else prior.captions) == captions


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"network_train_unet_only": True, "gradient_checkpointing": True}])
def test_a_run_with_prior_prediction_changes_the_class_less(
    values: dict[str, object], checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    change = {}
    for weight in (0, 20):
        config = small_config(
            prior_prediction_weight=weight, class_prompt="a cat", max_train_epochs=1, learning_rate=0.02, **values
        )
        result = Trainer(checkpoint, config, tmp_path / str(weight)).run()
        change[weight] = changed_class(checkpoint, result.files[-1])
    assert 0 < change[20] < 0.8 * change[0]


def changed_class(checkpoint: Checkpoint, file: Path) -> float:
    """How far a trained file moves what is predicted for the class."""
    from lora_ext.networks.file import read_network

    tensors = read_network(file).tensors
    settings = NetworkSettings(network_dim=4, network_alpha=4, network_train_unet_only="lora_te" not in str(tensors))
    network = Network(find_targets(checkpoint, settings), generator_for(0, "network"))
    network.load_tensors(tensors)
    loss = diffusion_loss(checkpoint)
    noisy, timesteps = torch.randn(4, 4, 8, 8, generator=generator_for(3, "x")), torch.tensor([200, 400, 600, 800])
    with frozen(checkpoint), torch.no_grad():
        base = loss.predict(noisy, timesteps, ["a cat"] * 4)
        with network.attached():
            return (loss.predict(noisy, timesteps, ["a cat"] * 4) - base).square().mean().item()
