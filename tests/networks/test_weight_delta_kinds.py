"""ΔW of every kind of network, against lycoris' own forward: the untouched layer plus ΔW is the layer with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_ext.networks.forms import stored_form
from lora_ext.networks.weight_delta import UnsupportedNetworkError, module_delta, weight_delta
from lora_ext.protocols import UserError

RANK, ALPHA = 4, 2.0
OUT, IN = 16, 24
KINDS = {"linear": (), "pointwise": (1, 1), "kernel": (3, 3)}

LOW_RANK = {
    "plain": {},
    "tucker": {"use_tucker": True},
    "dora by output": {"weight_decompose": True},
    "dora by input": {"weight_decompose": True, "wd_on_out": False},
    "rs": {"rs_lora": True},
    "scalar": {"use_scalar": True},
    "tucker, dora by input, rs and scalar": {
        "use_tucker": True,
        "weight_decompose": True,
        "wd_on_out": False,
        "rs_lora": True,
        "use_scalar": True,
    },
}
LOKR = {
    **{f"factored, {name}": {"factor": 2, "decompose_both": True, **options} for name, options in LOW_RANK.items()},
    **{f"small one whole, {name}": {"factor": 2, **options} for name, options in LOW_RANK.items()},
    "whole": {"full_matrix": True},
    "whole, dora by input": {"full_matrix": True, "weight_decompose": True, "wd_on_out": False},
    "unbalanced": {"factor": 2, "unbalanced_factorization": True},
}
ROTATIONS = {
    "plain": {},
    "constrained": {"constraint": 0.02},
    "rescaled": {"rescaled": True},
    "constrained and rescaled": {"constraint": 0.02, "rescaled": True},
}
VARIANTS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("locon", "LoConModule"): LOW_RANK,
    ("loha", "LohaModule"): LOW_RANK,
    ("lokr", "LokrModule"): LOKR,
    ("ia3", "IA3Module"): {"on output": {}, "on input": {"train_on_input": True}},
    ("full", "FullModule"): {"plain": {}},
    ("diag_oft", "DiagOFTModule"): ROTATIONS,
    ("boft", "ButterflyOFTModule"): ROTATIONS,
    ("glora", "GLoRAModule"): {"plain": {}, "scalar": {"use_scalar": True}},
}


def every_case() -> Iterator[Any]:
    for (module, name), variants in VARIANTS.items():
        for variant, options in variants.items():
            for kind in KINDS:
                yield pytest.param(module, name, options, kind, id=f"{module}, {variant}, {kind}")


def layer(kind: str) -> nn.Linear | nn.Conv2d:
    kernel = KINDS[kind]
    return nn.Conv2d(IN, OUT, kernel, padding=kernel[0] // 2) if kernel else nn.Linear(IN, OUT)


def signal(kind: str) -> Tensor:
    return torch.randn(2, IN, 5, 5) if KINDS[kind] else torch.randn(2, 5, IN)


def trained(module: str, name: str, options: dict[str, Any], base: nn.Module, multiplier: float) -> nn.Module:
    """An adapter of theirs over `base` as it is after some training."""
    made = getattr(import_module(f"lycoris.modules.{module}"), name)(
        "test", base, multiplier, lora_dim=RANK, alpha=ALPHA, **options
    )
    with torch.no_grad():
        for suffix, parameter in made.named_parameters():
            lengths = suffix in ("dora_scale", "rescale", "scalar")
            parameter.add_(torch.rand(parameter.shape) * 0.5 if lengths else torch.randn(parameter.shape) * 0.3)
    return made.eval()


def forward_with(theirs: Any, base: nn.Module, x: Tensor) -> Tensor:
    if theirs.name == "full":  # what it means; lycoris 3.4.0 cannot do it
        changed = copy.deepcopy(base)
        changed.weight.data += theirs.multiplier * theirs.weight
        changed.bias.data += theirs.multiplier * theirs.bias
        return changed(x).detach()
    theirs.apply_to()
    try:
        return base(x).detach()
    finally:
        theirs.restore()


def saved(theirs: Any) -> dict[str, Tensor]:
    tensors = theirs.custom_state_dict() or theirs.state_dict()
    return {suffix: tensor.detach().clone() for suffix, tensor in tensors.items()}


def forward_changed(base: nn.Module, tensors: dict[str, Tensor], x: Tensor, multiplier: float) -> Tensor:
    """The layer with our ΔW and Δb added, and then without them."""
    delta = module_delta(tensors)
    assert delta.fits(base.weight.shape)
    before = {name: getattr(base, name).detach().clone() for name in delta.parameters}
    with torch.no_grad():
        changes = {name: delta.delta(value, multiplier, parameter=name) for name, value in before.items()}
        for name, change in changes.items():
            assert change.shape == before[name].shape and change.dtype == torch.float32
            getattr(base, name).add_(change)
        changed = base(x)
        for name, value in before.items():
            getattr(base, name).copy_(value)
    return changed


@pytest.mark.parametrize(("module", "name", "options", "kind"), list(every_case()))
def test_delta_is_lycoris_forward(module: str, name: str, options: dict[str, Any], kind: str) -> None:
    torch.manual_seed(0)
    decomposed = "weight_decompose" in options or "rescaled" in options
    base, x = layer(kind), signal(kind)
    unchanged = base(x).detach()
    for multiplier in (1.0,) if decomposed else (1.0, 0.7):
        theirs = trained(module, name, options, base, multiplier)
        tensors = saved(theirs)
        if module == "full":
            tensors = {"diff": theirs.weight.detach().clone(), "diff_b": theirs.bias.detach().clone()}
        expected = forward_with(theirs, base, x)
        assert (expected - unchanged).abs().max() > 0.01
        changed = forward_changed(base, tensors, x, multiplier)
        torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["layer", "group"])
def test_norms_are_lycoris_forward(kind: str) -> None:
    from lycoris.modules.norms import NormModule

    base: nn.Module = nn.LayerNorm(IN) if kind == "layer" else nn.GroupNorm(4, IN)
    x = torch.randn(2, 5, IN) if kind == "layer" else torch.randn(2, IN, 5, 5)
    theirs = NormModule("test", base, 0.7)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    tensors = saved(theirs)
    assert set(tensors) == {"w_norm", "b_norm"}
    expected = forward_with(theirs.eval(), base, x)
    torch.testing.assert_close(forward_changed(base, tensors, x, 0.7), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "pointwise"])
def test_t_lora_is_lycoris_forward(kind: str) -> None:
    """Its start is made from the weight, as lycoris makes it when it loads such a file."""
    pytest.importorskip("lycoris.modules.tlora")
    torch.manual_seed(0)
    base, x = layer(kind), signal(kind)
    theirs = trained("tlora", "TLoraModule", {}, base, 1.0)
    tensors = saved(theirs)
    assert set(tensors) == {"q_layer.weight", "p_layer.weight", "lambda_layer", "alpha"}
    expected = forward_with(theirs, base, x)
    torch.testing.assert_close(forward_changed(base, tensors, x, 1.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_old_oft_files_hold_the_rotations(kind: str) -> None:
    """LyCORIS before 2.0 stored what its newer modules compute from the blocks."""
    torch.manual_seed(0)
    base, x = layer(kind), signal(kind)
    theirs = trained("diag_oft", "DiagOFTModule", {"constraint": 0.02}, base, 1.0)
    tensors = {"oft_diag": theirs.get_r().detach(), "alpha": torch.tensor(0.02)}
    torch.testing.assert_close(
        forward_changed(base, tensors, x, 1.0), forward_with(theirs, base, x), rtol=1e-4, atol=1e-4
    )


def test_glora_of_old_lycoris_has_its_factors_the_other_way_round() -> None:
    torch.manual_seed(0)
    base, x = layer("linear"), signal("linear")
    theirs = trained("glora", "GLoRAModule", {}, base, 1.0)
    new = saved(theirs)
    old = {**new, **{f"{name}{a}.weight": new[f"{name}{b}.weight"] for name in "ab" for a, b in ((1, 2), (2, 1))}}
    torch.testing.assert_close(forward_changed(base, old, x, 1.0), forward_with(theirs, base, x), rtol=1e-4, atol=1e-4)


def every_stored() -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """One module of every kind that changes a layer."""
    torch.manual_seed(0)
    found = {}
    for (module, name), variants in VARIANTS.items():
        for variant, options in variants.items():
            base = layer("kernel")
            theirs = trained(module, name, options, base, 1.0)
            tensors = saved(theirs)
            if module == "full":
                tensors = {"diff": theirs.weight.detach().clone(), "diff_b": theirs.bias.detach().clone()}
            found[f"{module} {variant}"] = base, tensors
    return found


def test_multiplier_0_is_no_change_and_small_ones_are_small_changes() -> None:
    for name, (base, tensors) in every_stored().items():
        delta = module_delta(tensors)
        weight = base.weight.detach()
        whole = delta.delta(weight).norm()
        assert delta.delta(weight, 0.0).norm() <= 1e-6 * whole, name
        assert 0 < delta.delta(weight, 0.01).norm() < 0.05 * whole, name


def test_halves_add_up_except_for_boft() -> None:
    for name, (base, tensors) in every_stored().items():
        delta = module_delta(tensors)
        weight = base.weight.detach()
        if not name.startswith("boft"):
            torch.testing.assert_close(2 * delta.delta(weight, 0.5), delta.delta(weight), rtol=1e-4, atol=1e-5)


def test_what_needs_the_weight_says_so() -> None:
    for name, (base, tensors) in every_stored().items():
        delta = module_delta(tensors)
        weight = base.weight.detach()
        other = torch.randn(weight.shape)
        differs = not torch.allclose(delta.delta(weight), delta.delta(other), atol=1e-6)
        assert differs == delta.needs_weight, name
        if delta.needs_weight:
            assert delta.low_rank is None
            continue
        torch.testing.assert_close(weight_delta(tensors).reshape(weight.shape), delta.delta(weight))
        if delta.low_rank is not None:
            factors = delta.low_rank
            product = (factors.scale * factors.up @ factors.down).reshape(factors.shape)
            torch.testing.assert_close(product, delta.delta(weight), rtol=1e-4, atol=1e-5)
            assert factors.up.shape[1] == delta.rank


def test_names_of_the_kinds() -> None:
    named = {name: module_delta(tensors).algorithm for name, (_, tensors) in every_stored().items()}
    assert named["locon plain"] == "LoCon"
    assert named["locon dora by output"] == "LoCon with DoRA"
    assert named["loha tucker"] == "LoHa"
    assert named["lokr whole"] == "LoKr"
    assert named["ia3 on input"] == "(IA)³"
    assert (named["full plain"], named["glora plain"]) == ("full", "GLoRA")
    assert (named["diag_oft plain"], named["boft rescaled"]) == ("diag-OFT", "BOFT")
    assert module_delta({"lora_up.weight": torch.ones(3, 1), "lora_down.weight": torch.ones(1, 2)}).algorithm == "LoRA"
    assert module_delta({"w_norm": torch.ones(3)}).algorithm == "norm"


def test_weights_of_other_shapes_do_not_fit() -> None:
    for name, (_, tensors) in every_stored().items():
        delta = module_delta(tensors)
        assert delta.fits((OUT, IN, 3, 3)), name
        assert not delta.fits((OUT + 2, IN + 2, 3, 3)), name
        assert not delta.fits((OUT + 2,)), name
        for shape in ((OUT,), (OUT, IN), (OUT, IN * 9), (OUT, IN * 9, 1, 1), (OUT, IN // 2, 3, 6)):
            if delta.fits(shape):  # whatever is said to fit does
                assert delta.delta(torch.ones(shape)).shape == shape, name
        with pytest.raises(UserError, match="does not fit|without the weight"):
            weight_delta(tensors, torch.zeros(OUT + 2, IN + 2, 3, 3))
    square = module_delta({"lora_up.weight": torch.ones(4, 1), "lora_down.weight": torch.ones(1, 6)})
    assert square.fits((4, 6)) and square.fits((4, 6, 1, 1)) and not square.fits((6, 4)) and not square.fits((4, 7))


@pytest.mark.parametrize(("shape", "expected"), [((3, 1), [[3.0, 4.0]] * 3), ((1, 2), None)])
def test_dora_by_output_and_by_input_in_numbers(shape: tuple[int, int], expected: list[list[float]] | None) -> None:
    """Rows (3, 4) have length 5; columns of three 3s or 4s √27 and √48."""
    tensors = {
        "lora_up.weight": torch.zeros(3, 1),
        "lora_down.weight": torch.ones(1, 2),
        "dora_scale": torch.full(shape, 10.0),
    }
    weight = torch.tensor([[3.0, 4.0]] * 3)
    delta = weight_delta(tensors, weight)
    if expected is None:
        expected = [[10 / 3**0.5 - 3, 10 / 3**0.5 - 4]] * 3
    torch.testing.assert_close(delta, torch.tensor(expected))


def test_a_bias_beside_the_factors_is_scaled_with_them() -> None:
    tensors = {
        "lora_up.weight": torch.ones(3, 2),
        "lora_down.weight": torch.ones(2, 4),
        "lora_up.bias": torch.tensor([1.0, 2.0, 3.0]),
        "alpha": torch.tensor(1.0),
    }
    delta = module_delta(tensors)
    assert delta.parameters == ("weight", "bias")
    assert delta.delta(torch.zeros(3), 2.0, parameter="bias").tolist() == [1.0, 2.0, 3.0]


def test_a_bias_alone_changes_the_bias_alone() -> None:
    delta = module_delta({"diff_b": torch.tensor([1.0, 2.0])})
    assert delta.parameters == ("bias",) and delta.fits((2, 5)) and not delta.fits((3, 5))
    assert delta.delta(torch.zeros(2), 0.5, parameter="bias").tolist() == [0.5, 1.0]
    with pytest.raises(UserError, match="changes its bias alone"):
        weight_delta({"diff_b": torch.tensor([1.0, 2.0])})


def test_the_sparse_rest_of_an_extracted_lora() -> None:
    tensors = {
        "lora_up.weight": torch.ones(2, 1),
        "lora_down.weight": torch.ones(1, 3),
        "alpha": torch.tensor(1.0),
        "bias_indices": torch.tensor([[0, 1], [2, 0]], dtype=torch.int16),
        "bias_values": torch.tensor([10.0, 20.0]),
        "bias_size": torch.tensor([2, 3], dtype=torch.int16),
    }
    assert weight_delta(tensors).tolist() == [[1.0, 1.0, 11.0], [21.0, 1.0, 1.0]]
    tensors["bias_indices"][1, 0] = 3
    with pytest.raises(UserError, match="do not lie in a weight"):
        weight_delta(tensors)


def test_the_alpha_of_a_lokr_without_factors_means_nothing() -> None:
    """LyCORIS' users give rank 10¹⁰ for whole weights, and it stores that as alpha: infinity in fp16."""
    whole = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3), "alpha": torch.tensor(1e10).half()}
    assert torch.equal(weight_delta(whole), torch.ones(6, 6))
    found = stored_form("lora_unet_x", whole)
    assert found.form.full_matrix and found.alpha == found.rank
    factors = {"lokr_w1": whole["lokr_w1"], "lokr_w2_a": torch.ones(3, 1), "lokr_w2_b": torch.ones(1, 3)}
    with pytest.raises(UserError, match="alpha has values that are not numbers"):
        weight_delta({**factors, "alpha": whole["alpha"]})


def test_dyn_takes_the_first_ranks_under_the_same_scale() -> None:
    tensors = {
        "lora_up.weight": torch.tensor([[1.0, 10.0]]),
        "lora_down.weight": torch.tensor([[1.0], [1.0]]),
        "alpha": torch.tensor(1.0),
    }
    delta, weight = module_delta(tensors), torch.zeros(1, 1)
    assert delta.delta(weight, dyn=1).item() == 0.5
    assert delta.delta(weight, dyn=7).item() == delta.delta(weight).item() == 5.5


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"oft_blocks": torch.zeros(2, 3, 4)}, "not square"),
        ({"oft_blocks": torch.zeros(2, 3, 3), "rescale": torch.ones(5)}, "does not fit 6 outputs"),
        ({"oft_blocks": torch.zeros(4, 4, 3, 3)}, "no butterfly"),
        ({"lokr_w1": torch.ones(2, 2)}, "lokr_w2_a missing"),
        ({"hada_w1_a": torch.ones(2, 1)}, "hada_w1_b missing"),
        ({"a1.weight": torch.ones(2, 1)}, "a2.weight missing"),
        ({"weight": torch.ones(2), "on_input": torch.ones(2)}, "on_input has the shape"),
        ({"on_input": torch.ones(1)}, "weight missing"),
        ({"diff": torch.full((2, 2), torch.inf)}, "not numbers"),
        ({"diff": torch.ones(2, 2, dtype=torch.complex64)}, "holds no weights"),
        (
            {"lora_up.weight": torch.ones(3, 1), "lora_down.weight": torch.ones(1, 2), "dora_scale": torch.ones(2, 2)},
            "neither a length an output nor one an input",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused_in_words(tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(UserError, match=words):
        module_delta(tensors)


def test_dora_over_a_rotation_is_not_known() -> None:
    with pytest.raises(UnsupportedNetworkError, match="does not go with diag-OFT"):
        module_delta({"oft_blocks": torch.zeros(2, 3, 3), "dora_scale": torch.ones(6, 1)})
