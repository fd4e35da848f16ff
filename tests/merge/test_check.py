"""Every planted fault is found and named; networks as trainers write them are healthy."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_ext.checkpoint.file_weights import open_checkpoint_file
from lora_ext.merge.check import Checked, check_file
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import Work
from lora_ext.networks.file import read_network, write_network
from lora_ext.protocols import Cancelled, Control, UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "webui"))
from algorithm_files import ALGORITHMS, write_algorithm

UNET = [f"lora_unet_down_blocks_{b}_attentions_{a}_proj_in" for b in range(3) for a in range(2)]
TEXT = [f"lora_te_text_model_encoder_layers_{n}_mlp_fc{i}" for n in range(12) for i in (1, 2)]
METADATA = {"ss_network_dim": "4", "ss_network_alpha": "2", "ss_network_module": "networks.lora"}
FIRST = UNET[0]

Change = Callable[[dict[str, Tensor]], object]


def tensors_of(*keys: str, zero: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Rank 4 and alpha 2, of numbers about 0.05; up is 0 where the module was never trained."""
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Tensor] = {}
    for key in keys or (*UNET, *TEXT):
        up, down = (torch.randn(shape, generator=generator) * 0.05 for shape in ((8, 4), (4, 16)))
        found[f"{key}.lora_up.weight"] = up * 0 if key in zero else up
        found[f"{key}.lora_down.weight"], found[f"{key}.alpha"] = down, torch.tensor(2.0)
    return found


def checked(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Checked:
    """A file with these tensors, hashed as sd-scripts does, checked."""
    write_network(path / "net.safetensors", tensors, METADATA if metadata is None else metadata, "float")
    return check_file(path / "net.safetensors", None)


def kinds(result: Checked) -> list[str]:
    return sorted(finding.kind for finding in result.findings)


def texts(result: Checked) -> str:
    return "\n".join(finding.text for finding in result.findings)


def test_a_healthy_network_gives_no_findings(tmp_path: Path) -> None:
    result = checked(tmp_path, tensors_of())
    assert (result.verdict, result.findings) == ("healthy", ())
    assert result.facts["ranks"] == "4 (30)"
    assert result.facts["hash"] == "matches the tensors"
    assert result.facts["zeros"] == "0.00% of the numbers"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", ["lora_up.weight", "alpha"])
def test_values_that_are_no_numbers(tmp_path: Path, value: float, suffix: str) -> None:
    tensors = tensors_of()
    tensors[f"{FIRST}.{suffix}"].view(-1)[0] = value
    result = checked(tmp_path, tensors)
    assert (result.verdict, kinds(result)) == ("damaged", ["not a number"])
    assert result.findings[0].names == (FIRST,)
    assert f"1 values are no numbers (NaN or infinity), in {FIRST}.{suffix}" in texts(result)
    assert "repair" in texts(result)


@pytest.mark.parametrize(
    ("zero", "metadata", "verdict", "found"),
    [
        ((), {}, "healthy", []),
        (TEXT[-2:], {}, "healthy", ["clip skip"]),
        (TEXT[-2:], {"ss_clip_skip": "2"}, "healthy", ["clip skip"]),
        (TEXT[-4:], {"ss_clip_skip": "3"}, "healthy", ["clip skip"]),
        (TEXT[-4:], {"ss_clip_skip": "2"}, "doubtful", ["clip skip", "zeros"]),
        (TEXT[-2:], {"ss_clip_skip": "1"}, "doubtful", ["zeros"]),
        (TEXT[-2:], {"ss_clip_skip": "None"}, "doubtful", ["zeros"]),
        (TEXT[-1:], {"ss_clip_skip": "2"}, "doubtful", ["zeros"]),
        (TEXT[:2], {"ss_clip_skip": "2"}, "doubtful", ["zeros"]),
        (UNET[:1], {}, "doubtful", ["zeros"]),
        (TEXT, {"ss_text_encoder_lr": "0.0"}, "healthy", ["not trained"]),
        (TEXT, {"ss_text_encoder_lr": "1e-4"}, "doubtful", ["clip skip", "zeros"]),
        (UNET, {"ss_unet_lr": "0"}, "healthy", ["not trained"]),
        ((*UNET, *TEXT), {}, "doubtful", ["untrained"]),
    ],
)
def test_factors_of_zeros(
    tmp_path: Path, zero: list[str], metadata: dict[str, str], verdict: str, found: list[str]
) -> None:
    result = checked(tmp_path, tensors_of(zero=tuple(zero)), METADATA | metadata)
    assert (result.verdict, kinds(result)) == (verdict, found)


def test_sdxl_trains_the_last_layer_of_its_second_encoder_alone(tmp_path: Path) -> None:
    first, second = ([key.replace("lora_te_", f"lora_te{n}_") for key in TEXT] for n in (1, 2))
    result = checked(tmp_path, tensors_of(*first, *second, zero=tuple(first[-2:])))
    assert (result.verdict, kinds(result)) == ("healthy", ["clip skip"])
    result = checked(tmp_path, tensors_of(*first, *second, zero=tuple(second[-2:])))
    assert (result.verdict, kinds(result)) == ("doubtful", ["zeros"])


@pytest.mark.parametrize(
    ("rates", "untrained", "verdict"),
    [("[1e-05, 0.0]", 2, "healthy"), ("[0.0, 1e-05]", 1, "healthy"), ("[0.0, 1e-05]", 2, "doubtful")],
)
def test_each_text_encoder_has_a_learning_rate_of_its_own(
    tmp_path: Path, rates: str, untrained: int, verdict: str
) -> None:
    keys = {n: [key.replace("lora_te_", f"lora_te{n}_") for key in TEXT] for n in (1, 2)}
    tensors = tensors_of(*keys[1], *keys[2], zero=tuple(keys[untrained]))
    assert checked(tmp_path, tensors, METADATA | {"ss_text_encoder_lr": rates}).verdict == verdict


def _set_alpha(value: float, count: int = 1) -> Change:
    return lambda tensors: tensors.update({f"{key}.alpha": torch.tensor(value) for key in (*UNET, *TEXT)[:count]})


def _without_alpha(count: int) -> Change:
    return lambda tensors: [tensors.pop(f"{key}.alpha") for key in (*UNET, *TEXT)[:count]]


@pytest.mark.parametrize(
    ("change", "metadata", "verdict", "words"),
    [
        (_set_alpha(0.0), {}, "damaged", f"alpha 0, which switches it off in 1 module ({FIRST})"),
        (_set_alpha(-2.0), {}, "doubtful", "a negative alpha"),
        (_set_alpha(1e6), METADATA, "damaged", "no trainer writes (up to 1e+06)"),
        (_set_alpha(16.0, 30), METADATA, "doubtful", "another alpha than the metadata says in 30 modules "
         f"({TEXT[0]} 16, not 2): they act 8 times as strongly"),
        (_set_alpha(32.0), {}, "doubtful", f"an alpha far from the others' in 1 module ({FIRST}: 8 of its rank)"),
        (_without_alpha(1), {}, "doubtful", f"no alpha in 1 module of 30 ({FIRST}), though the others"),
        (_without_alpha(30), METADATA, "doubtful", "no alpha in 30 modules of 30"),
        (_without_alpha(30), METADATA, "doubtful", "they act 2 times as strongly as trained"),
        (_without_alpha(30), {}, "healthy", "no module has an alpha"),
        (_set_alpha(16.0, 30), {}, "healthy", ""),
        (_set_alpha(4.0, 30), METADATA | {"ss_network_args": '{"rs_lora": "True"}'}, "healthy", ""),
        (_set_alpha(2.0, 30), METADATA | {"ss_network_args": '{"rs_lora": "True"}'}, "healthy", ""),
        (_set_alpha(4.0, 30), METADATA | {"ss_network_alpha": "0"}, "healthy", ""),
        (_set_alpha(4.0, 9), METADATA | {"ss_network_args": '{"block_alphas": "1,2"}'}, "healthy", ""),
        (_set_alpha(4.0, 9), {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}, "healthy", ""),
    ],
)  # fmt: skip
def test_alphas(tmp_path: Path, change: Change, metadata: dict[str, str], verdict: str, words: str) -> None:
    tensors = tensors_of()
    change(tensors)
    result = checked(tmp_path, tensors, metadata)
    assert result.verdict == verdict
    assert words in texts(result) if words else not result.findings


def test_ranks_that_are_not_the_metadatas(tmp_path: Path) -> None:
    result = checked(tmp_path, tensors_of(), METADATA | {"ss_network_dim": "8"})
    assert (result.verdict, kinds(result)) == ("doubtful", ["rank"])
    assert "rank 4 in 30 modules, and the metadata says 8" in texts(result)


def test_a_hash_of_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_network(path, tensors_of(), METADATA, "float")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = check_file(path, None)
    assert (result.verdict, kinds(result)) == ("doubtful", ["hash"])
    assert result.facts["hash"] == "is that of other tensors"


def test_sd_scripts_gives_split_files_the_hash_of_another_rank(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    metadata = METADATA | {"ss_training_comment": "split from DyLoRA, rank 8 to 4; ", "sshs_model_hash": "0" * 64}
    save_file(tensors_of(), path, metadata)
    assert (check_file(path, None).verdict, kinds(check_file(path, None))) == ("healthy", ["hash"])


def test_a_hash_of_the_tensors_in_the_order_of_early_programs(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    first, second = torch.arange(4.0), torch.arange(6.0)
    tensors = {f"{FIRST}.lora_up.weight": first.view(4, 1), f"{FIRST}.lora_down.weight": second.view(1, 6)}
    data = b"".join(each.numpy().tobytes() for each in (first, second))  # today's order has down first
    header: dict[str, Any] = {"__metadata__": {"sshs_model_hash": hashlib.sha256(data).hexdigest()}}
    for (name, each), (begin, end) in zip(tensors.items(), ((0, 16), (16, 40)), strict=True):
        header[name] = {"dtype": "F32", "shape": list(each.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    result = check_file(path, None)
    assert (result.verdict, result.facts["hash"]) == ("healthy", "matches the tensors")
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[:-1] + b"\x01")
    assert kinds(check_file(path, None)) == ["hash", "no alphas"]


@pytest.mark.parametrize(
    ("comment", "verdict"),
    [
        ("dimension is resized from 32 to 4; mine", "healthy"),
        ("Dynamic resize with sv_ratio: 2.0 from 32; ", "healthy"),
        ("split from DyLoRA, rank 8 to 4; ", "healthy"),
        ("mine", "doubtful"),
    ],
)
def test_resizing_in_sd_scripts_leaves_the_rank_of_convolutions_in_the_metadata(
    tmp_path: Path, comment: str, verdict: str
) -> None:
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    kernel = {"lora_up.weight": torch.ones(8, 4, 1, 1), "lora_down.weight": torch.ones(4, 8, 3, 3)}
    tensors = tensors_of() | {f"{key}.{suffix}": each for suffix, each in kernel.items()}
    tensors[f"{key}.alpha"] = torch.tensor(2.0)
    said = {"ss_network_args": '{"conv_dim": "32", "conv_alpha": "16"}', "ss_training_comment": comment}
    assert checked(tmp_path, tensors, METADATA | said).verdict == verdict


def test_what_fp16_has_lost_and_would_lose(tmp_path: Path) -> None:
    tensors = tensors_of()
    tensors[f"{FIRST}.lora_up.weight"] *= 2e-7 / 0.05  # 2e-7 in standard deviation: an eighth is below 3e-8
    result = checked(tmp_path, tensors)
    assert (result.verdict, kinds(result)) == ("healthy", [])
    tensors[f"{FIRST}.lora_up.weight"] /= 10
    result = checked(tmp_path, tensors)
    assert (result.verdict, kinds(result)) == ("healthy", ["fp16 would underflow"])
    path = tmp_path / "half.safetensors"
    write_network(path, tensors, {}, "fp16")
    share = float((tensors[f"{FIRST}.lora_up.weight"].half() == 0).float().mean())
    result = check_file(path, None)
    assert 0.8 < share < 1 and (result.verdict, kinds(result)) == ("doubtful", ["fp16 underflow"])
    assert f"values lost to fp16 in 1 module ({FIRST}): up to {share:.2%} of a factor are 0" in texts(result)


def test_what_was_never_trained_is_no_underflow(tmp_path: Path) -> None:
    tensors = tensors_of()
    for key in (*UNET, *TEXT):
        tensors[f"{key}.lora_up.weight"][:, 2:] = 0  # ranks that a program added
        tensors[f"{key}.lora_down.weight"][:, ::2] = 0  # a kernel's edges, where pictures are one number wide
    write_network(tmp_path / "half.safetensors", tensors, METADATA, "fp16")
    assert check_file(tmp_path / "half.safetensors", None).verdict == "healthy"


def test_values_that_fp16_cannot_hold(tmp_path: Path) -> None:
    tensors = tensors_of()
    tensors[f"{FIRST}.lora_down.weight"][0, 0] = 7e4
    result = checked(tmp_path, tensors)
    assert (result.verdict, kinds(result)) == ("doubtful", ["fp16 overflow"])
    assert f"values up to 7e+04 in 1 module ({FIRST})" in texts(result)


@pytest.mark.parametrize(
    ("change", "verdict", "kind", "words"),
    [
        (lambda t: t.pop(f"{FIRST}.lora_up.weight"), "damaged", "tensors", f"({FIRST}: lora_up.weight missing"),
        (lambda t: t.update({f"{FIRST}.lora_up.weight": torch.ones(8, 3)}), "damaged", "tensors", "ranks 3, 4 do"),
        (lambda t: t.update({f"{FIRST}.alpha": torch.ones(2)}), "damaged", "tensors", "instead of being one number"),
        (lambda t: t.update({"unet.mid.lora_up": torch.ones(2)}), "doubtful", "unknown names", "(unet.mid.lora_up)"),
        (lambda t: t.update({f"{FIRST}.other_way": torch.ones(2)}), "doubtful", "unknown kind", "tensors other_way"),
        (lambda t: t.update({"lora_unet_input_blocks_1_1_proj_in.lora_up.weight": torch.ones(8, 4)}), "doubtful",
         "duplicates", "lora_unet_input_blocks_1_1_proj_in.lora_up.weight"),
    ],
)  # fmt: skip
def test_odd_tensors(tmp_path: Path, change: Change, verdict: str, kind: str, words: str) -> None:
    tensors = tensors_of()
    change(tensors)
    result = checked(tmp_path, tensors, METADATA | {"ss_base_model_version": "sd_v1"})
    assert (result.verdict, kinds(result)) == (verdict, [kind])
    assert words in texts(result)


def test_a_file_that_cannot_be_read_is_damaged_and_the_others_are_checked(tmp_path: Path) -> None:
    write_network(tmp_path / "whole.safetensors", tensors_of(), METADATA, "float")
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-100])
    (tmp_path / "empty.pt").write_bytes(b"")
    save_file({"model.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    names = ("cut.safetensors", "whole.safetensors", "empty.pt", "other.safetensors")
    report = run(tmp_path, *names)
    assert report.verdict == "damaged"
    assert dict(report.facts) == dict(zip(names, ("damaged", "healthy", "damaged", "doubtful"), strict=True))
    assert report.title == "4 files: 1 healthy, 1 doubtful, 2 damaged"
    assert any("cut off" in text for text in report.warnings)
    assert [each["verdict"] for each in report.as_json()["checked"]] == ["damaged", "healthy", "damaged", "doubtful"]


def run(folder: Path, *names: str, checkpoint: Path | None = None, work: Work | None = None):  # type: ignore[no-untyped-def]
    tool = tool_named("check")
    files = "\n".join(str(folder / name) for name in names)
    settings = make_settings(tool, {"files": files, "checkpoint": str(checkpoint or "")})
    return tool.run(settings, work or Work())


def test_what_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_network(tmp_path / "net.safetensors", tensors_of(), METADATA, "float")
    with pytest.raises(UserError, match="no such network"):
        run(tmp_path, "net.safetensors", "gone.safetensors")
    with pytest.raises(UserError, match="no file is given"):
        run(tmp_path)


def test_progress_and_cancel(tmp_path: Path) -> None:
    write_network(tmp_path / "net.safetensors", tensors_of(), METADATA, "float")
    told: list[tuple[int, int]] = []
    run(tmp_path, "net.safetensors", "net.safetensors", work=Work(progress=lambda *step: told.append(step)))
    assert told == [(0, 2000), (1000, 2000), (2000, 2000)]
    control = Control()
    control.cancel()
    with pytest.raises(Cancelled):
        run(tmp_path, "net.safetensors", work=Work(control=control))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_healthy_networks_of_every_algorithm(
    tmp_path: Path, tiny_kind_path: Callable[[str], Path], algorithm: str
) -> None:
    checkpoint = open_checkpoint_file(tiny_kind_path("sdxl"))
    weights = {key: each for key, each in checkpoint.values(set(checkpoint.weights)) if each.ndim > 1}
    write_algorithm(tmp_path / "net.safetensors", algorithm, weights)
    result = check_file(tmp_path / "net.safetensors", checkpoint)
    assert (result.verdict, result.findings) == ("healthy", ())
    assert result.strengths is not None
    assert all(0.05 < ratio < 0.6 for ratio in result.strengths.blocks.values())


def test_changes_are_measured_against_the_weights(tmp_path: Path, tiny_kind_path: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint_file(tiny_kind_path("sd1"))
    keys = [key for key in checkpoint.weights if key.endswith(("_to_q", "_q_proj"))]
    weights = dict(checkpoint.values(set(keys)))
    write_algorithm(tmp_path / "net.safetensors", "LoRA", weights)
    file = read_network(tmp_path / "net.safetensors")
    tensors = dict(file.tensors)
    tensors[f"{keys[-1]}.lora_up.weight"] = tensors[f"{keys[-1]}.lora_up.weight"] * 100
    write_network(tmp_path / "net.safetensors", tensors, {}, "float")
    result = check_file(tmp_path / "net.safetensors", checkpoint)
    assert (result.verdict, kinds(result)) == ("doubtful", ["strength"])
    assert result.findings[0].names == (keys[-1],)
    assert result.strengths is not None
    for key in keys:
        up, down = (tensors[f"{key}.lora_{way}.weight"].double() for way in ("up", "down"))
        expected = (up @ down * 0.5).norm() / weights[key].double().norm()
        assert result.strengths.modules[key] == pytest.approx(float(expected), rel=1e-6)
    assert set(result.strengths.blocks) >= {"BASE", "IN01", "MID", "OUT11"}


def test_a_network_of_other_sizes_is_not_told_to_be_for_the_checkpoints_own_kind(
    tmp_path: Path, tiny_kind_path: Callable[[str], Path]
) -> None:
    key = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    write_network(tmp_path / "net.safetensors", tensors_of(key), METADATA, "float")
    result = check_file(tmp_path / "net.safetensors", open_checkpoint_file(tiny_kind_path("sdxl")))
    assert (result.verdict, kinds(result)) == ("doubtful", ["wrong base"])
    assert "the network is for another kind of checkpoint, and tiny-sdxl is of the kind SDXL" in texts(result)


def test_networks_for_other_checkpoints(tmp_path: Path, tiny_kind_path: Callable[[str], Path]) -> None:
    sd1, sdxl = (open_checkpoint_file(tiny_kind_path(kind)) for kind in ("sd1", "sdxl"))
    weights = dict(sdxl.values({key for key in sdxl.weights if key.endswith(("_to_q", "_q_proj"))}))
    write_algorithm(tmp_path / "net.safetensors", "LoRA", weights)
    result = check_file(tmp_path / "net.safetensors", sd1)
    assert (result.verdict, kinds(result)) == ("doubtful", ["wrong base"])
    assert "the network is for SDXL checkpoints, and tiny-sd1 is of the kind SD1" in texts(result)
    file = read_network(tmp_path / "net.safetensors")
    tensors = {**file.tensors, "lora_unet_input_blocks_99_1_proj_in.alpha": torch.tensor(4.0)}
    for way, shape in (("up", (8, 4)), ("down", (4, 8))):
        tensors[f"lora_unet_input_blocks_99_1_proj_in.lora_{way}.weight"] = torch.ones(shape) * 0.01
    write_network(tmp_path / "net.safetensors", tensors, {}, "float")
    result = check_file(tmp_path / "net.safetensors", sdxl)
    assert (result.verdict, kinds(result)) == ("doubtful", ["unmatched"])
    assert "tiny-sdxl does not have 1 module of" in texts(result)
    assert result.findings[-1].names == ("lora_unet_input_blocks_99_1_proj_in",)
