"""Networks in a checkpoint's file: what is kept, what is told, what is refused, and what it takes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.checkpoint.safetensors_file import read_header
from lora_ext.host.standalone.random_checkpoint import TINY_KINDS, TINY_TEXT, write_random_kind
from lora_ext.host.standalone.unet import SD1_UNET
from lora_ext.merge.tools import make_settings
from lora_ext.merge.work import OutputFile, Work
from lora_ext.networks.file import read_network, write_network
from lora_ext.protocols import Cancelled, Control, UserError
from tests.merge.checkpoint_merging import TOOL, KindPath, different, run, write

LARGEST = 4096
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(tmp_path: Path, tiny_kind_path: KindPath) -> Path:
    """A checkpoint in a folder of its own, in fp16, without its larger tensors, with all that others have beside."""
    whole = load_file(tiny_kind_path("sd1"))
    tensors = {name: each.half() for name, each in whole.items() if each.numel() <= LARGEST}
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["alphas_cumprod"] = torch.linspace(0.999, 0.0047, 1000)
    tensors["model_ema.diffusion_modelout2bias"] = torch.full((4,), 0.25)
    tensors["v_pred"] = torch.tensor([])
    metadata = {"modelspec.sai_model_spec": "1.0.0", "modelspec.title": "base", "modelspec.hash_sha256": "0x1",
                "modelspec.author": "somebody", "modelspec.unet_dtype": "fp16", "ours": "äöü"}  # fmt: skip
    path = tmp_path / "base" / "base.safetensors"
    path.parent.mkdir()
    save_file(tensors, path, metadata)
    return path


@pytest.fixture
def net(tmp_path: Path, base: Path) -> Path:
    (tmp_path / "networks").mkdir()
    return write(tmp_path / "networks", base, "LoRA")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "merged.safetensors"


def test_what_no_network_changes_stays_as_it_is(base: Path, net: Path, out: Path) -> None:
    run(checkpoint=str(base), network=str(net), out=str(out))
    before, after = load_file(base), load_file(out)
    assert {name: (each.dtype, each.shape) for name, each in after.items()} == {
        name: (each.dtype, each.shape) for name, each in before.items()
    }
    changed = different(before, after)
    assert len(changed) == len(read_network(net).modules)
    assert all(name.startswith(("model.diffusion_model.", "cond_stage_model.")) for name in changed)
    assert all(name.endswith(".weight") for name in changed)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_sum_is_rounded_once(base: Path, net: Path, out: Path, precision: str) -> None:
    run(checkpoint=str(base), network=f"{net}:0.3", precision=precision, out=str(out))
    before, after = load_file(base), load_file(out)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    modules = read_network(net).modules["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"]
    delta = modules["lora_up.weight"].double() @ modules["lora_down.weight"].double() * 2 / 4
    exact = before[name].double() + 0.3 * delta
    step = exact.abs() * {"fp32": 2**-23, "fp16": 2**-11, "bf16": 2**-8}[precision]
    assert ((after[name].double() - exact).abs() <= step * 1.001 + 1e-6 * exact.abs().max()).all()
    kept = {"cond_stage_model.transformer.text_model.embeddings.position_ids", "alphas_cumprod", "v_pred"}
    assert {each.dtype for key, each in after.items() if key not in kept} == {dtype}
    assert {key: after[key].dtype for key in kept} == {key: before[key].dtype for key in kept}
    assert different({key: before[key] for key in kept}, {key: after[key] for key in kept}) == set()


def test_metadata_and_where_it_comes_from(base: Path, net: Path, out: Path) -> None:
    values = {"checkpoint": str(base), "network": f"{net}:0.3", "out": str(out), "te_weight": "0.1", "lbw": "MIDD"}
    run(**values)
    metadata = read_header(out).metadata
    sources = json.loads(metadata.pop("lw_sources"))
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    network_hash = read_header(net).metadata["sshs_model_hash"]
    assert sources == [
        {"name": "base.safetensors", "hash": digest},
        {"name": "net.safetensors", "hash": network_hash, "weight": 0.3, "te_weight": 0.1, "lbw": "MIDD"},
    ]
    assert metadata == {
        "format": "pt", "modelspec.sai_model_spec": "1.0.0", "modelspec.title": "merged",
        "modelspec.merged_from": "base, net", "modelspec.author": "somebody", "modelspec.unet_dtype": "fp16",
        "ours": "äöü",
    }  # fmt: skip
    first = out.read_bytes()
    run(**values, overwrite=True)
    assert out.read_bytes() == first


def test_a_pickled_checkpoint(base: Path, net: Path, out: Path) -> None:
    pickled = base.with_suffix(".ckpt")
    torch.save({"state_dict": {name: each.clone() for name, each in load_file(base).items()}, "step": 7}, pickled)
    run(checkpoint=str(base), network=str(net), out=str(out))
    expected = load_file(out)
    run(checkpoint=str(pickled), network=str(net), out=str(out), overwrite=True)
    assert different(load_file(out), expected) == set()


def test_a_file_with_code_in_it_is_not_opened(base: Path, net: Path, out: Path) -> None:
    pickled = base.with_suffix(".ckpt")
    torch.save({"state_dict": {}, "code": Work}, pickled)
    with pytest.raises(UserError, match="holds more than weights"):
        run(checkpoint=str(pickled), network=str(net), out=str(out))


def test_the_yaml_comes_along(base: Path, net: Path, out: Path) -> None:
    base.with_suffix(".yaml").write_text("model: one", encoding="utf-8")
    values = {"checkpoint": str(base), "network": str(net), "out": str(out)}
    promised = TOOL.preview(make_settings(TOOL, values), Work()).files
    report = run(**values)
    assert (
        promised == report.files == [OutputFile(path, path.stat().st_size) for path in (out, out.with_suffix(".yaml"))]
    )
    beside = out.with_suffix(".yaml")
    assert beside.read_text(encoding="utf-8") == "model: one"
    assert report.facts["How it is built"] == "base.yaml is copied beside it"
    out.unlink()
    run(**values)
    out.unlink()
    beside.write_text("model: another", encoding="utf-8")
    with pytest.raises(UserError, match="merged.yaml is there already"):
        run(**values)
    assert beside.read_text(encoding="utf-8") == "model: another" and not out.exists()
    run(**values, overwrite=True)
    assert beside.read_text(encoding="utf-8") == "model: one"


def test_a_yaml_of_something_else_is_not_taken_for_the_outputs(base: Path, net: Path, out: Path) -> None:
    beside = out.with_suffix(".yaml")
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text("model: another", encoding="utf-8")
    values = {"checkpoint": str(base), "network": str(net), "out": str(out)}
    with pytest.raises(UserError, match="merged.yaml is there already, and would be taken for the output's"):
        run(**values)
    assert not out.exists()
    report = run(**values, overwrite=True)
    assert "merged.yaml is there already and is taken for the output's" in "\n".join(report.warnings)
    assert beside.read_text(encoding="utf-8") == "model: another"


def test_a_pickled_tensor_that_no_safetensors_holds(base: Path, net: Path, out: Path) -> None:
    pickled = base.with_suffix(".ckpt")
    tensors = {name: each.clone() for name, each in load_file(base).items()}
    torch.save(tensors | {"odd.one": torch.zeros(2, dtype=torch.complex64)}, pickled)
    with pytest.raises(UserError, match=r"odd\.one is of the type complex64, which no \.safetensors holds"):
        run(checkpoint=str(pickled), network=str(net), out=str(out))


def test_a_folder_in_the_place_of_the_yaml(base: Path, net: Path, out: Path) -> None:
    base.with_suffix(".yaml").write_text("model: one", encoding="utf-8")
    out.with_suffix(".yaml").mkdir(parents=True)
    with pytest.raises(UserError, match="merged.yaml cannot be read"):
        run(checkpoint=str(base), network=str(net), out=str(out))
    assert not out.exists()


def test_what_a_person_is_told(base: Path, net: Path, out: Path) -> None:
    base.with_suffix(".vae.pt").touch()
    tensors = {
        **read_network(net).tensors,
        "bundle_emb.word.string_to_param.*": torch.ones(2, 32),
        "odd": torch.ones(1),
    }
    key = "lora_te_text_model_encoder_layers_9_mlp_fc1"
    tensors |= {f"{key}.lora_up.weight": torch.ones(64, 1), f"{key}.lora_down.weight": torch.ones(1, 32)}
    write_network(net, tensors, {}, "float")
    report = TOOL.preview(make_settings(TOOL, {"checkpoint": str(base), "network": str(net), "out": str(out)}), Work())
    assert not out.parent.exists()
    assert dict(report.facts) == {
        "Checkpoint": "base.safetensors, SD1", "Network 1": "net × 1: 182 modules (LoRA)",
        "Weights changed": "182 of 770 tensors", "Precision": "as stored",
    }  # fmt: skip
    assert report.warnings == [
        f"net: the checkpoint does not have 1 of its 183 modules ({key})",
        "net: the embeddings in it (word) are left out; they work with the file itself",
        "net: 1 of its tensors are of no known network and are left out (odd)",
        "1 tensors are averaged copies of the U-Net (model_ema.…), which stay as they are",
        "base.vae.pt is not copied: choose it as the VAE of the merged checkpoint",
    ]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no checkpoint": ({"checkpoint": ""}, "no checkpoint is given"),
    "no network": ({"network": " "}, "no network is given"),
    "no output": ({"out": ""}, "no output is given"),
    "unknown checkpoint": ({"checkpoint": "nowhere"}, "'nowhere': there is no such checkpoint"),
    "a network as checkpoint": ({"checkpoint": "{net}"}, "seems to be a LoRA"),
    "onto the checkpoint": ({"out": "{base}", "overwrite": True}, "is read and would be written over"),
    "onto the network": ({"out": "{net}", "overwrite": True}, "is read and would be written over"),
    "another ending": ({"out": "merged.ckpt"}, "files are written as .safetensors"),
    "nothing to do": ({"network": "{net}:0"}, "nothing would change"),
    "weights that cancel out": ({"network": "{net}:0.5\n{net}:-0.5"}, "nothing would change"),
    "numbers for SDXL": ({"lbw": "1,1,1,1,1,1,1,1,1,1,1,1"}, "is not for SD1 checkpoints"),
    "too large for fp16": ({"network": "{net}:1e9"}, "do not fit float16: take smaller weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words(tmp_path: Path, base: Path, net: Path, out: Path, case: str) -> None:
    values, words = REFUSED[case]
    files = {path: path.read_bytes() for path in (base, net)}
    given = {"checkpoint": "{base}", "network": "{net}", "out": "{out}", **values}
    filled = {
        name: value.format(base=base, net=net, out=out) if isinstance(value, str) else value
        for name, value in given.items()
    }
    with pytest.raises(UserError, match=words):
        run(**filled)
    assert {path: path.read_bytes() for path in (base, net)} == files
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(files)


def test_a_damaged_checkpoint(base: Path, net: Path, out: Path) -> None:
    tensors = load_file(base)
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, base)
    with pytest.raises(UserError, match=f"{re.escape(name)} of the checkpoint has values that are no numbers"):
        run(checkpoint=str(base), network=str(net), out=str(out))
    assert not out.parent.exists()


@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa"])
def test_weights_of_eight_bits(tmp_path: Path, base: Path, out: Path, algorithm: str) -> None:
    """Rounded once from the sum to the nearest of their few values."""
    net = write(tmp_path, base, algorithm)
    tensors = {
        name: each.to(torch.float8_e4m3fn) if name.startswith("model.diffusion_model.") else each
        for name, each in load_file(base).items()
    }
    save_file(tensors, base)
    values = {"checkpoint": str(base), "network": f"{net}:0.5"}
    run(**values, precision="fp32", out=str(out))
    exact = load_file(out)
    run(**values, out=str(out), overwrite=True)
    assert (
        different(
            {name: each.float() for name, each in load_file(out).items()},
            {name: each.to(tensors[name].dtype).float() for name, each in exact.items()},
        )
        == set()
    )


def test_an_output_that_is_there_is_kept(base: Path, net: Path, out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already"):
        run(checkpoint=str(base), network=str(net), out=str(out))
    assert out.read_bytes() == b"mine"


def test_networks_for_another_kind_are_refused_by_name(tmp_path: Path, tiny_kind_path: KindPath, out: Path) -> None:
    base, narrow = tiny_kind_path("sd1"), tmp_path / "narrow.safetensors"
    write(tmp_path, tiny_kind_path("sdxl"), "LoRA", "for-sdxl")
    second = read_network(write(tmp_path, tiny_kind_path("sd2"), "LoRA", "for-sd2"))
    write_network(second.path, second.tensors, {"ss_base_model_version": "sd_v2"}, "float")
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    write_network(narrow, {f"{key}.lora_up.weight": torch.ones(64, 1), f"{key}.lora_down.weight": torch.ones(1, 20)},
                  {}, "float")  # fmt: skip
    for path, reason in ((tmp_path / "for-sdxl.safetensors", "SDXL, not SD1"), (second.path, "SD2, not SD1"),
                         (narrow, "1 of 1 modules have other sizes")):  # fmt: skip
        words = f"{re.escape(str(path))}: it (is|was made) for another kind of checkpoint than tiny-sd1.*{reason}"
        with pytest.raises(UserError, match=words):
            run(checkpoint=str(base), network=str(path), out=str(out))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_stopped_it_leaves_nothing(base: Path, net: Path, out: Path, share: float) -> None:
    base.with_suffix(".yaml").write_text("model: one", encoding="utf-8")
    control = Control()
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= share * total:
            control.cancel()

    with pytest.raises(Cancelled):
        run(Work(control=control, progress=progress), checkpoint=str(base), network=str(net), out=str(out))
    assert seen and not out.parent.exists()


def test_progress_is_told_in_bytes(base: Path, net: Path, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(Work(progress=lambda *told: seen.append(told)), checkpoint=str(base), network=str(net), out=str(out))
    size = out.stat().st_size - read_header(out).data_start
    assert seen[0] == (0, size) and seen[-1] == (size, size) and seen == sorted(seen)


def test_a_checkpoint_that_changes_meanwhile(base: Path, net: Path, out: Path) -> None:
    content = base.read_bytes()

    def progress(done: int, total: int) -> None:
        if done == total:
            base.write_bytes(content + b" ")

    with pytest.raises(UserError, match="base.safetensors was replaced by another program meanwhile"):
        run(Work(progress=progress), checkpoint=str(base), network=str(net), out=str(out))
    assert not out.parent.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of anonymous memory")
def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    """Beside the network no more than six of the largest weights in fp32, of a checkpoint of ten and more."""
    kind = replace(TINY_KINDS["sd1"], unet=replace(SD1_UNET, model_channels=64), clip=TINY_TEXT)
    base, net, out = (tmp_path / f"{name}.safetensors" for name in ("base", "net", "out"))
    write_random_kind(base, kind, torch.float16)
    file = open_checkpoint_file(base)
    tensors = {}
    for key, view in file.weights.items():
        if key.endswith(("_to_q", "_conv1")):
            tensors[f"{key}.lora_up.weight"] = torch.ones(view.shape[0], 32, *[1] * (len(view.shape) - 2))
            tensors[f"{key}.lora_down.weight"] = torch.ones(32, *view.shape[1:])
    write_network(net, tensors, {}, "float")
    largest = 4 * max(math.prod(shape) for shape in file.file.shapes.values())
    assert base.stat().st_size > 10 * largest
    program = f"""
import torch
from benchmarks.file_tools.timed import timed
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import Work
torch.set_num_threads(1)
tool = tool_named("merge-checkpoint")
settings = make_settings(tool, {{"checkpoint": {str(base)!r}, "network": {str(net)!r}, "out": {str(out)!r}}})
print(timed(lambda: tool.run(settings, Work()))["anonymous_mb"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    megabytes = float(done.stdout)
    assert 0 < megabytes < (net.stat().st_size + 6 * largest) / 1e6
