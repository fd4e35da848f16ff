"""The sizes of a checkpoint's networks, read from its tensors' shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lora_ext.checkpoint.layouts import Shapes
from lora_ext.checkpoint.text.openclip import OpenClipConfig
from lora_ext.host.standalone.checkpoint_yaml import CheckpointYaml
from lora_ext.host.standalone.unet import UNetConfig
from lora_ext.host.standalone.vae import VAEConfig
from lora_ext.protocols import UserError

OPENCLIP_HEAD_CHANNELS = 64
SD1_HEADS = 8


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group."""
    matches = (re.match(pattern, key) for key in shapes)
    return len({match.group(1) for match in matches if match})


def _width(shapes: Shapes, key: str, axis: int) -> int:
    if key not in shapes:
        raise UserError(f"the checkpoint has no {key}, which decides the model's size: it is not complete.")
    return int(shapes[key][axis])


@dataclass
class _Level:
    """One resolution of the U-Net on the way down."""

    out_channels: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)


def _unet_levels(shapes: Shapes) -> list[_Level]:
    levels = [_Level()]
    for index in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{index}"
        if f"{block}.0.op.weight" in shapes:
            levels.append(_Level())
            continue
        levels[-1].out_channels.append(_width(shapes, f"{block}.0.in_layers.2.weight", 0))
        levels[-1].depths.append(_count(shapes, rf"{re.escape(block)}\.1\.transformer_blocks\.(\d+)\."))
    return levels


def unet_config(shapes: Shapes, described: CheckpointYaml) -> UNetConfig:
    """The U-Net's sizes from its tensors; heads from `described`, else as SD1 or SD2/SDXL have them."""
    model_channels = _width(shapes, "input_blocks.0.0.weight", 0)
    levels = _unet_levels(shapes)
    for number, level in enumerate(levels):
        if len(level.out_channels) != len(levels[0].out_channels) or len(set(level.out_channels)) != 1:
            raise UserError(f"level {number} of the U-Net is built unlike the first: not a layout known here.")
        if len(set(level.depths)) != 1:
            raise UserError(f"level {number} of the U-Net has attention in some blocks only: not a layout known here.")
    context_keys = [key for key in shapes if key.endswith("attn2.to_k.weight")]
    if not context_keys:
        raise UserError("the U-Net has no attention to text (attn2): it is not a text-to-image model.")
    use_linear = any(key.endswith(".1.proj_in.weight") and len(shape) == 2 for key, shape in shapes.items())
    heads, head_channels = described.num_heads, described.num_head_channels
    if heads is None and head_channels is None:
        heads, head_channels = (None, OPENCLIP_HEAD_CHANNELS) if use_linear else (SD1_HEADS, None)
    config = UNetConfig(
        in_channels=_width(shapes, "input_blocks.0.0.weight", 1),
        out_channels=_width(shapes, "out.2.weight", 0),
        model_channels=model_channels,
        num_res_blocks=len(levels[0].out_channels),
        channel_mult=tuple(level.out_channels[0] // model_channels for level in levels),
        transformer_depth=tuple(level.depths[0] for level in levels),
        transformer_depth_middle=_count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        num_heads=heads,
        num_head_channels=head_channels,
        context_dim=int(shapes[context_keys[0]][1]),
        use_linear_in_transformer=use_linear,
        adm_in_channels=int(shapes["label_emb.0.0.weight"][1]) if "label_emb.0.0.weight" in shapes else None,
    )
    divisor = heads or head_channels or 1
    odd = [level.out_channels[0] for level in levels if level.out_channels[0] % divisor]
    if odd:
        raise UserError(
            f"the U-Net is {odd[0]} channels wide, which {divisor} (heads, or channels of a head) does not divide. "
            "Put the YAML that belongs to the checkpoint beside it, with the same name."
        )
    return config


def vae_config(shapes: Shapes) -> VAEConfig:
    """The autoencoder's sizes from its tensors."""
    ch = _width(shapes, "encoder.conv_in.weight", 0)
    levels = _count(shapes, r"decoder\.up\.(\d+)\.")
    return VAEConfig(
        ch=ch,
        ch_mult=tuple(_width(shapes, f"decoder.up.{i}.block.0.conv1.weight", 0) // ch for i in range(levels)),
        num_res_blocks=_count(shapes, r"decoder\.up\.0\.block\.(\d+)\.") - 1,  # the encoder may have none
        z_channels=_width(shapes, "decoder.conv_in.weight", 1),
        embed_dim=_width(shapes, "post_quant_conv.weight", 1),
        in_channels=_width(shapes, "encoder.conv_in.weight", 1),
        out_ch=_width(shapes, "decoder.conv_out.weight", 0),
    )


def clip_config(shapes: Shapes, described: CheckpointYaml) -> dict[str, int]:
    """Arguments of transformers' `CLIPTextConfig`; heads from `described`, else of 64 channels as CLIP-L has them."""
    hidden = _width(shapes, "text_model.embeddings.token_embedding.weight", 1)
    heads = described.text_heads or max(1, hidden // 64)
    if hidden % heads:
        raise UserError(f"the text encoder is {hidden} wide, which {heads} attention heads do not divide.")
    return {
        "vocab_size": _width(shapes, "text_model.embeddings.token_embedding.weight", 0),
        "hidden_size": hidden,
        "projection_dim": hidden,
        "intermediate_size": _width(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": _count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": heads,
        "max_position_embeddings": _width(shapes, "text_model.embeddings.position_embedding.weight", 0),
    }


def openclip_config(shapes: Shapes, described: CheckpointYaml) -> OpenClipConfig:
    """Sizes of OpenCLIP's text tower; heads from `described`, else of 64 channels."""
    width = _width(shapes, "token_embedding.weight", 1)
    heads = described.openclip_heads or max(1, width // OPENCLIP_HEAD_CHANNELS)
    if width % heads:
        raise UserError(f"the OpenCLIP text encoder is {width} wide, which {heads} attention heads do not divide.")
    return OpenClipConfig(
        width=width,
        layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
        heads=heads,
        vocabulary=_width(shapes, "token_embedding.weight", 0),
        context_length=_width(shapes, "positional_embedding", 0),
        mlp_width=_width(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 0),
        projection=int(shapes["text_projection"][1]) if "text_projection" in shapes else None,
    )
