"""ΔW from stored tensors, against literal numbers and lycoris."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lora_ext.networks.weight_delta import UnsupportedNetworkError, exact_matmul, weight_delta
from lora_ext.protocols import UserError


def test_literal_numbers() -> None:
    tensors = {
        "lora_up.weight": torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]]),
        "lora_down.weight": torch.tensor([[1.0, 2.0], [10.0, 20.0]]),
        "alpha": torch.tensor(1.0),
    }
    assert weight_delta(tensors).tolist() == [[0.5, 1.0], [6.0, 12.0], [15.0, 30.0]]


def test_without_alpha_the_scale_is_1() -> None:
    tensors = {"lora_up.weight": torch.ones(2, 3), "lora_down.weight": torch.ones(3, 2)}
    assert weight_delta(tensors).tolist() == [[3.0, 3.0], [3.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors_are_multiplied_in_fp32(dtype: torch.dtype) -> None:
    up, down = torch.randn(6, 4).to(dtype), torch.randn(4, 5).to(dtype)
    delta = weight_delta({"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(4.0, dtype=dtype)})
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta.double(), up.double() @ down.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution(kernel: int) -> None:
    """ΔW as a kernel is the two convolutions one after the other."""
    down, up = torch.randn(4, 3, kernel, kernel), torch.randn(5, 4, 1, 1)
    x = torch.randn(2, 3, 8, 8)
    delta = weight_delta({"lora_down.weight": down, "lora_up.weight": up})
    assert delta.shape == (5, 3, kernel, kernel)
    expected = nn.functional.conv2d(nn.functional.conv2d(x, down, padding=kernel // 2), up)
    torch.testing.assert_close(nn.functional.conv2d(x, delta, padding=kernel // 2), expected, rtol=1e-4, atol=1e-5)


def test_tucker_core_as_in_lycoris() -> None:
    from lycoris.modules.locon import LoConModule

    module = nn.Conv2d(6, 10, 3, padding=1)
    theirs = LoConModule("test", module, 1.0, lora_dim=4, alpha=2.0, use_tucker=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    tensors = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    assert set(tensors) == {"alpha", "lora_down.weight", "lora_mid.weight", "lora_up.weight"}
    x = torch.randn(2, 6, 5, 5)
    base = module(x)
    theirs.apply_to()
    changed = module(x)
    theirs.restore()
    delta = weight_delta(tensors)
    assert delta.shape == module.weight.shape
    torch.testing.assert_close(base + nn.functional.conv2d(x, delta, padding=1), changed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffixes", [["lokr_w3"], ["alpha"], [], ["lora_up.weight", "lora_down.weight", "lokr_w1"]])
def test_other_kinds_are_named(suffixes: list[str]) -> None:
    tensors = {name: torch.ones(2, 2) for name in suffixes}
    with pytest.raises(UnsupportedNetworkError, match=suffixes[-1] if suffixes else "cannot be applied"):
        weight_delta(tensors)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_up.weight": torch.ones(3, 2)}, "lora_down.weight missing"),
        ({"lora_down.weight": torch.ones(3, 2), "alpha": torch.tensor(1.0)}, "lora_up.weight missing"),
        ({"lora_up.weight": torch.ones(3, 2), "lora_down.weight": torch.ones(4, 5)}, "ranks 2, 4 do not fit"),
        ({"lora_up.weight": torch.ones(3, 2, 3, 3), "lora_down.weight": torch.ones(2, 5, 3, 3)}, "is no factor"),
        ({"lora_up.weight": torch.ones(3, 0), "lora_down.weight": torch.ones(0, 5)}, "lora_up.weight is empty"),
        ({"lora_up.weight": torch.ones(3), "lora_down.weight": torch.ones(2, 5)}, "instead of 2 or 4 dimensions"),
        (
            {
                "lora_up.weight": torch.ones(3, 2, 1, 1),
                "lora_down.weight": torch.ones(2, 5, 1, 1),
                "lora_mid.weight": torch.ones(2, 4, 3, 3),
            },
            "ranks 2, 4 do not fit",
        ),
        (
            {
                "lora_up.weight": torch.ones(3, 2),
                "lora_down.weight": torch.ones(2, 5),
                "alpha": torch.tensor([1.0, 2.0]),
            },
            "alpha has the shape",
        ),
        (
            {"lora_up.weight": torch.tensor([[1.0], [float("nan")]]), "lora_down.weight": torch.ones(1, 5)},
            "lora_up.weight has values that are not numbers",
        ),
    ],
)
def test_damaged_tensors_are_refused_in_words(tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(UserError, match=words):
        weight_delta(tensors)


def test_large_values_are_values() -> None:
    """Their sum is beyond fp32."""
    tensors = {"diff": torch.full((2, 2), 3e38)}
    assert weight_delta(tensors).equal(tensors["diff"])


def test_tf32_is_off_inside_and_as_before_outside() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with pytest.raises(KeyError), exact_matmul():
            assert not torch.backends.cuda.matmul.allow_tf32
            raise KeyError
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_exact_products_end_with_the_last_thread_that_needs_them() -> None:
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        first, second = exact_matmul(), exact_matmul()
        with first:
            second.__enter__()
        assert not torch.backends.cuda.matmul.allow_tf32
        second.__exit__(None, None, None)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
