"""OpenCLIP's text tower against transformers, and its fused attention as three linear layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from lora_ext.checkpoint.text.clip import HFClipTextEncoder
from lora_ext.checkpoint.text.fused_attention import explicit_forward, fused_projections
from lora_ext.checkpoint.text.openclip import OpenClipConfig, OpenClipText, OpenClipTextEncoder, explicit_attention
from lora_ext.host.standalone.random_checkpoint import fill_randomly
from lora_ext.protocols import UserError

WIDTH, LAYERS, HEADS, PROJECTION = 32, 4, 2, 24
CONFIG = OpenClipConfig(WIDTH, LAYERS, HEADS, projection=PROJECTION)
LONG = ", ".join(["a very long walk"] * 20)  # 100 tokens


@pytest.fixture(scope="module")
def tower() -> OpenClipText:
    module = OpenClipText(CONFIG).eval().requires_grad_(False)
    fill_randomly(module, 5)
    return module


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an OpenCLIP text tower under transformers' names."""
    found = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
        "text_projection.weight": state["text_projection"].t(),
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for number in range(LAYERS):
        ours, theirs = f"transformer.resblocks.{number}", f"text_model.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            for part, name in {**parts, "attn.out_proj": "self_attn.out_proj"}.items():
                found[f"{theirs}.{name}.{kind}"] = state[f"{ours}.{part}.{kind}"]
            for letter, rows in zip("qkv", state[f"{ours}.attn.in_proj_{kind}"].chunk(3), strict=True):
                found[f"{theirs}.self_attn.{letter}_proj.{kind}"] = rows
    return found


@pytest.fixture(scope="module")
def transformers_model(tower: OpenClipText) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        projection_dim=PROJECTION, hidden_act="gelu",
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    missing, unexpected = model.load_state_dict(converted(tower.state_dict()), strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing)
    return model


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_sd2_takes_the_normed_states_before_the_last_layer(
    tower: OpenClipText, transformers_model: CLIPTextModelWithProjection, clip_skip: int
) -> None:
    encoder = OpenClipTextEncoder(tower)
    ids = encoder.tokenize(["a photo of a cat", ""])
    output = transformers_model(input_ids=ids[:, 0], output_hidden_states=True)
    expected = transformers_model.text_model.final_layer_norm(output.hidden_states[-1 - clip_skip])
    states, pooled = encoder.encode_pooled(ids, clip_skip)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)
    assert pooled is None and encoder.layers == 3
    with pytest.raises(UserError, match="clip_skip is 4; allowed are 1 to 3"):
        encoder.encode(ids, 4)


def test_sdxl_takes_them_as_they_are_and_pools_at_the_first_eos(
    tower: OpenClipText, transformers_model: CLIPTextModelWithProjection
) -> None:
    encoder = OpenClipTextEncoder(tower, "lora_te2", pools=True)
    ids = encoder.tokenize(["a photo of a cat", LONG], 150)
    output = transformers_model(input_ids=ids.flatten(0, 1), output_hidden_states=True)
    states, pooled = encoder.encode_pooled(ids)
    torch.testing.assert_close(states, output.hidden_states[-2].reshape(2, 154, WIDTH), atol=1e-5, rtol=0)
    assert pooled is not None and pooled.shape == (2, PROJECTION)
    torch.testing.assert_close(pooled, output.text_embeds[::2], atol=1e-5, rtol=0)
    assert encoder.encode(ids, 2).equal(states)


def test_a_file_without_its_last_layer_gives_the_same(tower: OpenClipText) -> None:
    shorter = OpenClipText(OpenClipConfig(WIDTH, LAYERS - 1, HEADS, projection=PROJECTION)).eval()
    shorter.load_state_dict({key: value for key, value in tower.state_dict().items() if "resblocks.3." not in key})
    whole, cut = OpenClipTextEncoder(tower), OpenClipTextEncoder(shorter, penultimate=False)
    ids = whole.tokenize(["a cat"])
    assert whole.layers == cut.layers == 3 and whole.encode(ids).equal(cut.encode(ids))


def test_chunks_are_padded_with_zero_and_prompts_equal_captions(tower: OpenClipText) -> None:
    encoder = OpenClipTextEncoder(tower, pools=True)
    assert encoder.tokenize(["cat"], 150)[0, :, :4].tolist() == [[49406, 2368, 49407, 0], [49406, 49407, 0, 0]]
    assert encoder.count_tokens("a (red:1.5) cat") == 9 and encoder.count_tokens("a (red:1.5) cat", weighted=True) == 3
    states, pooled = encoder.encode_pooled(encoder.tokenize(["a cat"]))
    prompt_states, prompt_pooled = encoder.encode_prompts_pooled(["a cat"])
    assert prompt_states.equal(states) and pooled is not None and prompt_pooled is not None
    assert prompt_pooled.equal(pooled) and prompt_pooled.equal(encoder.encode_prompts_pooled(["a (cat:1.5)"])[1])


def test_penultimate_clip_is_the_hidden_state_before_the_last() -> None:
    from transformers import CLIPTextModel

    config = CLIPTextConfig(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    module = CLIPTextModel(config).eval().requires_grad_(False)
    fill_randomly(module, 5)
    encoder = HFClipTextEncoder(module, "lora_te1", penultimate=True)
    ids = encoder.tokenize(["a cat"])
    expected = module(input_ids=ids[:, 0], output_hidden_states=True).hidden_states[2]
    assert encoder.encode(ids).equal(expected) and encoder.encode(ids, 2).equal(expected)


@pytest.fixture(params=[False, True], ids=["length first", "batch first"])
def attention(request: pytest.FixtureRequest) -> Iterator[nn.MultiheadAttention]:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=request.param).eval().requires_grad_(False)
    fill_randomly(module, 3)
    yield module


def test_explicit_attention_equals_torchs(attention: nn.MultiheadAttention) -> None:
    projections = fused_projections(attention)
    x = torch.randn(5, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    mask = torch.full((5, 5), -torch.inf).triu_(1)
    explicit = explicit_forward(attention, list(projections.values()))(x, x, x, need_weights=False, attn_mask=mask)[0]
    expected = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    torch.testing.assert_close(explicit, expected, atol=1e-6, rtol=0)


def test_projections_are_rows_of_the_weight_as_it_is_now(attention: nn.MultiheadAttention) -> None:
    key = fused_projections(attention)["k_proj"]
    assert isinstance(key, nn.Linear) and list(key.parameters()) == [] and list(key.children()) == []
    assert key.weight.data_ptr() == attention.in_proj_weight[WIDTH].data_ptr() and key.weight.shape == (WIDTH, WIDTH)
    attention.in_proj_weight.data = attention.in_proj_weight.data.to(torch.bfloat16)
    assert key.weight.dtype == torch.bfloat16 and key.rows == slice(WIDTH, 2 * WIDTH)


def test_what_lies_over_projections_has_a_say(tower: OpenClipText) -> None:
    """While captions are encoded always, in the module by itself inside of `explicit_attention` alone."""
    encoder = OpenClipTextEncoder(tower, pools=True)
    ids = encoder.tokenize(["a cat"])
    before = encoder.encode(ids)
    x = torch.randn(77, 1, WIDTH, generator=torch.Generator().manual_seed(1))
    block = tower.transformer.resblocks[1]
    fused = block(x)
    module = encoder.projections["transformer.resblocks.1.attn.q_proj"]
    original = module.forward
    module.__dict__["forward"] = lambda x: original(x) * 2
    try:
        assert not torch.allclose(encoder.encode(ids), before) and block(x).equal(fused)
        with explicit_attention([encoder]):
            assert not torch.allclose(block(x), fused)
            assert not torch.allclose(encoder.encode(ids), before)
            assert not torch.allclose(block(x), fused)
    finally:
        del module.__dict__["forward"]
    assert not [name for name, each in tower.named_modules() if "forward" in each.__dict__]
    assert encoder.encode(ids).equal(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["autocast", "bf16"])
def test_half_precision(tower: OpenClipText, dtype: torch.dtype) -> None:
    encoder = OpenClipTextEncoder(copy.deepcopy(tower).to(dtype), pools=True)
    ids = encoder.tokenize(["a cat"])
    expected = OpenClipTextEncoder(tower, pools=True).encode(ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        states = encoder.encode(ids)
    assert 0 < (states - expected).abs().max() < 0.1


def test_gradients_reach_every_projection_through_the_pooled_vector(tower: OpenClipText) -> None:
    encoder = OpenClipTextEncoder(tower, pools=True)
    factors = {}

    def scaled(path: str, forward: object) -> object:
        factors[path] = nn.Parameter(torch.ones(()))
        return lambda x: forward(x) * factors[path]  # type: ignore[operator]

    for path, module in encoder.projections.items():
        module.__dict__["forward"] = scaled(path, module.forward)
    try:
        with explicit_attention([encoder]):
            states, pooled = encoder.encode_pooled(encoder.tokenize(["a cat"]))
            assert pooled is not None
            (states.square().sum() + pooled.square().sum()).backward()
    finally:
        for module in encoder.projections.values():
            del module.__dict__["forward"]
    assert len(factors) == 12
    assert all(factor.grad is not None and factor.grad != 0 for factor in factors.values())
