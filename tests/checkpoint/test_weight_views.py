"""Keys as parts of parameters: whole weights, thirds of fused attention, biases beside them."""

from __future__ import annotations

import torch
from torch import nn

from lora_ext.checkpoint.weight_views import weight_view


def test_a_module_is_its_weight_and_bias() -> None:
    root = nn.Module()
    root.block = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(4, 6, 3, bias=False))
    linear, convolution = weight_view(root, "block.0"), weight_view(root, "block.1")
    assert linear.parameter is root.block[0].weight
    assert linear.bias is not None
    assert linear.bias.parameter is root.block[0].bias
    assert (tuple(linear.shape), tuple(linear.bias.shape)) == ((2, 3), (2,))
    assert convolution.bias is None
    assert convolution.of(torch.ones(6, 4, 3, 3)).shape == (6, 4, 3, 3)


def test_fused_attention_is_three_layers_and_the_projection_after_it() -> None:
    root = nn.Module()
    root.attn = nn.MultiheadAttention(4, 2)
    views = {name: weight_view(root, f"attn.{name}_proj") for name in ("q", "k", "v", "out")}
    with torch.no_grad():
        root.attn.in_proj_weight.copy_(torch.arange(48.0).reshape(12, 4))
        root.attn.in_proj_bias.copy_(torch.arange(12.0))
    assert [views[name].detach()[0, 0].item() for name in "qkv"] == [0, 16, 32]
    assert all(views[name].shape == (4, 4) and views[name].parameter is root.attn.in_proj_weight for name in "qkv")
    biases = [views[name].bias for name in "qkv"]
    assert [bias.detach().tolist() for bias in biases if bias is not None] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    views["k"].detach().zero_()
    assert root.attn.in_proj_weight[4:8].abs().sum() == 0
    assert root.attn.in_proj_weight[8, 0] == 32
    assert views["out"].parameter is root.attn.out_proj.weight


def test_the_first_channels() -> None:
    root = nn.Module()
    root.conv_in = nn.Conv2d(9, 2, 3)
    view = weight_view(root, "conv_in").first_channels(4)
    assert view.shape == (2, 4, 3, 3)
    view.detach().zero_()
    assert root.conv_in.weight[:, 4:].ne(0).any()
    assert not root.conv_in.weight[:, :4].any()
