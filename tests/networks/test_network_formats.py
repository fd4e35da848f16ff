"""Files of other programs: their names, put into sd-scripts', against the lists that sd-scripts and lycoris gave."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from lora_ext.networks.file import read_network, scan_network
from lora_ext.networks.formats import NetworkModules, canonical_modules
from lora_ext.networks.formats.blocks import diffusers_name, is_diffusers_name, is_ldm_name, ldm_name
from lora_ext.networks.formats.unnamed import numbered_tensors
from lora_ext.networks.weight_delta import module_delta
from lora_ext.protocols import UserError

DATA = Path(__file__).parents[1] / "data"
PREFIX = "lora_unet_"


def listed(name: str) -> dict[str, Any]:
    with gzip.open(DATA / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


def modules_of(names: list[str], metadata: dict[str, str] | None = None) -> NetworkModules:
    return canonical_modules({name: torch.ones(2, 2) for name in names}, metadata or {})


def lora(module: str, width: int = 4) -> dict[str, Tensor]:
    return {f"{module}.lora_up.weight": torch.ones(3, 2), f"{module}.lora_down.weight": torch.ones(2, width)}


def unet_paths(checkpoint: str) -> dict[str, str]:
    """Key without its prefix → path inside the U-Net with underscores, as the WebUI's built-in finds it."""
    start = "model.diffusion_model."
    return {
        key.removeprefix(PREFIX): path.removeprefix(start).replace(".", "_")
        for key, path in listed(f"name_map_{checkpoint}").items()
        if path.startswith(start)
    }


@pytest.mark.parametrize(("checkpoint", "count"), [("sd1", 390), ("sd2", 278)])
def test_ldm_names_of_sd1_and_sd2_become_diffusers(checkpoint: str, count: int) -> None:
    paths = unet_paths(checkpoint)
    assert len(paths) == count
    for name, path in paths.items():
        assert diffusers_name(path) == name
        assert is_ldm_name(path) and not is_ldm_name(name)
        assert is_diffusers_name(name) and not is_diffusers_name(path)
        assert diffusers_name(name) == name


def sdxl_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


@pytest.mark.slow
def test_diffusers_names_of_sdxl_become_sgms() -> None:
    """diffusers' own SDXL tree, module by module, is the 722 + 66 that sd-scripts adapts, with the same shapes."""
    stored = {key: shape for key, shape in listed("sdxl_locon").items() if key.startswith(PREFIX)}
    expected = {key.removeprefix(PREFIX): [shape["out"][0], *shape["in"]] for key, shape in stored.items()}
    layers = {path: each for path, each in sdxl_unet().named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    named = {ldm_name(path.replace(".", "_")): list(layer.weight.shape) for path, layer in layers.items()}
    assert len(expected) == 788
    assert {name: named[name] for name in expected} == expected
    ends = set(named) - set(expected)
    assert ends == {"input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2"}
    found = modules_of([f"unet.{path}.lora.down.weight" for path in layers])
    assert set(found.modules) == {PREFIX + name for name in named} and not found.unknown


TO_Q = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
DOTTED_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_Q = "text_model_encoder_layers_3_self_attn_q_proj"
DOTTED_TEXT_Q = "text_model.encoder.layers.3.self_attn.q_proj"
OTHER = "down_blocks_0_attentions_0_proj_in"  # only SD1 and SD2 have it


@pytest.mark.parametrize(
    ("down", "up", "key", "dialect"),
    [
        (f"lora_unet_{TO_Q}.lora_down.weight", f"lora_unet_{TO_Q}.lora_up.weight", f"lora_unet_{TO_Q}", "sd-scripts"),
        (f"lyco_unet_{TO_Q}.lora_down.weight", f"lyco_unet_{TO_Q}.lora_up.weight", f"lora_unet_{TO_Q}", "sd-scripts"),
        (f"lycoris_{TO_Q}.lora_down.weight", f"lycoris_{TO_Q}.lora_up.weight", f"lora_unet_{TO_Q}", "LyCORIS"),
        (f"lora_prior_unet_{TO_Q}.lora_A.weight", f"lora_prior_unet_{TO_Q}.lora_B.weight", f"lora_unet_{TO_Q}", None),
        (f"lora_te_{TEXT_Q}.lora_down.weight", f"lora_te_{TEXT_Q}.lora_up.weight", f"lora_te_{TEXT_Q}", "sd-scripts"),
        (f"lora_te1_{TEXT_Q}.lora_down.weight", f"lora_te1_{TEXT_Q}.lora_up.weight", f"lora_te_{TEXT_Q}", None),
        (f"unet.{DOTTED_Q}.lora.down.weight", f"unet.{DOTTED_Q}.lora.up.weight", f"lora_unet_{TO_Q}", "diffusers"),
        (f"unet.{DOTTED_Q}.lora_A.weight", f"unet.{DOTTED_Q}.lora_B.weight", f"lora_unet_{TO_Q}", "diffusers"),
        (
            f"unet.{DOTTED_Q.replace('to_q', 'processor.to_q_lora.down.weight')}",
            f"unet.{DOTTED_Q.replace('to_q', 'processor.to_q_lora.up.weight')}",
            f"lora_unet_{TO_Q}",
            "diffusers",
        ),
        (
            f"unet.{DOTTED_Q.replace('to_q', 'processor.to_out_lora.down.weight')}",
            f"unet.{DOTTED_Q.replace('to_q', 'processor.to_out_lora.up.weight')}",
            f"lora_unet_{TO_Q.replace('to_q', 'to_out_0')}",
            "diffusers",
        ),
        (
            f"base_model.model.{DOTTED_Q}.lora_A.weight",
            f"base_model.model.{DOTTED_Q}.lora_B.weight",
            f"lora_unet_{TO_Q}",
            "PEFT",
        ),
        (
            f"base_model.model.{DOTTED_Q}.lora_A.default.weight",
            f"base_model.model.{DOTTED_Q}.lora_B.default.weight",
            f"lora_unet_{TO_Q}",
            "PEFT",
        ),
        (
            f"text_encoder.{DOTTED_TEXT_Q}.lora_linear_layer.down.weight",
            f"text_encoder.{DOTTED_TEXT_Q}.lora_linear_layer.up.weight",
            f"lora_te_{TEXT_Q}",
            "diffusers",
        ),
        (
            f"text_encoder.{DOTTED_TEXT_Q.replace('q_proj', 'to_q_lora.down.weight')}",
            f"text_encoder.{DOTTED_TEXT_Q.replace('q_proj', 'to_q_lora.up.weight')}",
            f"lora_te_{TEXT_Q}",
            "diffusers",
        ),
        (
            "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_down.weight",
            "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_up.weight",
            f"lora_unet_{TO_Q}",
            "ComfyUI",
        ),
        (
            "lora_te_model_transformer_resblocks_3_attn_q_proj.lora_down.weight",
            "lora_te_model_transformer_resblocks_3_attn_q_proj.lora_up.weight",
            f"lora_te_{TEXT_Q}",
            "sd-scripts",
        ),
    ],
)
def test_names_of_sd1_networks(down: str, up: str, key: str, dialect: str | None) -> None:
    """Beside a module that tells that the file is for SD1."""
    tensors = {down: torch.ones(2, 4), up: torch.ones(3, 2), f"lora_unet_{OTHER}.alpha": torch.tensor(1.0)}
    found = canonical_modules(tensors, {})
    assert found.modules.keys() == {key, f"lora_unet_{OTHER}"} and not found.unknown
    assert found.modules[key]["lora_down.weight"] is tensors[down]
    assert found.modules[key]["lora_up.weight"] is tensors[up]
    if dialect not in (None, "sd-scripts"):
        del tensors[f"lora_unet_{OTHER}.alpha"]
        assert canonical_modules(tensors, {}).dialect == dialect


def test_sdxl_in_diffusers_names_with_both_text_encoders() -> None:
    names = {
        f"unet.{DOTTED_Q}.lora_A.weight": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "unet.up_blocks.1.upsamplers.0.conv.lora_A.weight": "lora_unet_output_blocks_5_2_conv",
        "unet.down_blocks.0.resnets.1.conv2.lora_A.weight": "lora_unet_input_blocks_2_0_out_layers_3",
        f"text_encoder.{DOTTED_TEXT_Q}.lora_A.weight": f"lora_te1_{TEXT_Q}",
        f"text_encoder_2.{DOTTED_TEXT_Q}.lora_A.weight": f"lora_te2_{TEXT_Q}",
    }
    found = modules_of(list(names))
    assert list(found.modules) == list(names.values())
    assert found.dialect == "diffusers"


def test_one_trainers_sdxl_files_have_diffusers_names_and_embeddings() -> None:
    names = [
        f"lora_unet_{TO_Q}.lora_down.weight",
        f"lora_te1_{TEXT_Q}.lora_down.weight",
        f"lora_te2_{TEXT_Q}.alpha",
        "bundle_emb.<cat>.clip_l",
        "bundle_emb.<cat>.clip_g",
        "bundle_emb.dog.string_to_param.*",
    ]
    found = modules_of(names, {"ot_branch": "master"})
    assert list(found.modules) == [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        f"lora_te1_{TEXT_Q}",
        f"lora_te2_{TEXT_Q}",
    ]
    assert {name: sorted(parts) for name, parts in found.embeddings.items()} == {
        "<cat>": ["clip_g", "clip_l"],
        "dog": ["string_to_param.*"],
    }
    assert found.dialect == "OneTrainer" and not found.unknown


@pytest.mark.parametrize(
    ("names", "metadata", "expected"),
    [
        ([f"lora_unet_{TO_Q}.alpha"], {}, f"lora_unet_{TO_Q}"),
        (
            [f"lora_unet_{TO_Q}.alpha"],
            {"ss_base_model_version": "sdxl_base_v1-0"},
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        ),
        (["lora_unet_input_blocks_4_1_proj_in.alpha"], {}, "lora_unet_input_blocks_4_1_proj_in"),
        (
            ["lora_unet_input_blocks_4_1_proj_in.alpha"],
            {"modelspec.architecture": "stable-diffusion-v1/lora"},
            "lora_unet_down_blocks_1_attentions_0_proj_in",
        ),
        (
            ["lora_unet_input_blocks_4_1_proj_in.alpha", "lora_unet_output_blocks_11_1_proj_in.alpha"],
            {},
            "lora_unet_down_blocks_1_attentions_0_proj_in",
        ),
        (
            ["lora_unet_input_blocks_4_1_proj_in.alpha", "lora_unet_output_blocks_0_1_proj_in.alpha"],
            {},
            "lora_unet_input_blocks_4_1_proj_in",
        ),
    ],
)
def test_names_that_both_layouts_have_follow_from_the_rest(
    names: list[str], metadata: dict[str, str], expected: str
) -> None:
    assert next(iter(modules_of(names, metadata).modules)) == expected


@pytest.mark.parametrize(("width", "block"), [(768, "down_blocks_1_attentions_0"), (2048, "input_blocks_4_1")])
def test_the_width_of_the_text_tells_what_nothing_else_does(width: int, block: str) -> None:
    rest = "transformer_blocks_0_attn2_to_k"
    found = canonical_modules(lora(f"lora_unet_input_blocks_4_1_{rest}", width), {})
    assert list(found.modules) == [f"lora_unet_{block}_{rest}"]


def test_the_checkpoint_tells_what_the_file_leaves_open() -> None:
    tensors = lora("lora_unet_input_blocks_4_1_proj_in")
    assert list(canonical_modules(tensors, {}, "SD2").modules) == ["lora_unet_down_blocks_1_attentions_0_proj_in"]
    assert list(canonical_modules(tensors, {}, "SDXL").modules) == ["lora_unet_input_blocks_4_1_proj_in"]


@pytest.mark.parametrize("checkpoint", ["sd1", "sd2"])
@pytest.mark.parametrize("start", ["lora_unet_", "diffusion_model.", "model.diffusion_model.", "diffusion_model_"])
def test_every_module_in_ldm_names(checkpoint: str, start: str) -> None:
    """Flat and dotted, as ComfyUI and others write them for SD1 and SD2."""
    paths = {key: path for key, path in listed(f"name_map_{checkpoint}").items() if key.startswith(PREFIX)}
    inside = [path.removeprefix("model.diffusion_model.") for path in paths.values()]
    names = [start + (path if start.endswith(".") else path.replace(".", "_")) for path in inside]
    found = modules_of([f"{name}.lora_down.weight" for name in names])
    assert list(found.modules) == list(paths) and not found.unknown


def test_every_module_in_openclips_names() -> None:
    """SD2's text encoder, whose module names files have in HF's words."""
    start = "cond_stage_model."
    paths = {key: path for key, path in listed("name_map_sd2").items() if path.startswith(start)}
    names = {
        key: re.sub(r"in_proj_weight\[([qkv])\]", r"\1_proj", path.removeprefix(start)).replace(".", "_")
        for key, path in paths.items()
    }
    found = modules_of([f"lora_te_{name}.alpha" for name in names.values()])
    assert len(names) == 138 and list(found.modules) == list(names)


@pytest.mark.parametrize("checkpoint", ["sd1_locon", "sd2_locon", "sdxl_locon"])
def test_sd_scripts_own_names_stay_as_they_are(checkpoint: str) -> None:
    keys = list(listed(checkpoint))
    found = modules_of([f"{key}.alpha" for key in keys])
    assert list(found.modules) == keys and found.dialect == "sd-scripts"


def test_old_oft_names_and_lycoris() -> None:
    found = modules_of(["oft_unet_mid_block_attentions_0_proj_in.oft_blocks"])
    assert list(found.modules) == ["lora_unet_mid_block_attentions_0_proj_in"]
    assert found.dialect == "LyCORIS"
    assert modules_of(["lora_unet_x.alpha"], {"ss_network_module": "lycoris.kohya"}).dialect == "LyCORIS"


def test_names_that_no_program_gives_are_kept_apart() -> None:
    strange = ["a.alpha", "lora_unet", "transformer.blocks.0.attn.to_q.lora_A.weight", "", "step", "unet.x.weight"]
    found = modules_of([*strange, "lora_unet_x.alpha", "lora_unet_x.strange"])
    assert found.unknown == strange
    assert set(found.modules["lora_unet_x"]) == {"alpha", "strange"}


def test_a_tensor_named_twice_is_kept_apart() -> None:
    names = [f"lora_unet_{TO_Q}.lora_down.weight", f"lyco_unet_{TO_Q}.lora_down.weight"]
    assert modules_of(names).unknown == [names[1]]


def test_a_checkpoint_is_no_network() -> None:
    start = "model.diffusion_model.input_blocks."
    names = [f"{start}0.0.weight", f"{start}1.1.proj_in.bias", "first_stage_model.encoder.conv_in.weight", "betas"]
    assert modules_of(names).unknown == names


def unnamed_order(root: nn.Module, ancestors: set[str]) -> list[str]:
    """Linear layers inside modules of these classes, in the order in which cloneofsimo's code meets them."""
    return [
        f"{path}.{inner}".replace(".", "_")
        for path, module in root.named_modules()
        if type(module).__name__ in ancestors
        for inner, child in module.named_modules()
        if isinstance(child, nn.Linear)
    ]


def pairs(shapes: list[tuple[int, int]]) -> list[Tensor]:
    """up, down, up, down, … of weights (out, in), with the number of the module in them."""
    found = []
    for number, (out, width) in enumerate(shapes):
        found += [torch.full((out, 2), float(number)), torch.ones(2, width)]
    return found


@pytest.mark.parametrize("ancestors", [{"Attention"}, {"Attention", "GEGLU"}])
def test_unnamed_lists_are_in_the_order_of_diffusers_modules(ancestors: set[str]) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(num_hidden_layers=12))
    order, text_order = unnamed_order(unet, ancestors), unnamed_order(text, {"CLIPAttention"})
    assert (len(order), len(text_order)) == (128 if len(ancestors) == 1 else 144, 48)
    tensors = pairs([(8, 1) if "ff_net" in name else (4, 4) for name in order])
    found = canonical_modules(numbered_tensors(tensors, pairs([(4, 4)] * 48)), {})
    assert found.dialect == "sd_dreambooth"
    for keys in ([f"lora_unet_{name}" for name in order], [f"lora_te_{name}" for name in text_order]):
        assert [found.modules[key]["lora_up.weight"][0, 0].item() for key in keys] == list(range(len(keys)))


def test_unnamed_lists_of_older_diffusers_have_the_feed_forward_in_between() -> None:
    shapes = [(8, 1) if number % 9 == 4 else (4, 4) for number in range(144)]
    found = canonical_modules(numbered_tensors(pairs(shapes)), {})
    start = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    order = [f"{start}_attn1_to_out_0", f"{start}_ff_net_0_proj", f"{start}_attn2_to_q"]
    assert [found.modules[key]["lora_up.weight"][0, 0].item() for key in order] == [3, 4, 5]


@pytest.mark.parametrize("count", [1, 16, 127, 145])
def test_unnamed_lists_of_other_lengths_are_refused_in_words(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} pairs of tensors without names"):
        canonical_modules(numbered_tensors(pairs([(4, 4)] * count)), {})


def test_pickled_lists_and_their_text_encoders_are_read(tmp_path: Path) -> None:
    torch.save(pairs([(4, 4)] * 128), tmp_path / "cat_100.pt")
    torch.save(pairs([(4, 4)] * 48), tmp_path / "cat_100_txt.pt")
    file = read_network(tmp_path / "cat_100.pt")
    assert len(file.modules) == 128 + 48
    assert len(scan_network(tmp_path / "cat_100.pt").shapes) == 2 * (128 + 48)
    (tmp_path / "cat_100_txt.pt").unlink()
    assert len(read_network(tmp_path / "cat_100.pt").modules) == 128


def test_pickled_networks_with_names_are_read(tmp_path: Path) -> None:
    tensors = lora("lora_te_text_model_encoder_layers_0_mlp_fc1")
    torch.save(tensors, tmp_path / "a.pt")
    torch.save({"state_dict": {name: nn.Parameter(each) for name, each in tensors.items()}}, tmp_path / "b.ckpt")
    for name in ("a.pt", "b.ckpt"):
        modules = read_network(tmp_path / name).modules
        assert set(modules["lora_te_text_model_encoder_layers_0_mlp_fc1"]) == {"lora_up.weight", "lora_down.weight"}


class Adapted(nn.Module):
    """Modules of the three kinds under names that diffusers gives."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.proj_in, block.proj_out = nn.Linear(6, 8), nn.Linear(8, 6)
        self.mid_block = nn.Module()
        self.mid_block.attentions = nn.ModuleList([block])
        self.mid_block.resnets = nn.ModuleList([nn.Module()])
        self.mid_block.resnets[0].conv1 = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        block = self.mid_block.attentions[0]
        return self.mid_block.resnets[0].conv1(block.proj_out(block.proj_in(x.transpose(1, -1))).transpose(1, -1))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LoraConfig", {"lora_alpha": 3}),
        ("LoraConfig", {"lora_alpha": 3, "use_rslora": True}),
        ("LoraConfig", {"lora_alpha": 3, "use_dora": True}),
        ("LoraConfig", {"lora_alpha": 3, "alpha_pattern": {"proj_in": 7}}),
        ("LoHaConfig", {"alpha": 3}),
        ("LoHaConfig", {"alpha": 3, "use_effective_conv2d": True}),
        ("LoKrConfig", {"alpha": 3}),
    ],
)
def test_what_peft_saves_does_the_same_here(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    import peft

    torch.manual_seed(0)
    plain, x = Adapted(), torch.randn(2, 6, 5, 5)
    weights = {name: each.detach().clone() for name, each in plain.named_parameters()}
    config = getattr(peft, kind)(r=2, target_modules=["proj_in", "proj_out", "conv1"], **options)
    theirs: Any = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if any(part in name for part in ("lora_", "hada_", "lokr_")):
                parameter.add_(torch.rand(parameter.shape))
    expected = theirs(x)
    theirs.save_pretrained(tmp_path)
    file = read_network(tmp_path / "adapter_model.safetensors")
    assert file.network.dialect == "PEFT" and not file.network.unknown and len(file.modules) == 3
    ours = Adapted()
    ours.load_state_dict(weights)
    paths = {f"lora_unet_{path.replace('.', '_')}": module for path, module in ours.named_modules()}
    with torch.no_grad():
        for key, tensors in file.modules.items():
            paths[key].weight += module_delta(tensors).delta(paths[key].weight)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("suffix", "shape", "stays"),
    [
        ("lora_magnitude_vector", (4,), (4,)),
        ("lora_magnitude_vector.weight", (1, 4, 1, 1), (4,)),
        ("lora_magnitude_vector.default", (1, 4, 1, 1), (4,)),
        ("dora_scale", (1, 4), (1, 4)),  # OneTrainer's lengths by input, in a file that is diffusers' otherwise
        ("dora_scale", (4, 1), (4, 1)),
    ],
)
def test_lengths_of_dora_keep_their_axis(suffix: str, shape: tuple[int, ...], stays: tuple[int, ...]) -> None:
    (module,) = canonical_modules({f"unet.{DOTTED_Q}.{suffix}": torch.ones(shape)}, {}).modules.values()
    assert module["dora_scale"].shape == stays


def test_alpha_in_diffusers_metadata(tmp_path: Path) -> None:
    tensors = {
        f"unet.{DOTTED_Q}.lora_A.weight": torch.ones(2, 4),
        f"unet.{DOTTED_Q}.lora_B.weight": torch.ones(3, 2),
    }
    (tmp_path / "a.safetensors").write_bytes(
        save(tensors, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 2, "text_encoder.r": 4})})
    )
    assert read_network(tmp_path / "a.safetensors").modules[f"lora_unet_{TO_Q}"]["alpha"].item() == 8
    assert (
        "alpha" not in canonical_modules(tensors, {"lora_adapter_metadata": "[" * 100_000}).modules[f"lora_unet_{TO_Q}"]
    )


PIECES = ["lora_", "lycoris_", "unet", "te1", "_", ".", ":", "down_blocks", "output_blocks", "attentions", "1", "12"]
PIECES += ["encoder.layers", "lora_A", "lora_magnitude_vector", "default", "weight", "alpha", "base_model.model."]
PIECES += ["bundle_emb."]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=9).map("".join), max_size=4),
    st.sampled_from([(), (1,), (1, 2), (2, 1, 1, 1)]),
)
def test_every_tensor_is_somewhere_whatever_its_name(names: list[str], shape: tuple[int, ...]) -> None:
    tensors = {name: torch.ones(shape) for name in names}
    found = canonical_modules(tensors, {})
    parts = [*found.modules.values(), *found.embeddings.values()]
    assert sum(map(len, parts)) + len(found.unknown) == len(tensors)
