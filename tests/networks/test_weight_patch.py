"""Networks of all kinds in one weight: every ΔW from the untouched weight, one rounding, whatever the order."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.checkpoint.weight_views import WeightView, weight_view
from lora_ext.networks import weight_patch
from lora_ext.networks.weight_delta import ModuleDelta, module_delta
from lora_ext.networks.weight_patch import Share, ShareError, patches_of

OUT, IN, RANK = 12, 8, 3


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def lora(seed: int = 0, columns: int = IN, rank: int = RANK) -> dict[str, Tensor]:
    return {
        "lora_up.weight": randn(OUT, rank, seed=seed),
        "lora_down.weight": randn(rank, columns, seed=seed + 100),
        "alpha": torch.tensor(rank / 2),
    }


KINDS: dict[str, dict[str, Tensor]] = {
    "LoRA": lora(1),
    "LoRA 2": lora(2, rank=5),
    "LoHa": {
        "hada_w1_a": randn(OUT, RANK, seed=3), "hada_w1_b": randn(RANK, IN, seed=4),
        "hada_w2_a": randn(OUT, RANK, seed=5), "hada_w2_b": randn(RANK, IN, seed=6), "alpha": torch.tensor(1.0),
    },
    "LoKr": {"lokr_w1": randn(4, 2, seed=7), "lokr_w2": randn(3, 4, seed=8)},
    "full": {"diff": randn(OUT, IN, seed=9), "diff_b": randn(OUT, seed=10)},
    "DoRA, outputs": {**lora(11), "dora_scale": randn(OUT, 1, seed=12) + 1},
    "DoRA, inputs": {**lora(13), "dora_scale": randn(1, IN, seed=14) + 1},
    "(IA)³": {"weight": randn(OUT, seed=15), "on_input": torch.tensor(False)},
    "diag-OFT": {"oft_blocks": randn(3, 4, 4, seed=16), "rescale": randn(OUT, 1, seed=17) + 1},
    "BOFT": {"oft_blocks": randn(2, 6, 2, 2, seed=18)},
    "GLoRA": {
        "a1.weight": randn(IN, RANK, seed=19), "a2.weight": randn(RANK, IN, seed=20),
        "b1.weight": randn(OUT, RANK, seed=21), "b2.weight": randn(RANK, IN, seed=22),
    },
}  # fmt: skip


def layer(dtype: torch.dtype = torch.float32, seed: int = 50) -> tuple[nn.Linear, WeightView]:
    root = nn.Module()
    root.linear = nn.Linear(IN, OUT)
    with torch.no_grad():
        root.linear.weight.copy_(randn(OUT, IN, seed=seed))
        root.linear.bias.copy_(randn(OUT, seed=seed + 1))
    root.to(dtype)
    return root.linear, weight_view(root, "linear")


def shares_of(names: list[str], view: WeightView) -> list[Share]:
    shares = []
    for name in names:
        delta = module_delta(KINDS[name])
        for parameter in delta.parameters:
            part = view if parameter == "weight" else view.bias
            assert part is not None
            shares.append(Share((name, parameter), strength(name), None, part, delta, parameter))
    return shares


def check(weight: Tensor, exact: Tensor) -> None:
    """Half a step of the weight's dtype from the exact value, and what sums in fp32 lose."""
    step = torch.finfo(weight.dtype).eps
    torch.testing.assert_close(weight.detach().double(), exact, rtol=0.51 * step, atol=1e-6)


def strength(name: str) -> float:
    return 0.25 + list(KINDS).index(name) / 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("names", [[name] for name in KINDS] + [list(KINDS), ["LoRA", "LoRA 2"], ["LoHa", "LoKr"]])
def test_every_change_is_made_from_the_untouched_weight(names: list[str], dtype: torch.dtype) -> None:
    """A second time too, when the untouched weight is a copy; and with other strengths in between."""
    linear, view = layer(dtype)
    base = linear.weight.detach().clone()
    changes = [module_delta(KINDS[name]).delta(base, strength(name)).double() for name in names]
    exact = base.double() + torch.stack(changes).sum(0)
    ledger = PatchLedger()
    for between in ([], ["LoRA"], ["DoRA, inputs", "full"]):
        if between:
            ledger.patch("test", patches_of(shares_of(between, view)))
        ledger.patch("test", patches_of(shares_of(names, view)))
        check(linear.weight, exact)
    ledger.restore("test")
    assert torch.equal(linear.weight, base)


def test_the_order_is_that_of_nothing() -> None:
    """Weight-dependent kinds too: up to fp32's rounding of sums."""
    names = ["(IA)³", "DoRA, outputs", "LoRA", "diag-OFT"]
    linear, view = layer()
    results = []
    for order in permutations(names):
        ledger = PatchLedger()
        ledger.patch("test", patches_of(shares_of(list(order), view)))
        results.append(linear.weight.detach().clone())
        ledger.restore("test")
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-6)


def test_rounding_happens_once() -> None:
    """1 + 2⁻¹¹ rounds to even in fp16 (to 1), and so would each half alone; the sum in fp32 is 1 + 2⁻¹⁰."""
    weight = nn.Parameter(torch.ones(3, 1, dtype=torch.float16))
    low_rank = {"lora_up.weight": torch.full((3, 1), 2.0**-11), "lora_down.weight": torch.ones(1, 1)}
    whole = {"diff": torch.full((3, 1), 2.0**-11)}
    for pair in ((low_rank, low_rank), (whole, whole), (low_rank, whole)):
        shares = [Share(n, 1.0, None, WeightView(weight), module_delta(each)) for n, each in enumerate(pair)]
        ledger = PatchLedger()
        ledger.patch("test", patches_of(shares))
        assert weight.flatten().tolist() == [1 + 2.0**-10] * 3
        ledger.restore("test")


def test_the_bias_is_changed_beside_the_weight() -> None:
    linear, view = layer()
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    ledger = PatchLedger()
    ledger.patch("test", patches_of(shares_of(["full"], view)))
    assert ledger.patched == 2
    torch.testing.assert_close(linear.weight.detach(), weight + strength("full") * KINDS["full"]["diff"])
    torch.testing.assert_close(linear.bias.detach(), bias + strength("full") * KINDS["full"]["diff_b"])
    ledger.restore("test")
    assert torch.equal(linear.weight, weight)
    assert torch.equal(linear.bias, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "DoRA, outputs"])
def test_rows_of_fused_attention_change_alone(kind: str, dtype: torch.dtype) -> None:
    """q and v get a network, k none; each third is treated as the layer of its own that it is."""
    root = nn.Module()
    root.attn = nn.MultiheadAttention(8, 2).to(dtype)
    fused = root.attn.in_proj_weight
    base = fused.detach().clone()
    tensors = {
        "LoRA": {"lora_up.weight": randn(8, 2, seed=1), "lora_down.weight": randn(2, 8, seed=2)},
        "LoHa": {f"hada_w{n}_{x}": randn(*((8, 2) if x == "a" else (2, 8)), seed=n) for n in (1, 2) for x in "ab"},
    }
    tensors["DoRA, outputs"] = {**tensors["LoRA"], "dora_scale": randn(8, 1, seed=3) + 1}
    delta = module_delta(tensors[kind])
    shares = [Share(name, 0.5, None, weight_view(root, f"attn.{name}_proj"), delta) for name in "qv"]
    ledger = PatchLedger()
    for _ in range(2):
        ledger.patch("test", patches_of([*shares, Share("k", 0.1, None, weight_view(root, "attn.k_proj"), delta)]))
        ledger.patch("test", patches_of(shares))
        expected = base.double()
        for rows in (slice(0, 8), slice(16, 24)):
            expected[rows] += delta.delta(base[rows], 0.5).double()
        check(fused, expected)
        assert torch.equal(fused[8:16], base[8:16])
    ledger.restore("test")
    assert torch.equal(fused, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("block", [1, 20, 1000])
def test_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch, block: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(weight_patch, "_BLOCK", block)
    monkeypatch.setattr(weight_patch, "_LARGE_BLOCK", 2 * block)
    for thin in (0, 32):
        monkeypatch.setattr(weight_patch, "_THIN", thin)
        linear, view = layer(dtype)
        exact = linear.weight.detach().double()
        exact += module_delta(KINDS["LoRA"]).delta(linear.weight, strength("LoRA")).double()
        PatchLedger().patch("test", patches_of(shares_of(["LoRA"], view)))
        check(linear.weight, exact)


def test_channels_last_and_a_part_of_the_channels() -> None:
    weight = nn.Parameter(randn(OUT, 9, 3, 3, seed=1).to(memory_format=torch.channels_last))
    base = weight.detach().clone()
    tensors = {"lora_up.weight": randn(OUT, 2, 1, 1, seed=2), "lora_down.weight": randn(2, 4, 3, 3, seed=3)}
    delta = module_delta(tensors)
    view = WeightView(weight).first_channels(4)
    assert delta.fits(view.shape)
    PatchLedger().patch("test", patches_of([Share("a", 2.0, None, view, delta)]))
    change = torch.einsum("or,rikl->oikl", tensors["lora_up.weight"][:, :, 0, 0], tensors["lora_down.weight"])
    torch.testing.assert_close(weight.detach()[:, :4], base[:, :4] + 2 * change)
    assert torch.equal(weight[:, 4:], base[:, 4:])


class Impossible(ModuleDelta):
    """Passes all checks and fails when it is made."""

    algorithm = "impossible"

    def shape_for(self, weight_shape: tuple[int, ...]) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(weight_shape)

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        raise RuntimeError("the matrix is singular")


def test_what_cannot_be_made_names_its_source_and_leaves_nothing_behind() -> None:
    linear, view = layer()
    base = linear.weight.detach().clone()
    shares = [*shares_of(["LoRA", "LoHa"], view), Share("bad", 1.0, None, view, Impossible())]
    ledger = PatchLedger()
    with pytest.raises(ShareError, match="the matrix is singular") as caught:
        ledger.patch("test", patches_of(shares))
    assert caught.value.source == "bad"
    assert torch.equal(linear.weight, base)
    assert ledger.owner is None
