"""The demo checkpoint written into a WebUI's folders, in the form in which it loads there without a download."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from lora_ext.checkpoint.layouts import LAYOUTS
from lora_ext.checkpoint.tensor_files import open_tensor_file
from lora_ext.checkpoint.text.bpe import write_tokenizer_folder
from lora_ext.demo.assets import demo_checkpoint_path
from lora_ext.host.standalone.architecture import clip_config, unet_config, vae_config
from lora_ext.host.standalone.checkpoint_yaml import checkpoint_yaml, read_checkpoint_yaml
from lora_ext.protocols import UserError

NAME = "lora-workshop-demo"


def export_demo(webui: Path, checkpoint: Path | None = None) -> list[Path]:
    """Write checkpoint, YAML and text folder into the WebUI at `webui`; returns what was written.

    `checkpoint` is the demo's own by default. Raises UserError where the folder is no WebUI, or cannot be written to.
    """
    check_webui(webui)
    source = checkpoint or demo_checkpoint_path()
    models = webui.resolve() / "models" / "Stable-diffusion"
    text_folder = models / f"{NAME}-text-encoder"
    target = models / f"{NAME}.safetensors"
    shapes = open_tensor_file(source).shapes
    described = read_checkpoint_yaml(source.with_suffix(".yaml"))
    parts = {name: _part(shapes, prefix) for name, prefix in LAYOUTS["SD1"].parts.items()}
    text = clip_config(parts["clip"], described)
    yaml_text = checkpoint_yaml(
        unet_config(parts["unet"], described),
        vae_config(parts["vae"]),
        text_heads=text["num_attention_heads"],
        prediction_type=described.prediction_type,
        text_folder=text_folder.as_posix(),
    )
    try:
        write_text_encoder_folder(text_folder, text)
        target.with_suffix(".yaml").write_text(yaml_text, encoding="utf-8", newline="\n")
        copy_atomically(source, target)
    except OSError as error:
        raise UserError(
            f"{models} cannot be written to ({error.strerror or error}): free it, or run as its owner"
        ) from error
    return [target, target.with_suffix(".yaml"), text_folder]


def check_webui(webui: Path) -> None:
    """Raise UserError where a folder does not hold AUTOMATIC1111's WebUI."""
    if not webui.is_dir():
        raise UserError(f"{webui}: there is no such folder; name the one that holds the WebUI's webui.py")
    missing = [name for name in ("webui.py", "modules", "models") if not (webui / name).exists()]
    if missing:
        raise UserError(
            f"{webui} is no WebUI: it holds no {', no '.join(missing)}; name the folder that holds webui.py"
        )


def write_text_encoder_folder(folder: Path, text: dict[str, int]) -> None:
    """Configuration and vocabulary as `CLIPTokenizer` and `CLIPTextModel` take them from a folder."""
    write_tokenizer_folder(folder)
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        **text,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8", newline="\n")


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file so that the target is the old one or the whole new one."""
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def _part(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
