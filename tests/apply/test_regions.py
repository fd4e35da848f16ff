"""Networks that act in a region of the picture: what a mask does in every kind of module, and how it goes again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_ext.apply.active import OWNER, ActiveNetworks
from lora_ext.apply.schedule import tags_at
from lora_ext.apply.tags import LoraTag
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.module_names import checkpoint_weights, unet_module_names
from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.networks.file import write_network
from lora_ext.networks.library import NetworkLibrary
from lora_ext.networks.region_mask import RegionMask, is_spatial
from lora_ext.protocols import UserError

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
FIRST_BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
QUERY, CONTEXT_KEY = f"{BLOCK}_attn1_to_q", f"{BLOCK}_attn2_to_k"
POINTWISE = "lora_unet_down_blocks_0_attentions_0_proj_in"
CONVOLUTION = "lora_unet_down_blocks_1_resnets_0_conv1"
STRIDED = "lora_unet_down_blocks_0_downsamplers_0_conv"
NORM = "lora_unet_down_blocks_0_resnets_0_norm1"
LAYER_NORM = f"{BLOCK}_norm1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SPATIAL = (QUERY, POINTWISE, CONVOLUTION, STRIDED)

WHOLE = RegionMask.of(torch.ones(16, 16))
NOTHING = RegionMask.of(torch.zeros(16, 16))


def half(side: str) -> RegionMask:
    values = torch.zeros(64, 64)
    values[:, :32] = 1
    return RegionMask.of(values if side == "left" else values.flip(1))


class Setup:
    """A checkpoint, networks in a folder, and predictions with them."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.ledger = PatchLedger()
        self.active = ActiveNetworks(checkpoint, self.ledger, NetworkLibrary([folder]))
        self.weights = checkpoint_weights(checkpoint)
        self.base = {key: view.detach().clone() for key, view in self.weights.items()}
        generator = torch.Generator().manual_seed(5)
        self.latents = torch.randn(2, 4, 16, 16, generator=generator)
        self.states = torch.randn(2, 77, self.weights[CONTEXT_KEY].shape[1], generator=generator)

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        write_network(self.folder / f"{name}.safetensors", tensors, {}, "float")

    def write_lora(self, name: str, keys: Sequence[str], seed: int = 0) -> None:
        self.write(name, {key: tensor for each in keys for key, tensor in lora(self, each, seed).items()})

    def activate(self, *tags: LoraTag) -> None:
        assert self.active.activate(tags) == []

    @torch.no_grad()
    def predict(self, latents: Tensor | None = None) -> Tensor:
        latents = self.latents if latents is None else latents
        count = latents.shape[0]
        result: Tensor = self.checkpoint.unet(latents, torch.full((count,), 500), self.states[:count])
        return result

    def changed(self) -> set[str]:
        return {key for key, view in self.weights.items() if not torch.equal(view.detach(), self.base[key])}


def lora(setup: Setup, key: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out_size, *inputs = setup.weights[key].shape
    return {
        f"{key}.lora_up.weight": torch.randn(out_size, 2, *[1] * len(inputs[1:]), generator=generator) * 0.3,
        f"{key}.lora_down.weight": torch.randn(2, *inputs, generator=generator) * 0.3,
        f"{key}.alpha": torch.tensor(1.0),
    }


def dora(setup: Setup, key: str) -> dict[str, Tensor]:
    rows = setup.weights[key].shape[0]
    scale = torch.rand(rows, *[1] * (setup.weights[key].detach().ndim - 1), generator=torch.Generator().manual_seed(1))
    return {**lora(setup, key), f"{key}.dora_scale": scale + 0.5}


def loha(setup: Setup, key: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    out_size, columns = setup.weights[key].shape[0], setup.weights[key].detach()[0].numel()
    parts = {
        f"hada_w{number}_{side}": (out_size, 2) if side == "a" else (2, columns) for number in "12" for side in "ab"
    }
    tensors = {f"{key}.{name}": torch.randn(shape, generator=generator) * 0.5 for name, shape in parts.items()}
    return {**tensors, f"{key}.alpha": torch.tensor(2.0)}


def full(setup: Setup, key: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = setup.weights[key].shape
    weight = torch.randn(shape, generator=generator) * 0.1
    bias = setup.weights[key].bias
    return {f"{key}.diff": weight} | (
        {} if bias is None else {f"{key}.diff_b": torch.randn(shape[0], generator=generator)}
    )


def norm(setup: Setup, key: str) -> dict[str, Tensor]:
    size = setup.weights[key].shape[0]
    generator = torch.Generator().manual_seed(4)
    return {f"{key}.{name}": torch.randn(size, generator=generator) * 0.3 for name in ("w_norm", "b_norm")}


@pytest.fixture
def setup(checkpoint: Checkpoint, tmp_path: Path) -> Setup:
    return Setup(checkpoint, tmp_path)


KINDS = {
    "LoRA": [(lora, key) for key in SPATIAL],
    "DoRA": [(dora, key) for key in SPATIAL],
    "LoHa": [(loha, key) for key in SPATIAL],
    "full, with biases": [(full, key) for key in (POINTWISE, CONVOLUTION, STRIDED, QUERY)],
    "norms": [(norm, NORM), (norm, LAYER_NORM)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_over_everything_is_what_the_weights_do(setup: Setup, kind: str) -> None:
    """To rounding; and a mask over nothing changes nothing, bit for bit."""
    setup.write("cat", {name: tensor for make, key in KINDS[kind] for name, tensor in make(setup, key).items()})
    base = setup.predict()
    setup.activate(LoraTag("cat", 0.7))
    in_weights = setup.predict()
    assert (in_weights - base).abs().max() > 0.01
    setup.activate(LoraTag("cat", 0.7, region=WHOLE))
    assert setup.changed() == set()
    torch.testing.assert_close(setup.predict(), in_weights, rtol=1e-4, atol=2e-5)
    setup.activate(LoraTag("cat", 0.7, region=NOTHING))
    assert torch.equal(setup.predict(), base)


@pytest.mark.parametrize("key", [QUERY, POINTWISE, CONVOLUTION, STRIDED])
def test_each_half_of_a_modules_output_is_one_networks(setup: Setup, key: str) -> None:
    """Left of the middle as if only the left one were there, right of it as if only the right one were."""
    setup.write_lora("left", [key], seed=1)
    setup.write_lora("right", [key], seed=2)
    names = dict(zip(("left", "right"), (LoraTag("left"), LoraTag("right")), strict=True))
    outputs: dict[str, Tensor] = {}
    module = next(
        each
        for each in setup.checkpoint.unet.modules()
        if each._parameters.get("weight") is setup.weights[key].parameter
    )
    inputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, given, output: inputs.append(given[0]))
    setup.predict()
    hook.remove()
    for name, tag in names.items():
        setup.activate(tag)
        outputs[name] = as_map(module(inputs[0]), 16)
    setup.activate(*(replace(tag, region=half(name)) for name, tag in names.items()))
    setup.checkpoint.unet(setup.latents, torch.full((2,), 500), setup.states)  # tells the size of the latents
    both = as_map(module(inputs[0]), 16)
    middle = both.shape[-1] // 2
    torch.testing.assert_close(both[..., :middle], outputs["left"][..., :middle], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[..., middle:], outputs["right"][..., middle:], rtol=1e-5, atol=1e-5)
    assert (outputs["left"] - outputs["right"]).abs().max() > 0.01


def as_map(output: Tensor, side: int) -> Tensor:
    """(b, tokens, c) as (b, c, h, w); other outputs as they are."""
    if output.ndim == 4:
        return output.detach()
    while side * side > output.shape[1]:
        side //= 2
    return output.detach().transpose(1, 2).reshape(output.shape[0], -1, side, side)


def test_a_picture_does_not_depend_on_its_batch(setup: Setup) -> None:
    """Nor on whether the predictions with and without the text are made together."""
    setup.write_lora("cat", SPATIAL)
    setup.activate(LoraTag("cat", region=half("left")))
    together = setup.predict()
    torch.testing.assert_close(setup.predict(setup.latents[:1]), together[:1], rtol=1e-4, atol=1e-5)


def test_other_sizes_of_pictures_in_between(setup: Setup) -> None:
    """As with hires fix: the mask stands for the same part of a larger picture, of other proportions too."""
    setup.write_lora("cat", SPATIAL)
    for shape in ((16, 16), (32, 32), (24, 8)):
        latents = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(1))
        setup.activate(LoraTag("cat"))
        in_weights = setup.predict(latents)
        setup.activate(LoraTag("cat", region=WHOLE))
        torch.testing.assert_close(setup.predict(latents), in_weights, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd1-inpainting", "sd2", "sdxl"])
def test_every_module_of_every_base(tiny_kind_path: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """A network of all matrices and convolutions: a mask over everything is what the weights do."""
    checkpoint = load_checkpoint(tiny_kind_path(kind), torch.device("cpu"), torch.float32).checkpoint
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for key, view in checkpoint_weights(checkpoint).items():
        if key.startswith("lora_unet") and len(view.shape) > 1:
            rows, columns, *kernel = view.shape
            inputs = 4 if columns == 9 else columns  # networks change four channels of an inpainting checkpoint's nine
            tensors[f"{key}.lora_up.weight"] = torch.randn(rows, 2, *[1] * len(kernel), generator=generator)
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, inputs, *kernel, generator=generator) * 0.003
    write_network(tmp_path / "all.safetensors", tensors, {}, "float")
    config = checkpoint.unet.config
    latents = torch.randn(2, config.in_channels, 16, 24, generator=generator)
    states = torch.randn(2, 77, config.context_dim, generator=generator)
    y = torch.randn(2, config.adm_in_channels, generator=generator) if config.adm_in_channels else None
    active = ActiveNetworks(checkpoint, PatchLedger(), NetworkLibrary([tmp_path]))
    predictions = []
    with torch.no_grad():
        for tags in ([], [LoraTag("all")], [LoraTag("all", region=WHOLE)]):
            assert active.activate(tags) == []
            predictions.append(checkpoint.unet(latents, torch.full((2,), 500), states, y))
    base, in_weights, masked = predictions
    assert (in_weights - base).abs().max() > 0.01
    torch.testing.assert_close(masked, in_weights, rtol=1e-3, atol=1e-4)


def test_what_has_no_place_in_the_picture_is_in_the_weights(setup: Setup) -> None:
    setup.write_lora("cat", [TEXT, CONTEXT_KEY, QUERY])
    setup.activate(LoraTag("cat", 0.5, region=NOTHING))
    assert setup.changed() == {TEXT, CONTEXT_KEY}
    assert [is_spatial(key) for key in (TEXT, CONTEXT_KEY, "lora_unet_time_embed_0", QUERY)] == [
        False,
        False,
        False,
        True,
    ]
    assert not is_spatial("lora_unet_input_blocks_1_0_emb_layers_1")
    assert not is_spatial("lora_unet_down_blocks_0_resnets_0_time_emb_proj")


def test_masked_and_unmasked_networks_together(setup: Setup) -> None:
    """DoRA's part is computed from the untouched weight, whatever another network has put into it."""
    setup.write("dora", dora(setup, QUERY))
    setup.write_lora("cat", [QUERY, CONVOLUTION], seed=9)
    setup.activate(LoraTag("cat"), LoraTag("dora"))
    in_weights = setup.predict()
    setup.activate(LoraTag("cat"), LoraTag("dora", region=WHOLE))
    torch.testing.assert_close(setup.predict(), in_weights, rtol=1e-4, atol=2e-5)


def test_steps_and_block_weights_go_with_masks(setup: Setup) -> None:
    setup.write_lora("cat", [QUERY, CONVOLUTION])
    base = setup.predict()
    tag = LoraTag("cat", stop=1, region=WHOLE)
    setup.activate(*tags_at([tag], 0))
    assert not torch.equal(setup.predict(), base)
    setup.activate(*tags_at([tag], 1))
    assert torch.equal(setup.predict(), base)


def forwards(setup: Setup) -> list[str]:
    return [name for name, module in setup.checkpoint.unet.named_modules() if "forward" in module.__dict__]


def test_nothing_is_left_behind(setup: Setup) -> None:
    setup.write_lora("cat", SPATIAL)
    base = setup.predict()
    for leave in (
        setup.active.deactivate,
        lambda: setup.activate(),
        lambda: setup.ledger.exclusive("training").__enter__(),
    ):
        setup.activate(LoraTag("cat", region=WHOLE))
        assert len(forwards(setup)) == 4
        leave()
        assert forwards(setup) == []
        assert not any(module._forward_pre_hooks for module in setup.checkpoint.unet.modules())
        assert torch.equal(setup.predict(), base)


def test_a_part_that_cannot_be_made_leaves_its_network_out(setup: Setup) -> None:
    """The others stay, and nothing of it is left over any forward."""
    setup.write_lora("cat", [CONVOLUTION])
    setup.activate(LoraTag("cat", region=WHOLE))
    expected = setup.predict()
    broken = dora(setup, QUERY)
    broken[f"{QUERY}.dora_scale"] = torch.zeros(3, 1)
    setup.write("broken", {**lora(setup, POINTWISE), **broken})
    (message,) = setup.active.activate([LoraTag("cat", region=WHOLE), LoraTag("broken", region=WHOLE)])
    assert message.startswith("broken is left out: ") and QUERY in message
    assert len(forwards(setup)) == len(setup.checkpoint.unet._forward_pre_hooks) == 1
    assert torch.equal(setup.predict(), expected)


def test_an_attachment_that_fails_leaves_every_weight_as_it_was(setup: Setup) -> None:
    class Failing:
        def attach(self, original: object) -> None:
            raise ValueError("no room")

        def detach(self) -> None:
            raise AssertionError("it never was attached")

    setup.write_lora("cat", [QUERY])
    setup.activate(LoraTag("cat"))
    assert setup.changed() == {QUERY}
    with pytest.raises(ValueError, match="no room"):
        setup.ledger.patch(OWNER, {}, Failing())
    assert (setup.changed(), setup.ledger.owner, setup.ledger.patched) == (set(), None, 0)


def test_a_forward_that_was_there_before_comes_back(setup: Setup) -> None:
    module = setup.checkpoint.unet.get_submodule("input_blocks.1.1.proj_in")
    own = module.forward
    module.forward = lambda x: own(x) * 2  # type: ignore[method-assign]
    before, base = module.__dict__["forward"], setup.predict()
    setup.write_lora("cat", [POINTWISE])
    setup.activate(LoraTag("cat", region=NOTHING))
    assert module.__dict__["forward"] is not before
    assert torch.equal(setup.predict(), base)
    setup.active.deactivate()
    assert module.__dict__["forward"] is before


def test_what_is_put_over_a_mask_stays_and_the_mask_goes(setup: Setup) -> None:
    """Another extension's forward over ours; and once more over what is left of it."""
    module = setup.checkpoint.unet.get_submodule("input_blocks.1.1.proj_in")
    setup.write_lora("cat", [POINTWISE, CONVOLUTION])
    base = setup.predict()
    for _ in range(2):
        setup.activate(LoraTag("cat", region=WHOLE))
        assert not torch.equal(setup.predict(), base)
        below = module.forward
        module.forward = lambda x, below=below: below(x)  # type: ignore[method-assign]
        setup.active.deactivate()
        assert torch.equal(setup.predict(), base)
        assert forwards(setup) == ["input_blocks.1.1.proj_in"]


def test_a_class_whose_forward_is_replaced_meanwhile(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the WebUI casts by hand, where a GPU has no autocast: on from one call of the model to the next."""
    setup.write_lora("cat", [CONVOLUTION])
    setup.activate(LoraTag("cat", region=NOTHING))
    own, called = nn.Conv2d.forward, []
    convolution = setup.checkpoint.unet.get_submodule(unet_module_names(setup.checkpoint.unet, "SD1")[CONVOLUTION])
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: (called.append(self), own(self, x))[1])
    setup.predict()
    assert convolution in called


def test_a_unet_whose_forward_was_replaced(setup: Setup) -> None:
    """As ControlNet does it, on the instance and from before or after."""
    unet = setup.checkpoint.unet
    own = unet.forward
    setup.write_lora("cat", SPATIAL)
    setup.activate(LoraTag("cat"))
    in_weights = setup.predict()
    setup.activate(LoraTag("cat", region=WHOLE))
    unet.forward = lambda x, timesteps=None, context=None: own(x, timesteps, context)  # type: ignore[method-assign]
    torch.testing.assert_close(setup.predict(), in_weights, rtol=1e-4, atol=2e-5)
    setup.active.deactivate()
    setup.activate(LoraTag("cat", region=WHOLE))
    torch.testing.assert_close(setup.predict(), in_weights, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("level", ["input_blocks.1.1", "middle_block.1"])
def test_pictures_one_behind_the_other_in_an_attention(setup: Setup, level: str) -> None:
    """As ControlNet's reference_only has it: each of them has the mask."""
    setup.write_lora("cat", [f"{name}_attn1_to_k" for name in (BLOCK, FIRST_BLOCK)])
    key = setup.checkpoint.unet.get_submodule(f"{level}.transformer_blocks.0.attn1.to_k")
    seen: list[Tensor] = []
    hook = key.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    setup.activate(LoraTag("cat", region=half("left")))
    setup.predict()
    hook.remove()
    expected = key(seen[0])
    assert not torch.equal(expected, type(key).forward(key, seen[0]))
    for count in (2, 4):
        several = key(torch.cat([seen[0]] * count, dim=1))
        torch.testing.assert_close(several, torch.cat([expected] * count, dim=1))


def test_places_taken_together_are_told(setup: Setup) -> None:
    """As token merging does it, which takes some of the tokens of an attention together."""
    setup.write_lora("cat", [QUERY])
    setup.activate(LoraTag("cat", region=WHOLE))
    setup.predict()
    query = setup.checkpoint.unet.get_submodule("middle_block.1.transformer_blocks.0.attn1.to_q")
    assert isinstance(query, nn.Linear)
    with pytest.raises(UserError, match="region masks do not go with .* at latents of 16x16; switch token merging"):
        query(torch.randn(1, 13, query.in_features))
