"""Loading checkpoints: sizes, dtypes, old and optional names, and every kind of wrong file."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_ext.checkpoint.devices import choose_device
from lora_ext.host.standalone.architecture import clip_config, unet_config, vae_config
from lora_ext.host.standalone.checkpoint_yaml import CheckpointYaml, checkpoint_yaml, read_checkpoint_yaml
from lora_ext.host.standalone.file_hashes import cached_sha256
from lora_ext.host.standalone.loader import LoadedCheckpoint, choose_dtype, load_checkpoint
from lora_ext.host.standalone.random_checkpoint import TINY_UNET, TINY_VAE, write_random_checkpoint
from lora_ext.host.standalone.unet import SD1_UNET, SD2_UNET, SDXL_UNET, UNetConfig
from lora_ext.host.standalone.vae import SD_VAE, VAEConfig
from lora_ext.protocols import UserError

CPU = torch.device("cpu")
DATA = Path(__file__).parent / "data"
TEXT = "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def tensors(tiny_checkpoint_path: Path) -> dict[str, Tensor]:
    return dict(load_file(str(tiny_checkpoint_path)))


def load(path: Path) -> LoadedCheckpoint:
    return load_checkpoint(path, CPU, torch.float32)


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, str(path))
    path.with_suffix(".yaml").write_text(checkpoint_yaml(TINY_UNET, TINY_VAE, text_heads=2), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def shapes_of(architecture: str, prefix: str) -> dict[str, tuple[int, ...]]:
    with gzip.open(DATA / f"state_dict_keys_{architecture}.json.gz", "rt", encoding="utf-8") as file:
        shapes: dict[str, list[int]] = json.load(file)
    return {key.removeprefix(prefix): tuple(shape) for key, shape in shapes.items() if key.startswith(prefix)}


@pytest.mark.parametrize(
    ("architecture", "unet"), [("sd1", SD1_UNET), ("sd2", SD2_UNET), ("sdxl", SDXL_UNET)], ids=["SD1", "SD2", "SDXL"]
)
def test_full_size_configurations_are_read_from_shapes(architecture: str, unet: UNetConfig) -> None:
    assert unet_config(shapes_of(architecture, "model.diffusion_model."), CheckpointYaml()) == unet
    assert vae_config(shapes_of(architecture, "first_stage_model.")) == SD_VAE


def test_full_size_clip_is_read_from_shapes() -> None:
    assert clip_config(shapes_of("sd1", TEXT), CheckpointYaml()) == {
        "vocab_size": 49408,
        "hidden_size": 768,
        "projection_dim": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_files_of_every_precision(tmp_path: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    path = write(tmp_path / "model.safetensors", {key: tensor.to(dtype) for key, tensor in tensors.items()})
    loaded = load(path)
    checkpoint = loaded.checkpoint
    assert checkpoint.unet.config == TINY_UNET
    assert checkpoint.vae.config == TINY_VAE
    assert checkpoint.text_encoders[0].module.config.num_attention_heads == 2
    for prefix, module in (
        ("model.diffusion_model.", checkpoint.unet),
        ("first_stage_model.", checkpoint.vae),
        (TEXT, checkpoint.text_encoders[0].module),
    ):
        assert not module.training
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, tensors[prefix + name].to(dtype).float())
            assert not parameter.requires_grad
    assert (checkpoint.name, checkpoint.architecture, checkpoint.prediction_type) == ("model", "SD1", "epsilon")
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.unexpected == ()
    assert loaded.missing == (f"{TEXT}text_model.embeddings.position_ids",)


def test_half_precision_keeps_the_vae_in_fp32(tiny_checkpoint_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint_path, CPU, torch.bfloat16).checkpoint
    assert checkpoint.dtype == torch.bfloat16
    assert checkpoint.text_encoders[0].module.dtype == torch.bfloat16
    assert next(checkpoint.vae.parameters()).dtype == torch.float32


def test_same_seed_same_file(tmp_path: Path, tiny_checkpoint_path: Path) -> None:
    path = tmp_path / "again.safetensors"
    write_random_checkpoint(path, seed=0)
    assert path.read_bytes() == tiny_checkpoint_path.read_bytes()


def test_without_a_yaml_it_is_sd1(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, str(path))
    checkpoint = load(path).checkpoint
    assert checkpoint.unet.config.num_heads == 8
    assert checkpoint.text_encoders[0].module.config.num_attention_heads == 1
    assert checkpoint.latent_scale == 0.18215


def test_the_yaml_tells_prediction_type_schedule_and_heads(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text(checkpoint_yaml(TINY_UNET, TINY_VAE, 2, prediction_type="v_prediction"), encoding="utf-8")
    described = read_checkpoint_yaml(path)
    assert (described.prediction_type, described.num_heads, described.text_heads) == ("v_prediction", 4, 2)
    assert (described.linear_start, described.linear_end, described.scale_factor) == (0.00085, 0.012, 0.18215)


def test_heads_from_the_text_folder_that_the_yaml_names(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text('{"num_attention_heads": 3}', encoding="utf-8")
    path = tmp_path / "model.yaml"
    text = checkpoint_yaml(TINY_UNET, TINY_VAE, 2, text_folder="text")
    path.write_text(text.split("lora_workshop:")[0], encoding="utf-8")
    assert read_checkpoint_yaml(path).text_heads == 3


@pytest.mark.parametrize("content", ["a: [", "just text", "model: {}"])
def test_a_yaml_that_is_none_is_named(tmp_path: Path, tensors: dict[str, Tensor], content: str) -> None:
    path = write(tmp_path / "model.safetensors", tensors)
    path.with_suffix(".yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.yaml"):
        load(path)


def test_old_names_of_the_text_encoder(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    old = {key.replace(f"{TEXT}text_model.", TEXT): tensor for key, tensor in tensors.items()}
    loaded = load(write(tmp_path / "model.safetensors", old))
    assert any("names of the old style" in note for note in loaded.notes)
    embedding = loaded.checkpoint.text_encoders[0].module.text_model.embeddings.token_embedding.weight
    assert torch.equal(embedding, tensors[f"{TEXT}text_model.embeddings.token_embedding.weight"])


def test_optional_and_unknown_tensors_are_reported_by_name_and_count(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    extra = {
        "alphas_cumprod": torch.zeros(1000),
        "model_ema.decay": torch.zeros(()),
        "cond_stage_model.logit_scale": torch.zeros(()),
        f"{TEXT}text_model.embeddings.position_ids": torch.arange(77, dtype=torch.float32)[None],
        "model.diffusion_model.extra.weight": torch.zeros(2),
        "something.else": torch.zeros(2),
    }
    loaded = load(write(tmp_path / "model.safetensors", {**tensors, **extra}))
    assert set(loaded.unexpected) == {"model.diffusion_model.extra.weight", "something.else"}
    assert loaded.missing == ()
    assert any(note.startswith("4 tensors are not needed") for note in loaded.notes)
    assert any(note.startswith("2 tensors are not known") and "something.else" in note for note in loaded.notes)
    position_ids = loaded.checkpoint.text_encoders[0].module.text_model.embeddings.position_ids
    assert position_ids.tolist() == [list(range(77))]
    assert position_ids.dtype == torch.int64


def test_missing_tensors_are_refused_by_name(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    gone = ("model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.weight")
    path = write(tmp_path / "model.safetensors", {k: v for k, v in tensors.items() if k not in gone})
    message = refusal(path)
    assert "2 tensors are missing" in message
    assert all(name in message for name in gone)


@pytest.mark.parametrize(
    ("prefix", "words"), [("first_stage_model.", "has no VAE"), ("cond_stage_model.", "has no text encoder")]
)
def test_a_part_that_is_missing_is_named(tmp_path: Path, tensors: dict[str, Tensor], prefix: str, words: str) -> None:
    path = write(tmp_path / "model.safetensors", {k: v for k, v in tensors.items() if not k.startswith(prefix)})
    assert words in refusal(path)


def test_a_wrong_shape_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    key = "model.diffusion_model.time_embed.0.bias"
    path = write(tmp_path / "model.safetensors", {**tensors, key: torch.zeros(5)})
    assert f"{key} is (5,), not (128,)" in refusal(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"], "seems to be a LoRA"),
        (["conditioner.embedders.0.model.ln_final.weight", "model.diffusion_model.b"], "is the SDXL refiner"),
        (["conditioner.embedders.0.transformer.text_model.a", "model.diffusion_model.b"], "has no VAE and no OpenCLIP"),
        (["cond_stage_model.model.ln_final.weight", "model.diffusion_model.b"], "has no VAE"),
        (["embedder.model.ln_final.weight", "model.diffusion_model.b"], "unCLIP, depth"),
        (["model.diffusion_model.joint_blocks.0.a"], "SD3, Flux"),
        (["encoder.down.0.block.0.norm1.weight"], "VAE alone"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["down_blocks.0.resnets.0.norm1.weight"], "Diffusers folder"),
        (["emb_params"], "textual-inversion"),
        (["a", "b"], "none of its 2 tensors"),
    ],
)
def test_other_files_are_called_what_they_seem_to_be(tmp_path: Path, keys: list[str], words: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(2, 2) for key in keys}, str(path))
    assert words in refusal(path)


def test_an_editing_model_is_called_so(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    key = "model.diffusion_model.input_blocks.0.0.weight"
    path = write(tmp_path / "model.safetensors", {**tensors, key: torch.zeros(32, 8, 3, 3)})
    assert "8 input channels" in refusal(path)


def test_truncated_and_foreign_files(tmp_path: Path, tiny_checkpoint_path: Path) -> None:
    whole = tiny_checkpoint_path.read_bytes()
    path = tmp_path / "model.safetensors"
    for content, words in (
        (whole[: len(whole) // 2], "is cut off"),
        (whole[:100], "no safetensors file, or is damaged"),
        (b"", "is empty"),
        (b"hello, this is a text file and no checkpoint", "is no safetensors file"),
        ((20).to_bytes(8, "little") + b"x" * 50, "is no safetensors file"),
    ):
        path.write_bytes(content)
        assert words in refusal(path)
    assert "there is no such file" in refusal(tmp_path / "nothing.safetensors")
    assert "is a folder" in refusal(tmp_path)
    odd = tmp_path / "notes.txt"
    odd.write_text("x", encoding="utf-8")
    assert "these endings are read: .safetensors, .ckpt" in refusal(odd)


def test_ckpt_with_a_state_dict_inside(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "global_step": 7}, path)
    path.with_suffix(".yaml").write_text(checkpoint_yaml(TINY_UNET, TINY_VAE, 2), encoding="utf-8")
    unet = load(path).checkpoint.unet
    assert torch.equal(unet.out[2].bias, tensors["model.diffusion_model.out.2.bias"])


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "was-run",)

    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": Harmful()}, path)
    assert "could run code" in refusal(path)
    with path.open("wb") as file:
        pickle.dump(Harmful(), file, protocol=2)
    assert refusal(path)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\x03\x04 half a zip", b"\x80\x02}q\x00(X", b"\x93NUMPY"])
def test_a_ckpt_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    assert refusal(path)


def test_heads_that_do_not_divide_are_told_of(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = write(tmp_path / "model.safetensors", tensors)
    text = checkpoint_yaml(UNetConfig(num_heads=5), VAEConfig(), 2)
    path.with_suffix(".yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="32 channels wide, which 5"):
        load(path)


def test_sha256_of_large_files_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ext.host.standalone.file_hashes.REMEMBERED_FROM_BYTES", 10)
    path, cache = tmp_path / "large", tmp_path / "cache" / "sha256.json"
    path.write_bytes(b"x" * 100)
    digest = hashlib.sha256(b"x" * 100).hexdigest()
    assert cached_sha256(path, cache) == digest
    remembered = json.loads(cache.read_text(encoding="utf-8"))
    remembered[str(path.resolve())]["sha256"] = "from the cache"
    cache.write_text(json.dumps(remembered), encoding="utf-8")
    assert cached_sha256(path, cache) == "from the cache"
    path.write_bytes(b"y" * 101)
    assert cached_sha256(path, cache) == hashlib.sha256(b"y" * 101).hexdigest()


def test_devices_and_dtypes_by_name() -> None:
    assert choose_dtype(CPU) == torch.float32
    assert choose_dtype(CPU, "bf16") == torch.bfloat16
    assert choose_device("cpu") == CPU
    with pytest.raises(UserError, match="dtype 'int9' is unknown; allowed: auto"):
        choose_dtype(CPU, "int9")
    with pytest.raises(UserError, match="device 'toaster' is unknown; allowed: auto, cpu"):
        choose_device("toaster")
