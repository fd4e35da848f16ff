"""The ldm YAML beside a checkpoint: what its tensors don't tell, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_ext.host.standalone.unet import UNetConfig
from lora_ext.host.standalone.vae import VAEConfig
from lora_ext.protocols import UserError


@dataclass(frozen=True)
class CheckpointYaml:
    """What a checkpoint's YAML tells that its tensors don't; SD1's values where it is silent or absent."""

    num_heads: int | None = None
    num_head_channels: int | None = None
    text_heads: int | None = None
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    linear_start: float = 0.00085
    linear_end: float = 0.0120
    timesteps: int = 1000
    scale_factor: float = 0.18215
    notes: tuple[str, ...] = field(default=())


def _section(tree: Any, *names: str) -> Mapping[str, Any]:
    """The mapping at a path of a YAML tree; empty where there is none."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _text_heads(tree: Any, yaml_path: Path) -> int | None:
    """Heads of the text encoder: from our own section, or from config.json in the folder that `version` names."""
    heads = _section(tree, "lora_workshop", "text_encoder").get("num_attention_heads")
    if isinstance(heads, int):
        return heads
    version = _section(tree, "model", "params", "cond_stage_config", "params").get("version")
    if not isinstance(version, str):
        return None
    config_file = yaml_path.parent / version / "config.json"
    if not config_file.is_file():
        return None
    config = json.loads(config_file.read_text(encoding="utf-8"))
    heads = config.get("num_attention_heads") or _section(config, "text_config").get("num_attention_heads")
    return heads if isinstance(heads, int) else None


def read_checkpoint_yaml(path: Path) -> CheckpointYaml:
    """Read an ldm YAML (`v1-inference.yaml` and its like); a file that is not one raises `UserError`."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        text_heads = _text_heads(tree, path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as the checkpoint's YAML ({error}). Repair or remove it.") from error
    params = _section(tree, "model", "params")
    if not params:
        raise UserError(f"{path}: has no model.params, so it is no Stable Diffusion YAML. Repair or remove it.")
    unet = _section(params, "unet_config", "params")
    heads, head_channels = unet.get("num_heads"), unet.get("num_head_channels")
    if isinstance(head_channels, int) and head_channels > 0:
        heads = None
    else:
        head_channels = None
    defaults = CheckpointYaml()
    return CheckpointYaml(
        num_heads=heads if isinstance(heads, int) and heads > 0 else None,
        num_head_channels=head_channels,
        text_heads=text_heads,
        prediction_type="v_prediction" if params.get("parameterization") == "v" else "epsilon",
        linear_start=float(params.get("linear_start", defaults.linear_start)),
        linear_end=float(params.get("linear_end", defaults.linear_end)),
        timesteps=int(params.get("timesteps", defaults.timesteps)),
        scale_factor=float(params.get("scale_factor", defaults.scale_factor)),
        notes=(f"heads, prediction type and schedule are those of {path.name}",),
    )


def _unet_params(unet: UNetConfig) -> dict[str, Any]:
    levels = range(len(unet.channel_mult))
    return {
        "image_size": 32,
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


def checkpoint_yaml(
    unet: UNetConfig,
    vae: VAEConfig,
    text_heads: int,
    prediction_type: str = "epsilon",
    text_folder: str = "openai/clip-vit-large-patch14",
) -> str:
    """The text of an ldm YAML for an SD1-layout checkpoint; ours and the WebUI read it.

    `text_folder` is where the WebUI takes the text encoder's config.json and tokenizer from.
    """
    import yaml

    first_stage = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": _first_stage_params(vae)}
    text_encoder = {
        "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "params": {"version": text_folder},
    }
    params: dict[str, Any] = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": unet.in_channels,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet_params(unet),
        },
        "first_stage_config": first_stage,
        "cond_stage_config": text_encoder,
    }
    if prediction_type == "v_prediction":
        params["parameterization"] = "v"
    tree = {
        "model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params},
        "lora_workshop": {"text_encoder": {"num_attention_heads": text_heads}},
    }
    text: str = yaml.safe_dump(tree, sort_keys=False)
    return text
