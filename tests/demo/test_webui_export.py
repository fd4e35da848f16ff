"""What export-demo writes loads with the very calls that the WebUI makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lora_ext.checkpoint.text.bpe import clip_tokenizer
from lora_ext.demo.webui_export import export_demo
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.protocols import UserError


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    """A folder that looks like the WebUI's, with a space in its name."""
    folder = tmp_path / "stable diffusion webui"
    (folder / "modules").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "webui.py").write_text("", encoding="utf-8")
    return folder


def test_files_and_places(webui: Path, tiny_checkpoint_path: Path) -> None:
    written = export_demo(webui, tiny_checkpoint_path)
    models = webui / "models" / "Stable-diffusion"
    assert written == [
        models / "lora-workshop-demo.safetensors",
        models / "lora-workshop-demo.yaml",
        models / "lora-workshop-demo-text-encoder",
    ]
    assert written[0].read_bytes() == tiny_checkpoint_path.read_bytes()
    assert not list(models.glob("*.partial"))


def test_text_encoder_folder_loads_as_the_webui_loads_it(webui: Path, tiny_checkpoint_path: Path) -> None:
    """`FrozenCLIPEmbedder` with the YAML's `version`, as modules/sd_disable_initialization.py patches it."""
    _, yaml_path, _ = export_demo(webui, tiny_checkpoint_path)
    model = yaml.safe_load(yaml_path.read_text(encoding="utf-8"))["model"]
    version = model["params"]["cond_stage_config"]["params"]["version"]
    assert Path(version).is_absolute()

    tokenizer = CLIPTokenizer.from_pretrained(version, local_files_only=True)
    prompt = "a large red circle on a blue background"
    assert tokenizer(prompt)["input_ids"] == clip_tokenizer()(prompt)["input_ids"]
    assert tokenizer(prompt)["input_ids"][0] == 49406

    config = CLIPTextConfig.from_pretrained(version)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 2)
    assert config.hidden_act == "quick_gelu"
    transformer = CLIPTextModel.from_pretrained(None, config=version, state_dict={}, local_files_only=True)
    loaded = load_checkpoint(tiny_checkpoint_path, torch.device("cpu"), torch.float32)
    weights = loaded.checkpoint.text_encoders[0].module.state_dict()
    assert {key: value.shape for key, value in transformer.state_dict().items() if "position_ids" not in key} == {
        key: value.shape for key, value in weights.items() if "position_ids" not in key
    }


def test_export_again_replaces(webui: Path, tiny_checkpoint_path: Path) -> None:
    export_demo(webui, tiny_checkpoint_path)
    written = export_demo(webui, tiny_checkpoint_path)
    assert all(path.exists() for path in written)


def test_refuses_what_is_no_webui(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no webui\.py, no modules, no models"):
        export_demo(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        export_demo(tmp_path / "nowhere")
