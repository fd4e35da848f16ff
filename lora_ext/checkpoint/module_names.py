"""What network files call the modules of a checkpoint, found by walking its ldm or sgm tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from torch import nn

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint, TextEncoder
from lora_ext.checkpoint.text.openclip import OpenClipTextEncoder
from lora_ext.checkpoint.weight_views import WeightView, weight_view

UNET_PREFIX = "lora_unet"

_RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding_linear_1",
    "time_embed.2": "time_embedding_linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
}
_OPENCLIP_PARTS = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def unet_module_names(unet: nn.Module, architecture: Architecture) -> dict[str, str]:
    """Key in a network file → path inside the U-Net, of every module with a weight that a network may change.

    SD1 and SD2 are called as in diffusers (`lora_unet_down_blocks_0_attentions_0_proj_in` →
    `input_blocks.1.1.proj_in`), SDXL as in sgm (`lora_unet_input_blocks_4_1_proj_in`), which is what sd-scripts writes.
    """
    paths = list(_weighted_paths(unet))
    if architecture == "SDXL":
        return {_key(UNET_PREFIX, path): path for path in paths}
    blocks = dict(_diffusers_blocks(unet))
    named = ((path, _diffusers_name(path, unet, blocks)) for path in paths)
    return {_key(UNET_PREFIX, name): path for path, name in named if name is not None}


def text_module_names(encoder: TextEncoder) -> dict[str, str]:
    """Key in a network file → path of the attention and MLP layers of a text encoder: transformers' names for all.

    `lora_te_text_model_encoder_layers_0_mlp_fc1` → `text_model.encoder.layers.0.mlp.fc1`, in OpenCLIP's
    `transformer.resblocks.0.mlp.c_fc`. There q, k and v are rows of one weight: `transformer.resblocks.0.attn.q_proj`
    is none of the module's own, but one of the encoder's `projections`.
    """
    if isinstance(encoder, OpenClipTextEncoder):
        return openclip_names(encoder.key_prefix, encoder.layers)
    return clip_names(encoder.key_prefix, encoder.module)


def openclip_names(key_prefix: str, layers: int) -> dict[str, str]:
    """`text_module_names` of an OpenCLIP tower of that many layers."""
    names = {}
    for number, part in product(range(layers), _OPENCLIP_PARTS):
        key = _key(key_prefix, f"text_model.encoder.layers.{number}.{_OPENCLIP_PARTS[part]}")
        names[key] = f"transformer.resblocks.{number}.{part}"
    return names


def clip_names(key_prefix: str, module: nn.Module) -> dict[str, str]:
    """`text_module_names` of transformers' CLIP."""
    names = {}
    for path in _weighted_paths(module):
        _, layers, rest = path.partition("encoder.layers.")
        if layers and (".self_attn." in rest or ".mlp." in rest):
            names[_key(key_prefix, f"text_model.{layers}{rest}")] = path
    return names


def text_modules(encoder: TextEncoder) -> dict[str, nn.Module]:
    """Key in a network file → module to adapt; of fused attention a `FusedProjection`, which stays the same one."""
    own: Mapping[str, nn.Module] = encoder.projections if isinstance(encoder, OpenClipTextEncoder) else {}
    paths = text_module_names(encoder)
    return {key: own[path] if path in own else encoder.module.get_submodule(path) for key, path in paths.items()}


def _weighted_paths(root: nn.Module) -> Iterator[str]:
    for path, module in root.named_modules():
        if isinstance(module._parameters.get("weight"), nn.Parameter):
            yield path


def _key(prefix: str, name: str) -> str:
    return f"{prefix}_{name.replace('.', '_')}"


def _diffusers_blocks(unet: nn.Module) -> Iterator[tuple[str, str]]:
    """ldm path → diffusers name of every resnet, attention, downsampler and upsampler.

    A level ends with its downsampler on the way down and with its upsampler on the way up.
    """
    down, up = unet.get_submodule("input_blocks"), unet.get_submodule("output_blocks")
    yield from _levels("input_blocks", "down_blocks", list(down.named_children())[1:])
    yield from _level("middle_block", "mid_block", {"resnets": 0, "attentions": 0}, unet.get_submodule("middle_block"))
    yield from _levels("output_blocks", "up_blocks", up.named_children())


def _levels(path: str, name: str, blocks: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, str]]:
    level, counts = 0, {"resnets": 0, "attentions": 0}
    for number, block in blocks:
        for layer_path, layer_name in _level(f"{path}.{number}", f"{name}_{level}", counts, block):
            yield layer_path, layer_name
            if layer_name.endswith("samplers_0"):
                level, counts = level + 1, {"resnets": 0, "attentions": 0}


def _level(path: str, name: str, counts: dict[str, int], block: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of one block's layers; `counts` goes on through the blocks of a level."""
    for number, layer in block.named_children():
        kind = _kind(layer)
        if kind in counts:
            yield f"{path}.{number}", f"{name}_{kind}_{counts[kind]}"
            counts[kind] += 1
        elif kind:
            yield f"{path}.{number}", f"{name}_{kind}_0"


def _kind(layer: nn.Module) -> str | None:
    if hasattr(layer, "in_layers"):
        return "resnets"
    if hasattr(layer, "transformer_blocks"):
        return "attentions"
    if hasattr(layer, "op"):
        return "downsamplers"
    return "upsamplers" if hasattr(layer, "conv") else None


def _diffusers_name(path: str, unet: nn.Module, blocks: dict[str, str]) -> str | None:
    """Name of one module, dots standing for underscores; None where diffusers' files have no name for it."""
    if path in _ENDS:
        return _ENDS[path]
    parts = path.split(".")
    depth = 2 if parts[0] == "middle_block" else 3
    block, rest = ".".join(parts[:depth]), ".".join(parts[depth:])
    if block not in blocks:
        return None
    kind = _kind(unet.get_submodule(block))
    if kind == "resnets":
        return f"{blocks[block]}.{_RESNET_PARTS[rest]}" if rest in _RESNET_PARTS else None
    return f"{blocks[block]}.conv" if kind != "attentions" else f"{blocks[block]}.{rest}"


def checkpoint_weights(checkpoint: Checkpoint) -> dict[str, WeightView]:
    """Key in a network file → weight, of every module of the checkpoint that networks may change."""
    unet = checkpoint.unet
    weights = {key: weight_view(unet, path) for key, path in unet_module_names(unet, checkpoint.architecture).items()}
    return weights | text_weights(checkpoint.text_encoders)


def text_weights(encoders: Iterable[TextEncoder]) -> dict[str, WeightView]:
    """Those of text encoders alone."""
    return {
        key: weight_view(encoder.module, path)
        for encoder in encoders
        for key, path in text_module_names(encoder).items()
    }
