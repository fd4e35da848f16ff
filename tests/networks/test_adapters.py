"""Every algorithm on every kind of layer, against lycoris_lora's own forward and against the ΔW that is applied."""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_ext.checkpoint.text.fused_attention import FusedProjection, fused_projections
from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.adapters.make import make_adapter
from lora_ext.networks.file import read_network, write_network
from lora_ext.networks.forms import AdapterForm, effective_alpha, stored_form
from lora_ext.networks.targets import Target
from lora_ext.networks.weight_delta import module_delta
from lora_ext.protocols import UserError

LAYERS = ("linear", "convolution 1x1", "convolution 3x3", "fused attention")
NORMS = ("layer norm", "group norm")
PLAIN: dict[str, Any] = {}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "lora": [PLAIN, {"tucker": True}, {"dora": "out"}, {"dora": "in"}, {"scalar": True}, {"frozen_down": True}],
    "loha": [PLAIN, {"tucker": True}, {"dora": "out"}, {"dora": "in"}, {"scalar": True}],
    "lokr": [PLAIN, {"tucker": True}, {"dora": "out"}, {"dora": "in"}, {"scalar": True},
             {"decompose_both": True, "factor": 10}, {"full_matrix": True}, {"unbalanced": True}],
    "dylora": [{"unit": 2}],
    "ia3": [PLAIN, {"on_input": True}],
    "full": [PLAIN],
    "diag-oft": [PLAIN, {"constraint": 1e-3}, {"rescaled": True}],
    "boft": [PLAIN, {"constraint": 1e-3}, {"rescaled": True}],
    "glora": [PLAIN, {"scalar": True}],
    "tlora": [PLAIN],
}  # fmt: skip
CASES = [
    pytest.param(AdapterForm(algorithm, **{"factor": 4, **variant}), layer,  # type: ignore[arg-type]
                 id=" ".join([algorithm, *map(str, variant), *map(str, variant.values()), layer]))
    for algorithm, variants in VARIANTS.items() for variant in variants for layer in LAYERS
    if not (algorithm == "tlora" and layer == "convolution 3x3")
    and not ("tucker" in variant and layer != "convolution 3x3")
] + [pytest.param(AdapterForm("norm"), layer, id=layer) for layer in NORMS]  # fmt: skip
EXACT_AT_FIRST = {"lora", "loha", "lokr", "dylora", "ia3", "full", "glora", "tlora", "norm"}
NAMES = {
    "lora": "locon.LoConModule", "loha": "loha.LohaModule", "lokr": "lokr.LokrModule", "glora": "glora.GLoRAModule",
    "dylora": "dylora.DyLoraModule", "ia3": "ia3.IA3Module", "full": "full.FullModule", "norm": "norms.NormModule",
    "diag-oft": "diag_oft.DiagOFTModule", "boft": "boft.ButterflyOFTModule", "tlora": "tlora.TLoraModule",
}  # fmt: skip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_and_input(name: str) -> tuple[Any, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers: dict[str, tuple[Any, Tensor]] = {
            "linear": (nn.Linear(20, 40), torch.randn(2, 7, 20)),
            "convolution 1x1": (nn.Conv2d(20, 40, 1), torch.randn(2, 20, 5, 6)),
            "convolution 3x3": (nn.Conv2d(20, 40, 3, stride=2, padding=1), torch.randn(2, 20, 8, 6)),
            "fused attention": (fused_projections(nn.MultiheadAttention(40, 4))["k_proj"], torch.randn(2, 7, 40)),
            "layer norm": (nn.LayerNorm(40), torch.randn(2, 7, 40)),
            "group norm": (nn.GroupNorm(4, 40), torch.randn(2, 40, 5, 6)),
        }
        layer, x = layers[name]
        owner = layer.attention if isinstance(layer, FusedProjection) else layer
        for parameter in owner.parameters():
            nn.init.normal_(parameter, std=0.3)
            parameter.requires_grad_(False)
    return layer, x


def rank_of(form: AdapterForm) -> int:
    return 10 if form.algorithm == "boft" else 4 if form.algorithm in ("dylora", "diag-oft") else 2


def make(form: AdapterForm, layer: Any, seed: int = 0) -> Adapter:
    return make_adapter(Target("lora_unet_x", layer, rank_of(form), 3.0, "unet", None, form), seeded(seed))


def trained(adapter: Adapter) -> Adapter:
    """The adapter with other numbers in everything that is trained, as training leaves it."""
    adapter.eval()
    with torch.no_grad():
        for number, parameter in enumerate(each for each in adapter.parameters() if each.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=seeded(number)) * 0.1)
    return adapter


def lycoris_module(form: AdapterForm, layer: Any) -> Any:
    """lycoris_lora's own module of the same settings."""
    package, name = NAMES[form.algorithm].split(".")
    try:
        kind = getattr(import_module(f"lycoris.modules.{package}"), name)
    except ImportError:
        pytest.skip("this lycoris_lora has no T-LoRA")
    plain = layer
    if isinstance(layer, FusedProjection):  # it takes layers of exactly torch's class for unquantised
        plain = nn.Linear(40, 40)
        plain.weight, plain.bias = nn.Parameter(layer.weight), nn.Parameter(layer.bias)
    arguments: dict[str, Any] = {
        "use_tucker": form.tucker, "use_scalar": form.scalar, "weight_decompose": bool(form.dora),
        "wd_on_out": form.dora != "in", "factor": form.factor, "decompose_both": form.decompose_both,
        "full_matrix": form.full_matrix, "unbalanced_factorization": form.unbalanced, "constraint": form.constraint,
        "rescaled": form.rescaled, "block_size": form.unit, "train_on_input": form.on_input, "bypass_mode": False,
    }  # fmt: skip
    if form.algorithm == "norm":
        arguments = {}
    else:
        arguments |= {"lora_dim": rank_of(form), "alpha": 3.0}
    with torch.random.fork_rng():
        return kind("x", plain.requires_grad_(False), 1.0, **arguments).eval()


def own_tensors(form: AdapterForm, adapter: Adapter) -> dict[str, Tensor]:
    """What is trained, by the names that it has in lycoris_lora's module."""
    state = adapter.state_tensors()
    renamed = {
        "full": {"diff": "weight", "diff_b": "bias"},
        "dylora": {f"lora_{way}.{number}": f"{way}_list.{number}" for way in ("down", "up") for number in range(2)},
        "tlora": {"q_layer": "q_layer.weight", "p_layer": "p_layer.weight"},
    }.get(form.algorithm, {})
    return {renamed.get(name, name): tensor for name, tensor in state.items()}


def loaded_lycoris_module(form: AdapterForm, layer: Any, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lycoris_lora's module with the adapter's tensors."""
    module = lycoris_module(form, layer)
    parameters = dict(module.named_parameters())
    apart = ("_start", "on_input")
    tensors = {name: each for name, each in own_tensors(form, adapter).items() if not name.endswith(apart)}
    assert parameters.keys() == tensors.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name].reshape(parameter.shape))
    if form.algorithm == "full" and version("lycoris_lora").startswith("3."):
        monkeypatch.setattr(module, "org_bias", module.org_bias[0])  # which it takes for a tensor, and is a list
    if form.algorithm == "dylora":
        monkeypatch.setattr("random.randint", lambda first, last: last)  # all blocks, as we have it in eval mode
    return module


def close(actual: Tensor, expected: Tensor, limit: float = 2e-6) -> Tensor:
    return (actual - expected).detach().abs().max() <= limit * expected.detach().abs().max()


@pytest.mark.parametrize(("form", "name"), CASES)
def test_an_adapter(form: AdapterForm, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_and_input(name)
    weight, before = layer.weight.clone(), layer(x)
    adapter = make(form, layer)
    adapter.attach()
    at_first = layer(x)
    assert torch.equal(at_first, before) if form.algorithm in EXACT_AT_FIRST and not form.dora else close(
        at_first, before, 1e-6
    )  # fmt: skip
    trained(adapter)
    changed = layer(x)
    assert not close(changed, before, 1e-3)
    adapter.detach()
    assert torch.equal(layer(x), before) and torch.equal(layer.weight, weight) and "forward" not in layer.__dict__
    assert close(changed, loaded_lycoris_module(form, layer, adapter, monkeypatch)(x))

    write_network(
        tmp_path / "x.safetensors", {f"lora_unet_x.{k}": v for k, v in adapter.tensors_for_file().items()}, {}, "float"
    )
    (stored,) = read_network(tmp_path / "x.safetensors").modules.values()
    assert close(applied(layer, stored, x), changed)
    if form.algorithm == "tlora":
        return
    other = make(form, layer, seed=9)
    other.load_tensors({key: tensor.float() for key, tensor in stored.items()})
    other.eval().attach()
    assert close(layer(x), changed)


def applied(layer: Any, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The output of a layer with a network's ΔW in its weights."""
    delta = module_delta(tensors)
    assert delta.fits(layer.weight.shape)
    weight = layer.weight + delta.delta(layer.weight)
    bias = layer.bias + (delta.delta(layer.bias, parameter="bias") if "bias" in delta.parameters else 0)
    if isinstance(layer, FusedProjection):
        return F.linear(x, weight, bias)
    patched = copy.deepcopy(layer)
    patched.weight, patched.bias = nn.Parameter(weight), nn.Parameter(bias)
    output: Tensor = patched(x)
    return output.detach()


@pytest.mark.parametrize(("form", "name"), CASES)
def test_gradients_flow_to_everything_after_a_step(form: AdapterForm, name: str) -> None:
    layer, x = layer_and_input(name)
    adapter = make(form, layer)
    adapter.attach()
    parameters = [each for each in adapter.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(12 if form.algorithm == "dylora" else 1):  # which draws its blocks
            layer(x).square().mean().backward()
        optimizer.step()
    frozen = [name for name, each in adapter.named_parameters() if not each.requires_grad]
    assert frozen == (["lora_down.weight"] if form.frozen_down else [])
    assert all(each.grad is not None and each.grad.any() and each.dtype == torch.float32 for each in parameters)
    assert layer.weight.grad is None
    others, ups = adapter.split_parameters()
    assert len(others) + len(ups) == len(parameters)
    assert len(ups) == {"lora": 1, "dylora": 2, "tlora": 1}.get(form.algorithm, 0)


@pytest.mark.parametrize(("form", "name"), [case for case in CASES if case.values[0].algorithm != "dylora"])  # type: ignore[union-attr]
def test_gradients_are_those_of_lycoris(form: AdapterForm, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_and_input(name)
    adapter = trained(make(form, layer))
    adapter.attach()
    inputs = x.clone().requires_grad_()
    output = layer(inputs)
    weights = torch.randn(output.shape, generator=seeded(4))
    (output * weights).sum().backward()
    adapter.detach()
    theirs = x.clone().requires_grad_()
    module = loaded_lycoris_module(form, layer, adapter, monkeypatch)
    (module(theirs) * weights).sum().backward()
    assert inputs.grad is not None and theirs.grad is not None and close(inputs.grad, theirs.grad, 1e-5)
    ours, parameters = own_tensors(form, adapter), dict(module.named_parameters())
    for key, parameter in parameters.items():
        if parameter.requires_grad and not form.frozen_down:
            assert ours[key].grad is not None and parameter.grad is not None
            assert close(ours[key].grad, parameter.grad.reshape(ours[key].shape), 2e-5), key  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algorithm", sorted({*VARIANTS, "norm"}))
def test_a_half_precision_base_loses_nothing_of_a_small_change(
    algorithm: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained in fp32, a change far below the steps of a half-precision weight still gets through."""
    if dtype == torch.float16 and torch.__version__ < "2.4":
        pytest.skip("this torch has no fp16 on processors")
    layer, x = layer_and_input("layer norm" if algorithm == "norm" else "linear")
    layer.to(dtype).float()  # numbers that both have
    # (IA)³ on the output is a factor on the output itself, which has the last word on what gets lost
    adapter = make(AdapterForm(algorithm, unit=2, factor=4, on_input=algorithm == "ia3"), layer)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in adapter.eval().parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(2)) * 3e-4)
    x = x.to(dtype)
    exact = applied(layer, adapter.tensors_for_file(), x.float()) - layer(x.float())
    layer.to(dtype)
    adapter.attach()
    nothing = torch.zeros(exact.shape, dtype=dtype)
    monkeypatch.setattr(adapter, "_module_forward", lambda given: nothing)
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())
    assert close(layer(x).float(), exact, 0.02)


@pytest.mark.parametrize("dora", ["out", "in"])
def test_a_small_change_of_lengths_gets_through_in_half_precision(dora: Any) -> None:
    """Lengths grow by a hundredth, of which bf16's steps at 1 would leave 0.8: 1024 − 1024 becomes 10.24."""
    layer = nn.Linear(4, 4).requires_grad_(False)
    nn.init.eye_(layer.weight)
    nn.init.constant_(layer.bias, -1024.0)
    layer.to(torch.bfloat16)
    adapter: Any = make(AdapterForm("lora", dora=dora), layer).eval()
    with torch.no_grad():
        adapter.kernel.dora_scale.mul_(1.01)
    adapter.attach()
    output = layer(torch.full((1, 4), 1024.0, dtype=torch.bfloat16))
    torch.testing.assert_close(output.float(), torch.full((1, 4), 10.24), rtol=0.005, atol=0.0)


def test_dora_keeps_no_copy_of_a_half_precision_weight() -> None:
    layer = nn.Linear(256, 256).to(torch.bfloat16).requires_grad_(False)
    make(AdapterForm("lora", dora="out"), layer).attach()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.ones(1, 256, dtype=torch.bfloat16))
    assert kept.pop(layer.weight.untyped_storage().data_ptr()) == 256 * 256 * 2
    assert sum(kept.values()) < 64 * 1024


def test_the_start_is_the_seeds_and_nobodys_random_state_is_touched() -> None:
    layer, _ = layer_and_input("linear")
    state = torch.get_rng_state()
    for algorithm in ("lora", "loha", "lokr", "glora", "dylora"):
        form = AdapterForm(algorithm, unit=2, scalar=algorithm != "dylora", factor=4)  # type: ignore[arg-type]
        first, same, other = (make(form, layer, seed).state_tensors() for seed in (1, 1, 2))
        assert all(torch.equal(first[name], same[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("form", "name"), [case for case in CASES if "linear" in str(case.id)])
def test_a_state_is_exact(form: AdapterForm, name: str) -> None:
    layer, _ = layer_and_input(name)
    adapter, other = trained(make(form, layer)), make(form, layer, seed=5)
    other.load_state_tensors({name: each.clone() for name, each in adapter.state_tensors().items()})
    for key, tensor in adapter.state_tensors().items():
        assert torch.equal(tensor, other.state_tensors()[key])
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "glora", "full", "dylora"])
def test_max_norm_shrinks_the_change_itself(algorithm: str) -> None:
    layer, x = layer_and_input("linear")
    adapter = trained(make(AdapterForm(algorithm, unit=2, factor=4), layer))  # type: ignore[arg-type]
    delta = module_delta(adapter.tensors_for_file()).delta(layer.weight)
    assert float(adapter.delta_norm()) == pytest.approx(float(delta.norm()), rel=1e-5)
    adapter.shrink(torch.tensor(0.25))
    smaller = module_delta(adapter.tensors_for_file()).delta(layer.weight)
    torch.testing.assert_close(smaller, delta * 0.25, rtol=1e-4, atol=1e-7)


def test_max_norm_leaves_a_frozen_factor_alone() -> None:
    layer, _ = layer_and_input("linear")
    adapter: Any = trained(make(AdapterForm("lora", frozen_down=True), layer))
    down, norm = adapter.lora_down.weight.detach().clone(), float(adapter.delta_norm())
    adapter.shrink(torch.tensor(0.25))
    assert torch.equal(adapter.lora_down.weight, down) and float(adapter.delta_norm()) == pytest.approx(norm / 4)


@pytest.mark.parametrize("algorithm", sorted({*VARIANTS, "norm"}))
def test_nothing_changes_at_first_in_half_precision_either(algorithm: str) -> None:
    """T-LoRA's start is as large as the weight: what rounding takes from it must not look like training."""
    layer, x = layer_and_input("layer norm" if algorithm == "norm" else "linear")
    wanted = layer(x)
    adapter = make(AdapterForm(algorithm, unit=2, factor=4), layer)  # type: ignore[arg-type]
    adapter.cast(torch.bfloat16)
    adapter.attach()
    assert close(layer(x), wanted, 1e-6)


@pytest.mark.parametrize(("form", "name"), CASES)
def test_a_file_tells_what_it_is(form: AdapterForm, name: str) -> None:
    layer, _ = layer_and_input(name)
    adapter = trained(make(form, layer))
    found = stored_form("lora_unet_x", {k: v.detach() for k, v in adapter.tensors_for_file().items()})
    kept = {"dylora": "lora", "tlora": "lora"}.get(form.algorithm, form.algorithm)
    assert (found.form.algorithm, found.form.tucker, found.form.dora) == (kept, form.tucker, form.dora)
    rank = {"ia3": 1, "full": 1, "norm": 1, "tlora": 4}.get(form.algorithm, rank_of(form))
    assert found.rank == rank
    state = stored_form("lora_unet_x", {"alpha": adapter.alpha, **adapter.state_tensors()}).form
    assert (state.algorithm, state.scalar) == (form.algorithm, form.scalar)


def test_rank_dropout_leaves_out_rows_and_module_dropout_the_adapter() -> None:
    from lora_ext.networks.dropout import Dropout

    layer, x = layer_and_input("linear")
    base = layer(x)
    for algorithm, rank in (("loha", 2), ("lokr", 2), ("diag-oft", 4), ("boft", 10), ("full", 2)):
        target = Target("x", layer, rank, 3.0, "unet", None, AdapterForm(algorithm, factor=4))  # type: ignore[arg-type]
        adapter = trained(make_adapter(target, seeded(0), Dropout(rank=0.5)))
        adapter.attach()
        whole = layer(x) - base
        adapter.train()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            part = layer(x) - base
        adapter.detach()
        left = (part.abs().amax(dim=(0, 1)) > 1e-6).nonzero().flatten().tolist()
        assert 5 < len(left) < 35
        torch.testing.assert_close(part[..., left], whole[..., left], rtol=1e-3, atol=1e-5)
    adapter = trained(make_adapter(target, seeded(0), Dropout(module=0.99))).train()
    adapter.attach()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert torch.equal(layer(x), base)


def test_what_an_algorithm_cannot_do_is_said_in_words() -> None:
    convolution, _ = layer_and_input("convolution 3x3")
    with pytest.raises(UserError, match="tlora: lora_unet_x is a 3×3 convolution, which it cannot adapt"):
        make(AdapterForm("tlora"), convolution)
    odd = nn.Linear(8, 7)
    with pytest.raises(UserError, match=r"boft: lora_unet_x has 7 outputs, which cannot be divided with network_dim"):
        make(AdapterForm("boft"), odd)
    with pytest.raises(UserError, match=r"lora_unet_x has rank 4, which is no multiple of block_size = 3"):
        make(AdapterForm("dylora", unit=3), layer_and_input("linear")[0])
    adapter = make(AdapterForm("tlora"), layer_and_input("linear")[0])
    with pytest.raises(UserError, match="its files are plain LoRA"):
        adapter.load_tensors(adapter.tensors_for_file())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lycoris.modules.loha", None)
    with pytest.raises(UserError, match="loha needs the package lycoris_lora .*: install it"):
        make(AdapterForm("loha"), layer_and_input("linear")[0])
    make(AdapterForm("dylora"), layer_and_input("linear")[0])  # which is ours
    monkeypatch.setitem(sys.modules, "lycoris.modules.lokr", object())  # the newest with an old torch
    with pytest.raises(UserError, match=r"lokr needs the package lycoris_lora .*3.4.0 for torch before 2.4"):
        make(AdapterForm("lokr"), layer_and_input("linear")[0])


def test_rslora_is_an_alpha() -> None:
    assert effective_alpha(8.0, 16, rank_stabilised=True) == 32.0
    assert effective_alpha(8.0, 16, rank_stabilised=False) == 8.0
    assert effective_alpha(0.0, 16, rank_stabilised=False) == 16.0
    layer, x = layer_and_input("linear")
    form = AdapterForm("loha")
    adapter = make_adapter(Target("x", layer, 4, effective_alpha(3.0, 4, True), "unet", None, form), seeded(0))
    trained(adapter).attach()
    kernel = getattr(import_module("lycoris.modules.loha"), "LohaModule")(  # noqa: B009
        "x", layer_and_input("linear")[0], 1.0, 4, 3.0, rs_lora=True, bypass_mode=False
    ).eval()
    with torch.no_grad():
        for name, parameter in kernel.named_parameters():
            parameter.copy_(adapter.state_tensors()[name])
    assert close(layer(x), kernel(x))
