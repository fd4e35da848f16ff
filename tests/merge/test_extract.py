"""The network that was merged into a checkpoint comes out of it again; what cannot be compared is refused in words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_ext.checkpoint.file_weights import CheckpointFile, checkpoint_in, open_checkpoint_file
from lora_ext.checkpoint.safetensors_file import read_metadata
from lora_ext.checkpoint.tensor_files import TensorFile
from lora_ext.config.tools.extract import ExtractSettings
from lora_ext.host.standalone.random_checkpoint import FULL_KINDS, TINY_KINDS, RandomKind, _parts
from lora_ext.merge.checkpoint_pair import CheckpointPair
from lora_ext.merge.extract import TOOL
from lora_ext.merge.tools import make_settings
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import read_network
from lora_ext.networks.weight_delta import module_delta
from lora_ext.protocols import Cancelled, Control, UserError

DATA = Path(__file__).parents[1] / "data"
RANK = 8
Change = Callable[[dict[str, Tensor]], None]


@pytest.fixture
def bases(tiny_kind_path: Callable[[str], Path]) -> dict[str, Path]:
    """Tiny checkpoints by kind; nobody changes them."""
    return {name: tiny_kind_path(name) for name in TINY_KINDS}


def known_network(checkpoint: CheckpointFile, rank: int = RANK, size: float = 0.3) -> dict[str, tuple[Tensor, Tensor]]:
    """Module key → random factors (out, rank), (rank, in·kh·kw) with ‖ΔW‖ of about `size`, for every matrix."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for key, view in checkpoint.weights.items():
        if len(view.shape) > 1:
            out, inside = view.shape[0], view.shape[1:].numel()
            up = torch.randn(out, rank, generator=generator) / out**0.5
            down = torch.randn(rank, inside, generator=generator) / inside**0.5
            found[key] = (up * size / rank**0.5, down)
    return found


def write_tuned(base: Path, out: Path, dtype: torch.dtype = torch.float32, change: Change | None = None) -> Path:
    """`base` with the known network in it, or changed in another way, and its YAML beside it."""
    tensors = load_file(base)
    if change is None:
        checkpoint = open_checkpoint_file(base)
        for key, (up, down) in known_network(checkpoint).items():
            part = checkpoint.weights[key].of(tensors[checkpoint.tensor_of(key)])
            part += (up @ down).reshape(part.shape)
    else:
        change(tensors)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, out)
    out.with_suffix(".yaml").write_bytes(base.with_suffix(".yaml").read_bytes())
    return out


def extract(base: Path, tuned: Path, **values: Any) -> ToolReport:
    """Run the tool as a form would, text encoders always taken, in fp32, ranks as in the known network."""
    given = {"rank": RANK, "min_diff": 0, "precision": "fp32", "out": str(tuned.with_name("network.safetensors"))}
    return TOOL.run(make_settings(TOOL, {**given, "base": str(base), "tuned": str(tuned), **values}), Work())


def delta(tensors: dict[str, Tensor]) -> Tensor:
    """ΔW (out, in·kh·kw) of a module in a file, in fp64."""
    factors = module_delta(tensors).low_rank
    assert factors is not None
    return factors.scale * (factors.up.double() @ factors.down.double())


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "conv_rank"), [("sd1", RANK), ("sd2", None), ("sdxl", RANK), ("sd1-inpainting", None)]
)
def test_a_merged_network_comes_out_of_an_fp32_checkpoint(
    bases: dict[str, Path], tmp_path: Path, kind: str, conv_rank: int | None
) -> None:
    tuned = write_tuned(bases[kind], tmp_path / "tuned.safetensors")
    report = extract(bases[kind], tuned, conv_rank=conv_rank)
    known = known_network(open_checkpoint_file(bases[kind]))
    found = read_network(tmp_path / "network.safetensors").modules
    assert len(found) == len(report.modules) > 200
    kernels = [key for key, tensors in found.items() if tensors["lora_down.weight"].shape[2:].numel() > 1]
    assert (len(kernels) > 30) == (conv_rank is not None)
    for key, tensors in found.items():
        up, down = known[key]
        assert relative(delta(tensors), up.double() @ down.double()) < 1e-4, key
        assert tensors["alpha"] == tensors["lora_down.weight"].shape[0]
    assert report.details["relative_error"] < 1e-5


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("suffix", ["lora", "locon"])
def test_full_size_checkpoints_have_the_modules_of_sd_scripts(name: str, suffix: str) -> None:
    with gzip.open(DATA / f"{name}_{suffix}.json.gz", "rt", encoding="utf-8") as file:
        expected = set(json.load(file))
    checkpoint = by_header(FULL_KINDS[name])
    assert set(CheckpointPair(checkpoint, checkpoint, None).keys(True, True, suffix == "locon")) == expected


def by_header(kind: RandomKind) -> CheckpointFile:
    """A checkpoint of a kind without values."""
    shapes = {
        prefix + name: tuple(parameter.shape)
        for prefix, module in _parts(kind)
        for name, parameter in module.named_parameters()
    }
    dtypes = dict.fromkeys(shapes, torch.float16)

    def read(names: set[str]) -> Iterator[tuple[str, Tensor]]:
        raise AssertionError(names)

    return checkpoint_in(TensorFile(Path("none.safetensors"), shapes, dtypes, read))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_from_an_fp16_checkpoint_it_is_as_near_as_rounding_allows(
    bases: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    """The floor is what numpy's decomposition in fp64 makes of the difference of the rounded weights."""
    import numpy as np

    half = tmp_path / "half.safetensors"
    write_tuned(bases["sd1"], half, torch.float16, lambda tensors: None)
    tuned = write_tuned(half, tmp_path / "tuned.safetensors", torch.float16)
    extract(half, tuned, precision=precision)
    before, after = load_file(half), load_file(tuned)
    checkpoint = open_checkpoint_file(half)
    known = known_network(checkpoint)
    found = read_network(tmp_path / "network.safetensors").modules
    ours, floor = 0.0, 0.0
    for key, tensors in found.items():
        view, name = checkpoint.weights[key], checkpoint.tensor_of(key)
        change = (view.of(after[name]).double() - view.of(before[name]).double()).flatten(1)
        left, values, right = np.linalg.svd(change.numpy(), full_matrices=False)
        best = torch.from_numpy(left[:, :RANK] * values[:RANK] @ right[:RANK])
        up, down = known[key]
        merged = up.double() @ down.double()
        ours += float((delta(tensors) - merged).square().sum())
        floor += float((best - merged).square().sum())
        if precision == "fp32":
            assert relative(delta(tensors), change) <= relative(best, change) * (1 + 1e-4), key
    assert floor > 0 and ours**0.5 < 1.2 * floor**0.5


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "amount"), [("threshold", 0.08), ("ratio", 0.6), ("quantile", 0.5)])
def test_ranks_by_mode_follow_the_singular_values(
    bases: dict[str, Path], tmp_path: Path, mode: str, amount: float
) -> None:
    tuned = write_tuned(bases["sd1"], tmp_path / "tuned.safetensors")
    report = extract(bases["sd1"], tuned, mode=mode, rank="none", **{mode: amount})
    known = known_network(open_checkpoint_file(bases["sd1"]))
    ranks = {}
    for module in report.modules:
        up, down = known[module.key]
        values = torch.linalg.svdvals(up.double() @ down.double())[:RANK]
        counted = {
            "threshold": int((values > 0.08).sum()),
            "ratio": int((values > 0.6 * values[0]).sum()),
            "quantile": int((values.cumsum(0) < 0.5 * values.sum()).sum()),
        }
        ranks[module.key] = module.rank_after
        assert module.rank_after == max(counted[mode], 1), module.key
    assert len(set(ranks.values())) > 1
    metadata = read_metadata(tmp_path / "network.safetensors")
    assert metadata["ss_network_dim"] == "Dynamic"
    capped = extract(bases["sd1"], tuned, mode=mode, rank=2, overwrite=True, **{mode: amount})
    assert {module.rank_after for module in capped.modules} <= {1, 2}


def test_metadata_are_those_of_sd_scripts_and_name_both_files(bases: dict[str, Path], tmp_path: Path) -> None:
    import hashlib

    tuned = write_tuned(bases["sd1"], tmp_path / "tuned.safetensors")
    extract(bases["sd1"], tuned, conv_rank=4)
    metadata = read_metadata(tmp_path / "network.safetensors")
    # sd-scripts' extract_lora_from_models.py with --dim 8 --conv_dim 4
    theirs = {
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "network",
        "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "epsilon",
    }
    assert {key: metadata[key] for key in theirs} == theirs
    assert float(metadata["ss_network_alpha"]) == 8
    arguments = json.loads(metadata["ss_network_args"])
    assert (arguments["conv_dim"], float(arguments["conv_alpha"])) == ("4", 4)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (tuned, bases["sd1"])]
    assert json.loads(metadata["lw_sources"]) == [
        {"name": "tuned.safetensors", "hash": hashes[0], "weight": 1.0},
        {"name": "tiny-sd1.safetensors", "hash": hashes[1], "weight": -1.0},
    ]
    assert metadata["ss_new_sd_model_hash"] == hashes[1]


def test_what_no_module_holds_is_told_with_its_share(bases: dict[str, Path], tmp_path: Path) -> None:
    bias, norm = "model.diffusion_model.out.2.bias", "model.diffusion_model.out.0.weight"
    weight = "model.diffusion_model.middle_block.1.proj_in.weight"
    vae = "first_stage_model.decoder.conv_in.bias"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[bias][0] += 1.0
        tensors[norm][0] += 2.0
        tensors[vae][0] += 9.0
        tensors[weight][0, 0] += 2.0

    tuned = write_tuned(bases["sd1"], tmp_path / "tuned.safetensors", change=change)
    report = extract(bases["sd1"], tuned)
    assert [module.key for module in report.modules] == ["lora_unet_mid_block_attentions_0_proj_in"]
    assert report.details["left_out"] == {"biases": pytest.approx(1 / 9), "norms": pytest.approx(4 / 9)}
    assert report.facts["Not in the network"] == "norms 44.44%, biases 11.11%"
    assert any("VAE differs" in words for words in report.warnings)
    assert not any("conv_rank" in words for words in report.warnings)
    assert any("191 modules are the same in both" in words for words in report.warnings)
    assert any("text encoders are the same in both" in words for words in report.warnings)


def test_convolutions_that_are_left_out_are_told_until_they_are_taken(bases: dict[str, Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.diffusion_model.middle_block.1.proj_in.weight"][0, 0] += 1.0
        tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"][0, 0, 1, 1] += 3.0

    tuned = write_tuned(bases["sd1"], tmp_path / "tuned.safetensors", change=change)
    left_out = extract(bases["sd1"], tuned)
    assert left_out.details["left_out"] == {"convolutions": pytest.approx(0.9)}
    assert any("90% of the change is in convolutions" in words for words in left_out.warnings)
    taken = extract(bases["sd1"], tuned, conv_rank=1, overwrite=True)
    assert taken.facts["Not in the network"] == "nothing else differs"
    assert not any("conv_rank" in words for words in taken.warnings)


def test_no_convolutions_are_offered_where_the_text_encoder_alone_is_asked_for(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"][0, 0] += 1.0
        tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"][0, 0, 1, 1] += 3.0

    report = extract(bases["sd1"], write_tuned(bases["sd1"], tmp_path / "tuned.safetensors", change=change), what="te")
    assert report.facts["Not in the network"] == "convolutions 90.00%"
    assert not any("conv_rank" in words for words in report.warnings)


def test_text_encoders_that_hardly_differ_are_left_out_and_told(bases: dict[str, Path], tmp_path: Path) -> None:
    name = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][3, 5] += 0.0078125
        tensors["model.diffusion_model.middle_block.1.proj_in.weight"][0, 0] += 1.0

    tuned = write_tuned(bases["sd1"], tmp_path / "tuned.safetensors", change=change)
    report = extract(bases["sd1"], tuned, min_diff=0.01)
    assert len(report.modules) == 1
    assert any("differ by 0.00781 at most, less than min_diff = 0.01" in words for words in report.warnings)
    assert len(extract(bases["sd1"], tuned, min_diff=0.007, overwrite=True).modules) == 2
    with pytest.raises(UserError, match="in the text encoders alone, and there by 0.00781"):
        extract(bases["sd1"], tuned, what="te", min_diff=0.01, overwrite=True)


def test_the_clamp_is_that_of_sd_scripts(bases: dict[str, Path], tmp_path: Path) -> None:
    tuned = write_tuned(bases["sd1"], tmp_path / "tuned.safetensors")
    extract(bases["sd1"], tuned, clamp_quantile=0.99)
    known = known_network(open_checkpoint_file(bases["sd1"]))
    modules = read_network(tmp_path / "network.safetensors").modules
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    left, values, right = torch.linalg.svd(known[key][0] @ known[key][1], full_matrices=False)
    up, down = left[:, :RANK] * values[:RANK], right[:RANK]
    bound = torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99).item()
    found = modules[key]
    largest = max(float(found[name].abs().max()) for name in ("lora_up.weight", "lora_down.weight"))
    assert largest == pytest.approx(bound, rel=0.02)  # vectors may have the other sign, which moves the quantile
    assert relative(found["lora_up.weight"].abs(), up.clamp(-bound, bound).abs()) < 0.02


def test_a_preview_has_the_curves_and_writes_nothing(bases: dict[str, Path], tmp_path: Path) -> None:
    tuned = write_tuned(bases["sd1"], tmp_path / "tuned.safetensors")
    before = sorted(tmp_path.iterdir())
    settings = ExtractSettings(str(bases["sd1"]), str(tuned), rank=4, min_diff=0, out=str(tmp_path / "out.safetensors"))
    assert TOOL.preview is not None
    report = TOOL.preview(settings, Work())
    assert sorted(tmp_path.iterdir()) == before
    known = known_network(open_checkpoint_file(bases["sd1"]))
    for module in report.modules:
        assert module.singular_values is not None and module.kept is not None
        up, down = known[module.key]
        expected = torch.linalg.svdvals(up @ down)
        torch.testing.assert_close(module.singular_values[:RANK], expected[:RANK], rtol=1e-4, atol=1e-5)
        share = float(expected[:4].square().sum() / expected.square().sum())
        assert module.kept == pytest.approx(share, abs=1e-3)  # the factors are rounded to fp16
    TOOL.run(settings, Work())
    written = (tmp_path / "out.safetensors").stat().st_size
    assert 0 < report.files[0].size < written < report.files[0].size + 5_000  # and the metadata


def test_told_to_stop_it_leaves_nothing_behind(bases: dict[str, Path], tmp_path: Path) -> None:
    tuned = write_tuned(bases["sd1"], tmp_path / "tuned.safetensors")
    before = sorted(tmp_path.iterdir())
    control, seen = Control(), []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done == total // 2:
            control.stop()

    settings = ExtractSettings(str(bases["sd1"]), str(tuned), min_diff=0, out=str(tmp_path / "out.safetensors"))
    with pytest.raises(Cancelled):
        TOOL.run(settings, Work(control=control, progress=progress))
    assert sorted(tmp_path.iterdir()) == before
    assert seen[-1][0] == seen[-1][1] // 2 > 100
