"""The borrowed U-Net: the same numbers as before through SDPA, gradients, and every instance as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lora_ext.host.webui.plain_unet import plain_unet

if TYPE_CHECKING:
    from lora_ext.host.standalone.host import StandaloneHost


@pytest.fixture
def unet(tiny_host: StandaloneHost) -> Iterator[nn.Module]:
    yield tiny_host.loaded.checkpoint.unet


def inputs(width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([3, 700]),
        torch.randn(2, 77, width, generator=generator),
    )


def own_forwards(unet: nn.Module) -> dict[str, Any]:
    return {name: module.__dict__["forward"] for name, module in unet.named_modules() if "forward" in module.__dict__}


def attentions(unet: nn.Module) -> list[Any]:
    return [module for module in unet.modules() if hasattr(module, "to_q") and hasattr(module, "heads")]


def norms(unet: nn.Module) -> list[nn.Module]:
    return [module for module in unet.modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)]


class WideGroupNorm(nn.GroupNorm):
    """As ldm's `GroupNorm32`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


def test_the_numbers_are_the_same_and_the_instances_come_back(unet: Any) -> None:
    found = attentions(unet)
    assert found
    found[0].forward = lambda x, context=None: type(found[0]).forward(found[0], x, context)  # an extension's wrapper
    found[1].checkpoint = True
    width = found[1].to_k.in_features
    with torch.no_grad():
        expected = unet(*inputs(width))
    before, hooks = own_forwards(unet), len(unet.time_embed._forward_pre_hooks)
    tiling = SimpleNamespace(enabled=True)
    vae = nn.Sequential(nn.Identity())
    setattr(vae[0], "__webui_hypertile_params", tiling)
    with plain_unet(unet, vae):
        assert not tiling.enabled and found[1].checkpoint is False
        assert len(own_forwards(unet)) == len(found) + len(norms(unet)) + 1
        with torch.no_grad():
            assert torch.allclose(unet(*inputs(width)), expected, atol=1e-5)
    assert own_forwards(unet) == before and len(unet.time_embed._forward_pre_hooks) == hooks
    assert tiling.enabled and found[1].checkpoint is True


def test_gradients_flow_through_frozen_attention(unet: Any) -> None:
    unet.requires_grad_(False)
    x, timesteps, context = inputs(attentions(unet)[1].to_k.in_features)
    with plain_unet(unet, nn.Identity()):
        context.requires_grad_(True)
        unet(x, timesteps, context).square().mean().backward()
    assert context.grad is not None and context.grad.abs().sum() > 0


def test_everything_comes_back_after_an_exception(unet: Any) -> None:
    with pytest.raises(RuntimeError, match="in training"), plain_unet(unet, nn.Identity()):
        raise RuntimeError("in training")
    assert own_forwards(unet) == {}


def test_weights_in_bf16_compute_under_autocast(unet: Any) -> None:
    x, timesteps, context = inputs(attentions(unet)[1].to_k.in_features)
    with torch.no_grad():
        expected = unet(x, timesteps, context)
        unet.bfloat16()
        for norm in norms(unet):
            if isinstance(norm, nn.GroupNorm):
                norm.__class__ = WideGroupNorm
        with plain_unet(unet, nn.Identity()):
            given = unet(x.bfloat16(), timesteps, context.bfloat16()).float()
    assert (given - expected).abs().mean() < 0.05 * expected.abs().mean()
