"""The same weights in our classes (ldm layout) and in diffusers' classes, converted by diffusers itself.

Imported by tests as a plain module (tests/conftest.py puts this folder on the path).
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from lora_ext.checkpoint.layouts import UNET_PREFIX, VAE_PREFIX
from lora_ext.host.standalone.unet import UNetConfig
from lora_ext.host.standalone.vae import VAEConfig


def diffusers_unet(state: dict[str, Tensor], config: UNetConfig) -> UNet2DConditionModel:
    """diffusers' U-Net with the weights of an ldm U-Net's state dict (keys without prefix), which it shares."""
    widths = tuple(mult * config.model_channels for mult in config.channel_mult)
    with torch.device("meta"):
        model = UNet2DConditionModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.transformer_depth
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(config.transformer_depth)
            ),
            block_out_channels=widths,
            layers_per_block=config.num_res_blocks,
            cross_attention_dim=config.context_dim,
            attention_head_dim=tuple(config.heads(width) for width in widths),  # the number of heads, by its old name
            transformer_layers_per_block=tuple(max(depth, 1) for depth in config.transformer_depth),
            use_linear_projection=config.use_linear_in_transformer,
            **_class_embedding(config),
        )
    prefixed = {UNET_PREFIX + key: tensor for key, tensor in state.items()}
    model.load_state_dict(convert_ldm_unet_checkpoint(prefixed, model.config), strict=True, assign=True)
    return model.eval()


def _class_embedding(config: UNetConfig) -> dict[str, object]:
    """How diffusers is told of a vector that goes in beside the timestep (`y`)."""
    if config.adm_in_channels is None:
        return {}
    return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": config.adm_in_channels}


def diffusers_vae(state: dict[str, Tensor], config: VAEConfig) -> AutoencoderKL:
    """diffusers' autoencoder with the weights of an ldm autoencoder's state dict (keys without prefix), shared."""
    levels = len(config.ch_mult)
    with torch.device("meta"):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(config.ch * mult for mult in config.ch_mult),
            layers_per_block=config.num_res_blocks,
            latent_channels=config.z_channels,
        )
    prefixed = {VAE_PREFIX + key: tensor for key, tensor in state.items()}
    model.load_state_dict(convert_ldm_vae_checkpoint(prefixed, model.config), strict=True, assign=True)
    return model.eval()
