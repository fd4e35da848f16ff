"""Tokens that a network moves, against transformers' own encoder with the changed weights put in by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_ext.checkpoint.module_names import text_weights
from lora_ext.checkpoint.text.bpe import clip_tokenizer, token_texts
from lora_ext.checkpoint.text_part import TextPart
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.host.standalone.loader import load_checkpoint, load_text_encoders
from lora_ext.host.text_parts import borrowed_text, stored_text
from lora_ext.merge import interrogate
from lora_ext.merge.interrogate import token_distances
from lora_ext.merge.tools import make_settings, tool_named
from lora_ext.merge.work import ToolReport, Work
from lora_ext.networks.file import write_network
from lora_ext.networks.weight_delta import module_delta
from lora_ext.networks.weight_patch import Share, patches_of
from lora_ext.protocols import Cancelled, Control, UserError

CPU = torch.device("cpu")
TOKENS = torch.tensor([320, 2368, 0, 49405])
BOS, EOS = 49406, 49407


def network_for(part: TextPart) -> dict[str, dict[str, Tensor]]:
    """A network of rank 2 for the attention and MLP layers of all text encoders."""
    generator = torch.Generator().manual_seed(5)
    modules = {}
    for key, view in text_weights(part.encoders).items():
        up, down = (torch.randn(n, generator=generator) for n in ((view.shape[0], 2), (2, view.shape[1])))
        modules[key] = {"lora_up.weight": up * 0.05, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    return modules


def patches(part: TextPart, modules: dict[str, dict[str, Tensor]]) -> Any:
    weights = text_weights(part.encoders)
    return patches_of(Share(key, 1.0, None, weights[key], module_delta(each)) for key, each in modules.items())


def write(path: Path, modules: dict[str, dict[str, Tensor]]) -> Path:
    tensors = {f"{key}.{suffix}": tensor for key, each in modules.items() for suffix, tensor in each.items()}
    write_network(path, tensors, {}, "float")
    return path


def run(network: Path, checkpoint: Path, work: Work | None = None, **values: Any) -> ToolReport:
    tool = tool_named("interrogate")
    settings = make_settings(tool, {"file": str(network), "checkpoint": str(checkpoint), **values})
    report = tool.run(settings, work or Work(open_text=lambda text: stored_text(Path(text), CPU)))
    assert isinstance(report, ToolReport)
    return report


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_distances_are_those_of_transformers_with_the_changed_weights(
    tiny_kind_path: Callable[[str], Path], clip_skip: int
) -> None:
    part = load_text_encoders(tiny_kind_path("sd1"), CPU)
    modules = network_for(part)
    original = part.encoders[0].module
    changed: Any = copy.deepcopy(original)
    before = {name: each.clone() for name, each in original.named_parameters()}
    with torch.no_grad():
        for key, each in modules.items():
            name = key.removeprefix("lora_te_text_model_encoder_layers_").replace("_self_attn_", ".self_attn.")
            weight = changed.get_parameter(f"text_model.encoder.layers.{name.replace('_mlp_', '.mlp.')}.weight")
            weight += 0.5 * each["lora_up.weight"] @ each["lora_down.weight"]
    ids = torch.stack([torch.full_like(TOKENS, BOS), TOKENS, torch.full_like(TOKENS, EOS)], dim=1)
    with torch.no_grad():
        hidden = [model(ids, output_hidden_states=True).hidden_states[-clip_skip] for model in (original, changed)]
        old, new = (original.text_model.final_layer_norm(each) for each in hidden)  # type: ignore[union-attr,operator]
    told: list[tuple[int, int]] = []
    found = token_distances(part, patches(part, modules), TOKENS, clip_skip, lambda *step: told.append(step))
    assert float(found.min()) > 0.01
    torch.testing.assert_close(found[:, 0], (new - old).abs().mean(dim=(1, 2)), rtol=1e-5, atol=1e-7)
    assert told == [(0, 8), (4, 8), (8, 8)]
    assert all(torch.equal(each, before[name]) for name, each in original.named_parameters())


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_three_tokens_of_openclip_are_encoded_as_within_a_whole_chunk(
    tiny_kind_path: Callable[[str], Path], kind: str
) -> None:
    part = load_text_encoders(tiny_kind_path(kind), CPU)
    assert [encoder.key_prefix for encoder in part.encoders] == (
        ["lora_te"] if kind == "sd2" else ["lora_te1", "lora_te2"]
    )
    for encoder in part.encoders:
        ids = torch.full((1, 1, 77), EOS)
        ids[0, 0, :2] = torch.tensor([BOS, 2368])
        with torch.no_grad():
            whole, three = encoder.encode(ids), encoder.encode(ids[:, :, :3])
        torch.testing.assert_close(three, whole[:, :3], rtol=1e-5, atol=1e-6)
    found = token_distances(part, patches(part, network_for(part)), TOKENS, 1, lambda done, total: None)
    assert found.shape == (4, len(part.encoders)) and float(found.min()) > 0.001


def test_encoders_by_themselves_are_those_of_the_loaded_checkpoint(tiny_kind_path: Callable[[str], Path]) -> None:
    path = tiny_kind_path("sdxl")
    part, loaded = load_text_encoders(path, CPU), load_checkpoint(path, CPU, torch.float32).checkpoint
    assert (part.name, part.architecture) == (loaded.name, loaded.architecture)
    for alone, within in zip(part.encoders, loaded.text_encoders, strict=True):
        ids = alone.tokenize(["a cat"], 75)
        assert torch.equal(alone.encode(ids), within.encode(ids))


def test_the_most_moved_tokens_come_first(
    tiny_kind_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrogate, "vocabulary_size", lambda module: 300)
    monkeypatch.setattr(interrogate, "_BLOCK", 128)
    path = tiny_kind_path("sdxl")
    part = load_text_encoders(path, CPU)
    modules = network_for(part)
    report = run(write(tmp_path / "net.safetensors", modules), path, top=3)
    tokens = report.as_json()["tokens"]
    distances = token_distances(part, patches(part, modules), torch.arange(300), 1, lambda done, total: None)
    moved = distances.mean(dim=1)  # both encoders are of one width here
    assert [each["id"] for each in tokens] == moved.argsort(descending=True)[:3].tolist()
    assert [each["distance"] for each in tokens] == pytest.approx(moved.sort(descending=True)[0][:3].tolist(), rel=1e-5)
    assert set(tokens[0]["by_encoder"]) == {"first text encoder", "second text encoder"}
    assert list(report.facts)[2] == f"1. {token_texts()[tokens[0]['id']]}"
    assert report.facts["checkpoint"] == "tiny-sdxl"


def test_the_loaded_checkpoint_is_borrowed_and_given_back(
    tiny_host: StandaloneHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrogate, "vocabulary_size", lambda module: 64)
    encoder = tiny_host.loaded.checkpoint.text_encoders[0]
    before = [each.clone() for each in encoder.module.parameters()]
    path = tiny_host.loaded.checkpoint.path
    assert path is not None
    with borrowed_text(tiny_host, path, CPU) as part:
        network = write(tmp_path / "net.safetensors", network_for(part))
    work = Work(open_text=lambda text: borrowed_text(tiny_host, path, CPU))
    assert len(run(network, Path("loaded"), work).as_json()["tokens"]) == 20
    control = Control()
    stopped = Work(control=control, progress=lambda *step: control.cancel(), open_text=work.open_text)
    with pytest.raises(Cancelled):
        run(network, Path("loaded"), stopped)
    assert all(torch.equal(each, old) for each, old in zip(encoder.module.parameters(), before, strict=True))
    assert tiny_host.loaded.checkpoint.ledger.owner is None


def test_another_checkpoint_than_the_loaded_one_is_read_from_its_file(
    tiny_host: StandaloneHost, tiny_kind_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with borrowed_text(tiny_host, tiny_kind_path("sdxl"), CPU) as part:  # it was loaded when the work began
        assert part.name == "tiny-sdxl" and tiny_host.loaded.checkpoint.ledger.owner is None

    def refuse() -> Any:
        raise UserError("the WebUI was started with --lowvram")

    monkeypatch.setattr(tiny_host, "borrow", refuse)
    path = tiny_host.loaded.checkpoint.path
    assert path is not None
    with borrowed_text(tiny_host, path, CPU) as part:
        assert part.name == path.stem


def test_what_cannot_be_told_is_said(tiny_kind_path: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = {"lora_up.weight": torch.ones(8, 2), "lora_down.weight": torch.ones(2, 8)}
    unet = write(tmp_path / "unet.safetensors", {"lora_unet_mid_block_attentions_0_proj_in": tensors})
    with pytest.raises(UserError, match="has no modules for the text encoder"):
        run(unet, tiny_kind_path("sd1"))
    modules = network_for(load_text_encoders(tiny_kind_path("sdxl"), CPU))
    sdxl = write(tmp_path / "sdxl.safetensors", {key: each for key, each in modules.items() if "te2" in key})
    with pytest.raises(UserError, match="the checkpoint has none of its"):
        run(sdxl, tiny_kind_path("sd1"))
    with pytest.raises(UserError, match="text encoders cannot be opened here"):
        run(sdxl, tiny_kind_path("sd1"), Work())


def test_tokens_have_the_texts_that_the_tokenizer_gives_them() -> None:
    texts = token_texts()
    assert len(texts) == 49408 and texts[BOS] == "<|startoftext|>"
    tokenizer: Any = clip_tokenizer()
    for word in ("cat", "photograph", "café", "8"):
        (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert texts[token] == word
    pieces = tokenizer("supercalifragilistic", add_special_tokens=False)["input_ids"]
    assert "".join(texts[token].removesuffix("…") for token in pieces) == "supercalifragilistic"
    assert all(texts[token].endswith("…") for token in pieces[:-1]) and not texts[pieces[-1]].endswith("…")
