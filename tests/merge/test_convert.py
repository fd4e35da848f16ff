"""Networks in other programs' words: read by diffusers and peft themselves, and read back here with the same ΔW."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_conversion import diffusers_unet  # tests/host
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import read_network, write_network
from lora_ext.networks.formats.diffusers_words import diffusers_path
from lora_ext.networks.weight_delta import module_delta, weight_delta
from lora_ext.protocols import UserError

DATA = Path(__file__).parents[1] / "data"
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KERNEL = "lora_unet_down_blocks_0_resnets_0_conv1"
PROJECTION = "lora_unet_down_blocks_0_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
SHAPES = {QUERY: (24, 20), KERNEL: (16, 12, 3, 3), PROJECTION: (20, 24, 1, 1), TEXT: (32, 12)}

Modules = Mapping[str, Mapping[str, Tensor]]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(shape: tuple[int, ...], rank: int, alpha: float, seed: int) -> dict[str, Tensor]:
    up = random(shape[0], rank, *[1] * len(shape[2:]), seed=seed)
    down = random(rank, *shape[1:], seed=seed + 1)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(alpha)}


NETWORK: Modules = {key: lora(shape, 2 + place, 1.5, place) for place, (key, shape) in enumerate(SHAPES.items())}


def written(path: Path, modules: Modules, metadata: dict[str, str] | None = None) -> Path:
    tensors = {f"{key}.{suffix}": tensor for key, parts in modules.items() for suffix, tensor in parts.items()}
    write_network(path, tensors, metadata or {}, "float")
    return path


def convert(path: Path, out: Path, preview: bool = False, **more: object) -> ToolReport:
    tool = tool_named("convert")
    settings = make_settings(tool, {"file": str(path), "out": str(out), **more})
    assert tool.preview is not None
    return (tool.preview if preview else tool.run)(settings, Work())


def delta(modules: Modules, key: str) -> Tensor:
    return weight_delta(modules[key], torch.zeros(SHAPES[key]))


def listed(name: str) -> list[str]:
    with gzip.open(DATA / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return list(json.load(file))


@pytest.mark.parametrize("name", ["sd1_locon", "sd2_locon", "sdxl_locon"])
def test_every_module_has_the_path_that_diffusers_gives_it(name: str) -> None:
    from diffusers import UNet2DConditionModel

    transformers = {"sd1": (1, 1, 1, 1), "sd2": (1, 1, 1, 1), "sdxl": (1, 2, 10)}[name.partition("_")[0]]
    is_large = name.startswith("sdxl")
    blocks = (
        ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2) if is_large else (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280)[: len(transformers)],
            down_block_types=blocks,
            up_block_types=tuple(block.replace("Down", "Up") for block in reversed(blocks)),
            transformer_layers_per_block=transformers,
            cross_attention_dim=768,
        )
    known = {f"unet.{path}" for path, _ in unet.named_modules()}
    keys = listed(name)
    paths = [diffusers_path(key) for key in keys]
    in_unet = [path for path in paths if path is not None and path.startswith("unet.")]
    assert len(in_unet) == sum(key.startswith("lora_unet_") for key in keys)
    assert set(in_unet) <= known
    assert len(set(paths)) == len(keys) and None not in paths


def test_text_encoders_and_what_diffusers_does_not_have() -> None:
    module = "text_model_encoder_layers_11_self_attn_out_proj"
    path = "text_model.encoder.layers.11.self_attn.out_proj"
    assert diffusers_path(f"lora_te_{module}") == f"text_encoder.{path}"
    assert diffusers_path(f"lora_te1_{module}") == f"text_encoder.{path}"
    assert diffusers_path(f"lora_te2_{module}") == f"text_encoder_2.{path}"
    assert diffusers_path("lora_unet_double_blocks_0_img_mlp_0") is None
    assert diffusers_path("lora_unet_middle_block_1_proj_in") == "unet.mid_block.attentions.0.proj_in"
    assert diffusers_path("lora_te_x") is None
    assert diffusers_path("diff_x") is None


def test_to_diffusers_and_back_is_the_same_network(tmp_path: Path) -> None:
    source = written(tmp_path / "a.safetensors", NETWORK, {"ss_tag_frequency": "{}", "ss_network_alpha": "1.5"})
    report = convert(source, tmp_path / "b.safetensors", to="diffusers")
    there = read_network(tmp_path / "b.safetensors")
    assert set(there.tensors) == {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight",
        "unet.down_blocks.0.resnets.0.conv1.lora_A.weight",
        "unet.down_blocks.0.resnets.0.conv1.lora_B.weight",
        "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",
        "unet.down_blocks.0.attentions.0.proj_in.lora_B.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight",
    }
    assert there.metadata["ss_network_alpha"] == "Dynamic" and there.metadata["ss_tag_frequency"] == "{}"
    assert report.facts["Names before"] == "sd-scripts"
    assert report.files[0].size == (tmp_path / "b.safetensors").stat().st_size
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", to="sd-scripts")
    back = read_network(tmp_path / "c.safetensors")
    names = {f"{key}.{suffix}" for key, tensors in NETWORK.items() for suffix in tensors}
    assert set(back.tensors) == names
    assert {key: float(tensors["alpha"]) for key, tensors in back.modules.items()} == {
        QUERY: 4.0, KERNEL: 4.0, PROJECTION: 4.0, TEXT: 5.0,
    }  # fmt: skip
    for key in SHAPES:
        torch.testing.assert_close(delta(there.modules, key), delta(NETWORK, key), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(delta(back.modules, key), delta(there.modules, key), rtol=0, atol=0)


def test_diffusers_renders_a_converted_network_the_same(
    tiny_checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, lora_pipeline
    from diffusers.loaders import unet as unet_loader

    checkpoint: Checkpoint = load_checkpoint(tiny_checkpoint_path, torch.device("cpu"), torch.float32).checkpoint
    weights = {key: view for key, view in checkpoint_weights(checkpoint).items() if key in set(listed("sd1_locon"))}
    unets = {key: view for key, view in weights.items() if key.startswith("lora_unet_")}
    assert len(unets) > 50
    modules = {
        key: lora(tuple(view.shape), 2 + place % 3, 0.5 + place % 2, place)
        for place, (key, view) in enumerate(unets.items())
    }
    for tensors in modules.values():
        tensors["lora_up.weight"] = tensors["lora_up.weight"] * 0.03
    written(tmp_path / "a.safetensors", modules, {"ss_base_model_version": "sd_v1"})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="diffusers")

    state = {key: value.clone() for key, value in checkpoint.unet.state_dict().items()}
    unet: Any = diffusers_unet(state, checkpoint.unet.config)
    loader: Any = StableDiffusionLoraLoaderMixin
    tensors, alphas = loader.lora_state_dict(str(tmp_path), weight_name="b.safetensors", unet_config=unet.config)
    monkeypatch.setattr(lora_pipeline, "USE_PEFT_BACKEND", True)
    monkeypatch.setattr(unet_loader, "USE_PEFT_BACKEND", True)
    latents, timestep = random(1, 4, 8, 8, seed=1), torch.tensor([600])
    states = random(1, 77, checkpoint.unet.config.context_dim, seed=2)
    with torch.no_grad():
        before = checkpoint.unet(latents, timestep, states)
        for key, view in unets.items():
            view.detach().add_(weight_delta(modules[key], view.detach()))
        wanted = checkpoint.unet(latents, timestep, states)
        loader.load_lora_into_unet(tensors, alphas, unet)
        found = unet(latents, timestep, encoder_hidden_states=states).sample
    assert (wanted - before).abs().max() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_peft_reads_a_converted_dora(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    weight, lengths = random(32, 12, seed=90), random(32, 1, seed=91).abs()
    tensors = {**NETWORK[TEXT], "dora_scale": lengths}
    written(tmp_path / "a.safetensors", {TEXT: tensors})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="diffusers")
    module = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(12, 32, bias=False)})
    with torch.no_grad():
        module["q_proj"].weight.copy_(weight)
    model = get_peft_model(module, LoraConfig(r=5, lora_alpha=5, target_modules=["q_proj"], use_dora=True))
    start = "text_encoder.text_model.encoder.layers.0.self_attn."
    stored = read_network(tmp_path / "b.safetensors").tensors
    theirs = {f"base_model.model.{name.removeprefix(start)}": tensor for name, tensor in stored.items()}
    assert set_peft_model_state_dict(model, theirs).unexpected_keys == []
    merged = model.merge_and_unload()["q_proj"].weight
    torch.testing.assert_close(merged - weight, weight_delta(tensors, weight), rtol=1e-4, atol=1e-5)


def test_pefts_dora_and_alpha_get_sd_scripts_shapes(tmp_path: Path) -> None:
    start = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    up, down = NETWORK[QUERY]["lora_up.weight"], NETWORK[QUERY]["lora_down.weight"]
    tensors = {
        f"{start}.lora_A.weight": down,
        f"{start}.lora_B.weight": up,
        f"{start}.lora_magnitude_vector": torch.ones(24),
    }
    write_network(tmp_path / "adapter_model.safetensors", tensors, {}, "float")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 0.5, "r": 2}), encoding="utf-8")
    convert(tmp_path / "adapter_model.safetensors", tmp_path / "b.safetensors", to="sd-scripts")
    found = read_network(tmp_path / "b.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} == {
        f"{QUERY}.alpha": (),
        f"{QUERY}.dora_scale": (24, 1),
        f"{QUERY}.lora_down.weight": (2, 20),
        f"{QUERY}.lora_up.weight": (24, 2),
    }
    assert float(found.tensors[f"{QUERY}.alpha"]) == 0.5
    assert "adapter_config" not in found.metadata
    report = convert(tmp_path / "adapter_model.safetensors", tmp_path / "c.safetensors", precision="fp16")
    assert "adapter_config.json" in report.warnings[0]


def test_precision_alone_keeps_the_names_and_the_modules(tmp_path: Path) -> None:
    source = written(tmp_path / "a.safetensors", {**NETWORK, "lora_unet_x": {"stranger": torch.ones(2)}})
    report = convert(source, tmp_path / "b.safetensors", precision="bf16")
    before, after = read_network(source), read_network(tmp_path / "b.safetensors")
    assert list(before.tensors) == list(after.tensors)
    assert all(torch.equal(after.tensors[name], tensor.bfloat16()) for name, tensor in before.tensors.items())
    assert after.metadata["ss_training_comment"] == "saved as bf16"
    assert json.loads(after.metadata["lw_sources"])[0]["hash"] == before.metadata["sshs_model_hash"]
    assert after.metadata["sshs_model_hash"] != before.metadata["sshs_model_hash"]
    assert report.warnings == []


@pytest.mark.parametrize(("to", "precision"), [("as stored", "fp16"), ("sd-scripts", "fp16"), ("sd-scripts", "bf16")])
@pytest.mark.parametrize("alpha", [1e10, torch.inf])
def test_an_alpha_that_means_nothing_is_in_nobodys_way(tmp_path: Path, to: str, precision: str, alpha: float) -> None:
    """LyCORIS gives a LoKr of two whole weights its enormous rank as alpha, infinity in fp16, and does not use it."""
    tensors = {"lokr_w1": random(4, 4, seed=1), "lokr_w2": random(6, 5, seed=2), "alpha": torch.tensor(alpha)}
    source = written(tmp_path / "a.safetensors", {QUERY: tensors})
    convert(source, tmp_path / "b.safetensors", to=to, precision=precision)
    found = read_network(tmp_path / "b.safetensors").modules
    torch.testing.assert_close(delta(found, QUERY), delta({QUERY: tensors}, QUERY), rtol=2e-2, atol=2e-2)
    assert torch.isfinite(found[QUERY]["alpha"])


def test_rounding_once_more_is_told(tmp_path: Path) -> None:
    halves = {key: {name: tensor.half() for name, tensor in tensors.items()} for key, tensors in NETWORK.items()}
    halves[QUERY]["alpha"] = torch.tensor(1.0).half()  # rank 2: a half, which is exact
    tensors = {f"{key}.{suffix}": tensor for key, parts in halves.items() for suffix, tensor in parts.items()}
    write_network(tmp_path / "a.safetensors", tensors, {}, "fp16")
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="diffusers")
    assert report.warnings[1].startswith("2 modules are multiplied by alpha / rank")
    exact = convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", to="diffusers", precision="fp32")
    assert exact.warnings == [report.warnings[0]]
    assert exact.warnings[0].startswith("2 modules have fewer ranks than others")
    found = read_network(tmp_path / "c.safetensors").modules
    for key in SHAPES:
        torch.testing.assert_close(delta(found, key), delta(halves, key), rtol=1e-6, atol=1e-6)


def test_a_tucker_core_is_multiplied_in(tmp_path: Path) -> None:
    tensors = {
        "lora_up.weight": random(16, 3, 1, 1, seed=50),
        "lora_mid.weight": random(3, 3, 3, 3, seed=51),
        "lora_down.weight": random(3, 12, 1, 1, seed=52),
        "alpha": torch.tensor(6.0),
    }
    written(tmp_path / "a.safetensors", {KERNEL: tensors})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="diffusers")
    found = read_network(tmp_path / "b.safetensors")
    assert found.tensors["unet.down_blocks.0.resnets.0.conv1.lora_A.weight"].shape == (3, 12, 3, 3)
    torch.testing.assert_close(delta(found.modules, KERNEL), delta({KERNEL: tensors}, KERNEL), rtol=1e-5, atol=1e-5)


LORA = lora((4, 6), 2, 1.0, 1)


@pytest.mark.parametrize(
    ("modules", "to", "said"),
    [
        ({QUERY: {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3)}}, "diffusers", "for LoKr: 1 modules"),
        ({QUERY: {"diff": torch.ones(3, 3)}}, "diffusers", "no words for full: 1 modules"),
        ({"lora_unet_double_blocks_0_x": lora((4, 4), 2, 1.0, 1)}, "diffusers", "no words for these modules"),
        ({QUERY: {**LORA, "dora_scale": torch.ones(1, 6)}}, "diffusers", "a length an input"),
        ({QUERY: {**LORA, "lora_up.bias": torch.ones(4)}}, "sd-scripts", "biases of lora_B"),
        ({QUERY: LORA, "bundle_emb.cat": {"emb": torch.ones(2)}}, "diffusers", r"embeddings .*\(cat\)"),
        ({QUERY: LORA, "stranger": {"weight": torch.ones(2)}}, "sd-scripts", "1 tensors are of no known"),
        ({"stranger": {"weight": torch.ones(2)}}, "sd-scripts", "holds no network"),
    ],
)  # fmt: skip
def test_what_the_other_cannot_say_is_refused_by_name(tmp_path: Path, modules: Modules, to: str, said: str) -> None:
    source = written(tmp_path / "a.safetensors", modules)
    with pytest.raises(UserError, match=said):
        convert(source, tmp_path / "b.safetensors", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_sd_scripts_words_keep_embeddings_and_biases_are_diffusers(tmp_path: Path) -> None:
    bias = {**NETWORK[QUERY], "lora_up.bias": random(24, seed=7)}
    source = written(tmp_path / "a.safetensors", {QUERY: bias})
    convert(source, tmp_path / "b.safetensors", to="diffusers")
    found = module_delta(read_network(tmp_path / "b.safetensors").modules[QUERY]).bias
    torch.testing.assert_close(found, module_delta(bias).bias)
    source = written(
        tmp_path / "c.safetensors", {QUERY: NETWORK[QUERY], "bundle_emb.cat": {"emb_params": torch.ones(1, 2)}}
    )
    convert(source, tmp_path / "d.safetensors", to="sd-scripts")
    assert "bundle_emb.cat.emb_params" in read_network(tmp_path / "d.safetensors").tensors


def test_nothing_to_do_and_previews(tmp_path: Path) -> None:
    source = written(tmp_path / "a.safetensors", NETWORK)
    with pytest.raises(UserError, match="nothing is to be converted"):
        convert(source, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="is read and would be written over"):
        convert(source, source, to="diffusers", overwrite=True)
    seen = convert(source, tmp_path / "b.safetensors", to="diffusers", preview=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    done = convert(source, tmp_path / "b.safetensors", to="diffusers")
    assert (seen.facts, seen.files) == (done.facts, done.files)
