"""Small checkpoints of random weights, of every kind of base, in the form in which the WebUI loads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from lora_ext.checkpoint.text.bpe import vocabulary
from lora_ext.demo.webui_export import write_text_encoder_folder
from lora_ext.host.standalone.random_checkpoint import random_values
from lora_ext.host.standalone.unet import UNet, UNetConfig
from lora_ext.host.standalone.vae import VAE, VAEConfig

ARCHITECTURE = "lora-workshop-tiny"
"""Name of the small OpenCLIP in open_clip's registry; the probe extension registers it."""
OPENCLIP = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
CLIP_L = {
    "vocab_size": 49408, "hidden_size": 64, "projection_dim": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 1, "max_position_embeddings": 77,
}  # fmt: skip
TINY_VAE = VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
SIZE_VECTOR = 6 * 256  # of SDXL: original size, crop, target size


@dataclass(frozen=True)
class Base:
    """A kind of base: its U-Net, and where the parts stand in the file."""

    unet: UNetConfig
    prediction_type: str = "epsilon"

    @property
    def is_sdxl(self) -> bool:
        """Whether it has two text encoders and is built by sgm."""
        return self.unet.adm_in_channels is not None


_SD2 = UNetConfig(
    model_channels=64, channel_mult=(1, 1, 2, 2), num_head_channels=64, context_dim=64, use_linear_in_transformer=True
)
_SDXL = UNetConfig(
    model_channels=64, channel_mult=(1, 1, 2), transformer_depth=(0, 1, 2), transformer_depth_middle=2,
    num_head_channels=64, context_dim=128, use_linear_in_transformer=True, adm_in_channels=64 + SIZE_VECTOR,
)  # fmt: skip
BASES = {"sd2": Base(_SD2), "sd2-v": Base(_SD2, "v_prediction"), "sdxl": Base(_SDXL)}


def write_base(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> list[Path]:
    """Write `lw-base-<kind>` into the WebUI's folder of checkpoints; returns the files, the YAML last."""
    base = BASES[kind]
    path = folder / f"lw-base-{kind}.safetensors"
    generator = torch.Generator().manual_seed(20 + list(BASES).index(kind))
    tensors = {key: random_values(key, shape, generator).to(dtype) for key, shape in _shapes(base)}
    save_file(tensors, str(path))
    text_folder = folder / "lw-base-text-encoder"
    if base.is_sdxl:
        write_text_encoder_folder(text_folder, CLIP_L)
    tree = _sdxl_tree(base, text_folder) if base.is_sdxl else _sd2_tree(base)
    path.with_suffix(".yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return [path, path.with_suffix(".yaml")]


def _shapes(base: Base) -> Iterator[tuple[str, torch.Size]]:
    """Name and shape of every tensor in the file."""
    with torch.device("meta"):
        parts: list[tuple[str, nn.Module]] = [
            ("model.diffusion_model.", UNet(base.unet)),
            ("first_stage_model.", VAE(TINY_VAE)),
        ]
        if base.is_sdxl:
            from transformers import CLIPTextConfig, CLIPTextModel

            parts.append(("conditioner.embedders.0.transformer.", CLIPTextModel(CLIPTextConfig(**CLIP_L))))
    for prefix, module in parts:
        yield from ((prefix + key, parameter.shape) for key, parameter in module.named_parameters())
    prefix = "conditioner.embedders.1.model." if base.is_sdxl else "cond_stage_model.model."
    yield from ((prefix + key, torch.Size(shape)) for key, shape in _openclip_shapes())


def _openclip_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of open_clip's text tower."""
    width = OPENCLIP["width"]
    yield "token_embedding.weight", (len(vocabulary()), width)
    yield "positional_embedding", (OPENCLIP["context_length"], width)
    for layer in range(OPENCLIP["layers"]):
        block = f"transformer.resblocks.{layer}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        for name, rows, columns in (
            ("attn.out_proj", width, width), ("mlp.c_fc", 4 * width, width), ("mlp.c_proj", width, 4 * width),
        ):  # fmt: skip
            yield f"{block}.{name}.weight", (rows, columns)
            yield f"{block}.{name}.bias", (rows,)
        for norm in ("ln_1", "ln_2"):
            yield f"{block}.{norm}.weight", (width,)
            yield f"{block}.{norm}.bias", (width,)
    yield "ln_final.weight", (width,)
    yield "ln_final.bias", (width,)
    yield "text_projection", (width, width)
    yield "logit_scale", ()


def _unet_params(unet: UNetConfig) -> dict[str, Any]:
    levels = range(len(unet.channel_mult))
    return {
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": unet.model_channels,
        "attention_resolutions": [2**level for level in levels if unet.transformer_depth[level]],
        "num_res_blocks": unet.num_res_blocks,
        "channel_mult": list(unet.channel_mult),
        "num_head_channels": unet.num_head_channels,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "context_dim": unet.context_dim,
        "use_checkpoint": True,
        "legacy": False,
    }


def _first_stage(target: str) -> dict[str, Any]:
    sizes = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": TINY_VAE.ch,
        "ch_mult": list(TINY_VAE.ch_mult), "num_res_blocks": TINY_VAE.num_res_blocks, "attn_resolutions": [],
        "dropout": 0.0,
    }  # fmt: skip
    loss = {"target": "torch.nn.Identity"}
    return {"target": target, "params": {"embed_dim": 4, "monitor": "x", "ddconfig": sizes, "lossconfig": loss}}


def _sd2_tree(base: Base) -> dict[str, Any]:
    """As the WebUI's v2-inference.yaml, and v2-inference-v.yaml."""
    params = {
        "parameterization": "v" if base.prediction_type == "v_prediction" else "eps",
        "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "first_stage_key": "jpg",
        "cond_stage_key": "txt", "image_size": 64, "channels": 4, "cond_stage_trainable": False,
        "conditioning_key": "crossattn", "scale_factor": 0.18215, "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {**_unet_params(base.unet), "image_size": 32, "transformer_depth": 1},
        },
        "first_stage_config": _first_stage("ldm.models.autoencoder.AutoencoderKL"),
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"arch": ARCHITECTURE, "freeze": True, "layer": "penultimate"},
        },
    }  # fmt: skip
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _sdxl_tree(base: Base, text_folder: Path) -> dict[str, Any]:
    """As the WebUI's sd_xl_base.yaml."""
    sgm, encoders = "sgm.modules.diffusionmodules", "sgm.modules.encoders.modules"
    denoiser = {
        "target": f"{sgm}.denoiser.DiscreteDenoiser",
        "params": {
            "num_idx": 1000,
            "weighting_config": {"target": f"{sgm}.denoiser_weighting.EpsWeighting"},
            "scaling_config": {"target": f"{sgm}.denoiser_scaling.EpsScaling"},
            "discretization_config": {"target": f"{sgm}.discretizer.LegacyDDPMDiscretization"},
        },
    }
    first = {"version": text_folder.as_posix(), "layer": "hidden", "layer_idx": CLIP_L["num_hidden_layers"] - 1}
    second = {
        "arch": ARCHITECTURE, "freeze": True, "layer": "penultimate", "always_return_pooled": True, "legacy": False,
    }  # fmt: skip
    texts = (("FrozenCLIPEmbedder", first), ("FrozenOpenCLIPEmbedder2", second))
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    embedders = [
        *({"input_key": "txt", "target": f"{encoders}.{name}", "params": params} for name, params in texts),
        *(
            {"input_key": key, "target": f"{encoders}.ConcatTimestepEmbedderND", "params": {"outdim": 256}}
            for key in sizes
        ),
    ]
    network = {
        **_unet_params(base.unet),
        "adm_in_channels": base.unet.adm_in_channels,
        "num_classes": "sequential",
        "transformer_depth": [max(1, depth) for depth in base.unet.transformer_depth],
        "spatial_transformer_attn_type": "softmax-xformers",
    }
    params = {
        "scale_factor": 0.13025,
        "disable_first_stage_autocast": True,
        "denoiser_config": denoiser,
        "network_config": {"target": f"{sgm}.openaimodel.UNetModel", "params": network},
        "conditioner_config": {
            "target": "sgm.modules.GeneralConditioner",
            "params": {"emb_models": [{"is_trainable": False, **each} for each in embedders]},
        },
        "first_stage_config": _first_stage("sgm.models.autoencoder.AutoencoderKLInferenceWrapper"),
    }
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}}
