"""The ldm or sgm YAML beside a checkpoint: what its tensors don't tell, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.checkpoint.stated_prediction import predicts_velocity, section
from lora_ext.host.standalone.unet import UNetConfig
from lora_ext.host.standalone.vae import VAEConfig
from lora_ext.protocols import UserError


@dataclass(frozen=True)
class CheckpointYaml:
    """What a checkpoint's YAML tells that its tensors don't; None, or SD1's values, where it is silent or absent."""

    num_heads: int | None = None
    num_head_channels: int | None = None
    text_heads: int | None = None
    openclip_heads: int | None = None
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    linear_start: float = 0.00085
    linear_end: float = 0.0120
    timesteps: int = 1000
    scale_factor: float | None = None
    notes: tuple[str, ...] = field(default=())


def _own_heads(tree: Any, encoder: str) -> int | None:
    """Heads of a text encoder from our own section."""
    heads = section(tree, "lora_workshop", encoder).get("num_attention_heads")
    return heads if isinstance(heads, int) else None


def _text_heads(tree: Any, yaml_path: Path) -> int | None:
    """Heads of CLIP-L: from our own section, or from config.json in the folder that `version` names."""
    heads = _own_heads(tree, "text_encoder")
    if heads is not None:
        return heads
    version = section(tree, "model", "params", "cond_stage_config", "params").get("version")
    if not isinstance(version, str):
        return None
    config_file = yaml_path.parent / version / "config.json"
    if not config_file.is_file():
        return None
    config = json.loads(config_file.read_text(encoding="utf-8"))
    heads = config.get("num_attention_heads") or section(config, "text_config").get("num_attention_heads")
    return heads if isinstance(heads, int) else None


def read_checkpoint_yaml(path: Path) -> CheckpointYaml:
    """Read an ldm or sgm YAML (`v1-inference.yaml` and its like); a file that is not one raises `UserError`."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        text_heads = _text_heads(tree, path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as the checkpoint's YAML ({error}). Repair or remove it.") from error
    params = section(tree, "model", "params")
    if not params:
        raise UserError(f"{path}: has no model.params, so it is no Stable Diffusion YAML. Repair or remove it.")
    unet = section(params, "unet_config", "params") or section(params, "network_config", "params")
    heads, head_channels = unet.get("num_heads"), unet.get("num_head_channels")
    if isinstance(head_channels, int) and head_channels > 0:
        heads = None
    else:
        head_channels = None
    defaults, scale = CheckpointYaml(), params.get("scale_factor")
    return CheckpointYaml(
        num_heads=heads if isinstance(heads, int) and heads > 0 else None,
        num_head_channels=head_channels,
        text_heads=text_heads,
        openclip_heads=_own_heads(tree, "openclip"),
        prediction_type="v_prediction" if predicts_velocity(params) else "epsilon",
        linear_start=float(params.get("linear_start", defaults.linear_start)),
        linear_end=float(params.get("linear_end", defaults.linear_end)),
        timesteps=int(params.get("timesteps", defaults.timesteps)),
        scale_factor=None if scale is None else float(scale),
        notes=(f"heads, prediction type and schedule are those of {path.name}",),
    )


def _unet_params(unet: UNetConfig) -> dict[str, Any]:
    levels = range(len(unet.channel_mult))
    params: dict[str, Any] = {
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": unet.model_channels,
        "attention_resolutions": [2**level for level in levels if unet.transformer_depth[level]],
        "num_res_blocks": unet.num_res_blocks,
        "channel_mult": list(unet.channel_mult),
        "num_heads": unet.num_heads if unet.num_heads is not None else -1,
        "num_head_channels": unet.num_head_channels if unet.num_head_channels is not None else -1,
        "use_spatial_transformer": True,
        "transformer_depth": unet.transformer_depth_middle,
        "context_dim": unet.context_dim,
        "use_checkpoint": False,
        "legacy": False,
    }
    if unet.use_linear_in_transformer:
        params["use_linear_in_transformer"] = True
    if unet.adm_in_channels is None:
        return {**params, "image_size": 32}
    depths = [max(1, depth) for depth in unet.transformer_depth]
    return {
        **params, "transformer_depth": depths, "adm_in_channels": unet.adm_in_channels, "num_classes": "sequential",
    }  # fmt: skip


def _first_stage_params(vae: VAEConfig) -> dict[str, Any]:
    sizes = {
        "double_z": True,
        "z_channels": vae.z_channels,
        "resolution": 256,
        "in_channels": vae.in_channels,
        "out_ch": vae.out_ch,
        "ch": vae.ch,
        "ch_mult": list(vae.ch_mult),
        "num_res_blocks": vae.num_res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    loss = {"target": "torch.nn.Identity"}
    return {"embed_dim": vae.embed_dim, "monitor": "val/rec_loss", "ddconfig": sizes, "lossconfig": loss}


def _ldm_tree(
    unet: UNetConfig, vae: VAEConfig, prediction_type: str, text_encoder: Mapping[str, Any]
) -> dict[str, Any]:
    """The model's section for SD1 and SD2."""
    inpaints = unet.in_channels > unet.out_channels
    params: dict[str, Any] = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": unet.out_channels,
        "cond_stage_trainable": False,
        "conditioning_key": "hybrid" if inpaints else "crossattn",
        "scale_factor": 0.18215,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet_params(unet),
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": _first_stage_params(vae),
        },
        "cond_stage_config": text_encoder,
    }
    params |= {"finetune_keys": None} if inpaints else {"use_ema": False}
    if prediction_type == "v_prediction":
        params["parameterization"] = "v"
    name = "LatentInpaintDiffusion" if inpaints else "LatentDiffusion"
    return {"target": f"ldm.models.diffusion.ddpm.{name}", "params": params}


def _sgm_tree(unet: UNetConfig, vae: VAEConfig, prediction_type: str, text_folder: str) -> dict[str, Any]:
    """The model's section for SDXL."""
    modules, encoders = "sgm.modules.diffusionmodules", "sgm.modules.encoders.modules"
    kind = "V" if prediction_type == "v_prediction" else "Eps"
    clip = {"version": text_folder, "layer": "hidden", "layer_idx": -2}
    openclip = {
        "arch": "ViT-bigG-14",
        "version": "laion2b_s39b_b160k",
        "freeze": True,
        "layer": "penultimate",
        "always_return_pooled": True,
        "legacy": False,
    }
    embedders = [
        {"is_trainable": False, "input_key": "txt", "target": f"{encoders}.FrozenCLIPEmbedder", "params": clip},
        {
            "is_trainable": False,
            "input_key": "txt",
            "target": f"{encoders}.FrozenOpenCLIPEmbedder2",
            "params": openclip,
        },
    ]
    embedders += [
        {
            "is_trainable": False,
            "input_key": key,
            "target": f"{encoders}.ConcatTimestepEmbedderND",
            "params": {"outdim": 256},
        }
        for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    ]
    denoiser = {
        "num_idx": 1000,
        "weighting_config": {"target": f"{modules}.denoiser_weighting.EpsWeighting"},
        "scaling_config": {"target": f"{modules}.denoiser_scaling.{kind}Scaling"},
        "discretization_config": {"target": f"{modules}.discretizer.LegacyDDPMDiscretization"},
    }
    params = {
        "scale_factor": 0.13025,
        "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{modules}.denoiser.DiscreteDenoiser", "params": denoiser},
        "network_config": {"target": f"{modules}.openaimodel.UNetModel", "params": _unet_params(unet)},
        "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": embedders}},
        "first_stage_config": {
            "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            "params": _first_stage_params(vae),
        },
    }
    return {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}


def checkpoint_yaml(
    unet: UNetConfig,
    vae: VAEConfig,
    text_heads: int | None = None,
    prediction_type: str = "epsilon",
    text_folder: str = "openai/clip-vit-large-patch14",
    architecture: Architecture = "SD1",
    openclip_heads: int | None = None,
) -> str:
    """The text of a checkpoint's YAML; ours and the WebUI read it.

    `text_folder` is where the WebUI takes CLIP-L's config.json and tokenizer from. OpenCLIP's sizes are those of the
    real SD2 and SDXL there, whatever ours are.
    """
    import yaml

    encoders = "ldm.modules.encoders.modules"
    if architecture == "SDXL":
        model = _sgm_tree(unet, vae, prediction_type, text_folder)
    elif architecture == "SD2":
        openclip = {"target": f"{encoders}.FrozenOpenCLIPEmbedder", "params": {"freeze": True, "layer": "penultimate"}}
        model = _ldm_tree(unet, vae, prediction_type, openclip)
    else:
        clip = {"target": f"{encoders}.FrozenCLIPEmbedder", "params": {"version": text_folder}}
        model = _ldm_tree(unet, vae, prediction_type, clip)
    heads = {"text_encoder": text_heads, "openclip": openclip_heads}
    own = {name: {"num_attention_heads": count} for name, count in heads.items() if count is not None}
    text: str = yaml.safe_dump({"model": model, "lora_workshop": own}, sort_keys=False)
    return text
