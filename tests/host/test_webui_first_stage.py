"""SDXL's VAE in the WebUI gives the posterior of pictures, under the names that its weights have."""

from __future__ import annotations

import torch

from lora_ext.host.standalone.random_checkpoint import TINY_VAE, fill_randomly
from lora_ext.host.standalone.vae import VAE
from lora_ext.host.webui.first_stage import FirstStage


class Sampling(VAE):
    """Draws at once, as sgm's wrapper does."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().encode(x).sample()


def test_it_gives_mean_and_variance_and_decodes() -> None:
    vae = Sampling(TINY_VAE)
    fill_randomly(vae, seed=1)
    view = FirstStage(vae)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
    before = torch.get_rng_state()
    with torch.no_grad():
        found, expected = view.encode(images), VAE.encode(vae, images)
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.logvar, expected.logvar)
        assert torch.equal(view.decode(found.mean), vae.decode(found.mean))
    assert torch.equal(torch.get_rng_state(), before)


def test_its_weights_are_the_checkpoints_own() -> None:
    vae = Sampling(TINY_VAE)
    own = dict(vae.named_parameters())
    assert {name: id(value) for name, value in FirstStage(vae).named_parameters()} == {
        name: id(value) for name, value in own.items()
    }
