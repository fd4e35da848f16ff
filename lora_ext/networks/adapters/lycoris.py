"""Adapters that train `lycoris_lora`'s modules: their parameters, their start, their ΔW; attaching is ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lora_ext.networks.adapters import factored
from lora_ext.networks.adapters.dense import DenseAdapter, exact_numbers, is_fp32, operate
from lora_ext.networks.adapters.dylora import pointwise
from lora_ext.networks.dropout import NO_DROPOUT, Dropout, row_mask
from lora_ext.networks.forms import AdapterForm
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError

_MODULES = {
    "lora": ("locon", "LoConModule"),
    "loha": ("loha", "LohaModule"),
    "lokr": ("lokr", "LokrModule"),
    "diag-oft": ("diag_oft", "DiagOFTModule"),
    "boft": ("boft", "ButterflyOFTModule"),
    "glora": ("glora", "GLoRAModule"),
}
"""Where `lycoris_lora` has the algorithms."""

_FOLDED = {"lora": ("lora_up.weight",), "loha": ("hada_w1_a",), "lokr": ("lokr_w1", "lokr_w1_a"),
           "glora": ("a2.weight", "b2.weight")}  # fmt: skip
"""The tensors that a trained scalar is multiplied into in files."""

_FACTORS = {
    "lora": ("lora_up.weight", "lora_down.weight"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    "diag-oft": ("oft_blocks",),
    "boft": ("oft_blocks",),
}
"""The parameters that max norm makes smaller, all by the same factor."""


class LycorisAdapter(DenseAdapter):
    """Trains the parameters of one of `lycoris_lora`'s modules, which is never attached itself.

    `kernel` is that module. It sees the adapted module's weight in fp32, so that a half-precision base loses nothing of
    a small ΔW. Its start is drawn from the CPU generator that is given, without touching anyone's random state.
    """

    up_factors = ("kernel.lora_up.",)
    exact = ("dora_scale",)

    def __init__(self, target: Target, generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> None:
        super().__init__(target, dropout)
        self.algorithm = target.form.algorithm
        self.kernel: Any = make_kernel(target, generator, dropout)
        self._squares: Tensor | None = None
        self.kernel.to(_weight(target).device)
        self.alpha.fill_(float(self.kernel.alpha))

    @property
    def is_scaled_by_alpha(self) -> bool:
        """Whether alpha is a strength: OFT has its constraint there, and LoKr of two full factors has none."""
        whole = getattr(self.kernel, "use_w1", False) and getattr(self.kernel, "use_w2", False)
        return self.algorithm not in ("diag-oft", "boft") and not whole

    def deltas(self) -> tuple[Tensor, None]:
        """ΔW as the module of `lycoris_lora` has it in its forward pass.

        Its rank dropout of diag-OFT is left out: it leaves out numbers of the rotations, and with them half the base.
        """
        base = _weight(self.target).detach().float()
        if self.algorithm in ("diag-oft", "boft"):
            delta = self.kernel.make_weight(1, base.device).float() - base
            return self._rows_left(delta), None
        delta = self._without_lengths().float()
        if self.target.form.dora:
            delta = self.kernel.apply_weight_decompose(base + delta, 1) - base
        return delta, None

    def _rows_left(self, delta: Tensor) -> Tensor:
        """ΔW without the outputs that rank dropout leaves out."""
        if not (self.training and self.dropout.rank):
            return delta
        mask = row_mask(delta.shape[0], self.dropout).to(delta.device)
        return delta * mask.view(-1, *[1] * (delta.ndim - 1))

    def low_rank_forward(self, x: Tensor) -> Tensor | None:
        """The output by the factors, where ΔW is a product of small ones and no rows of it are left out."""
        form, kernel, module = self.target.form, self.kernel, self.target.module
        if self.training and self.dropout.rank:
            return None
        if self.algorithm == "lokr" and not form.dora:
            return self._sum(x, factored.kronecker_output(kernel, module, x), kernel.scale)
        if self.algorithm == "loha" and not form.dora and not kernel.tucker:
            if 2 * self.rank**2 > min(_weight(self.target).shape[:2]):
                return None
            down, up = factored.hadamard_factors(kernel, module)
            return self._sum(x, factored.low_rank_output(module, x, down, up), kernel.scale)
        if self.algorithm == "lora" and not form.dora:
            core = kernel.lora_mid.weight if kernel.tucker else None
            down, up = kernel.lora_down.weight, kernel.lora_up.weight
            return self._sum(x, factored.low_rank_output(module, x, down, up, core), kernel.scale)
        if self.algorithm == "lora" and form.dora == "out" and not kernel.tucker:
            return self._with_lengths(x)
        return self._both_sides(x) if self.algorithm == "glora" else None

    def _sum(self, x: Tensor, added: Tensor, scale: float) -> Tensor:
        """The module's output and the adapter's part of it."""
        output = self.base_forward(x)
        return output + (added * (self.kernel.scalar * scale).to(added.dtype)).to(output.dtype)

    def _both_sides(self, x: Tensor) -> Tensor:
        """GLoRA's W(Ax) + Bx beside Wx."""
        kernel, module = self.kernel, self.target.module
        scale = (kernel.scalar * kernel.scale).to(x.dtype)
        inner = pointwise(pointwise(x, kernel.a2.weight), kernel.a1.weight) * scale
        outer = factored.low_rank_output(module, x, kernel.b2.weight, kernel.b1.weight) * scale
        if is_fp32(x):  # half precision would lose what is small beside x
            output = self.base_forward(x + inner)
        else:
            output = self.base_forward(x) + operate(module, inner, _weight(self.target), None)
        return output + outer.to(output.dtype)

    def _with_lengths(self, x: Tensor) -> Tensor:
        """DoRA on the output: every output times its length over that of W + ΔW."""
        kernel, module = self.kernel, self.target.module
        down, up = kernel.lora_down.weight, kernel.lora_up.weight
        with exact_numbers(x.device):
            base = _weight(self.target).detach().flatten(1)
            factor = up.float().flatten(1) * (kernel.scale * kernel.scalar)
            if self._squares is None:
                self._squares = base.float().square().sum(1)
            norms = factored.lengths(base, self._squares, down.float().flatten(1), factor)
            ratio = kernel.dora_scale.float().flatten() / norms
        output = self.base_forward(x)
        pixels = (1, 1) if isinstance(module, nn.Conv2d) else ()
        ratio = ratio.view(-1, *pixels)
        longer, ratio = (ratio - 1).to(output.dtype), ratio.to(output.dtype)  # the difference in fp32: it is small
        bias = None if module.bias is None else module.bias.to(output.dtype).view(-1, *pixels)  # type: ignore[operator]
        added = factored.low_rank_output(module, x, down, up * (kernel.scale * kernel.scalar)).to(output.dtype)
        return output + (output if bias is None else output - bias) * longer + added * ratio

    def attach(self) -> None:
        """As any adapter; the lengths of W's rows are computed anew."""
        self._squares = None
        super().attach()

    def cast(self, dtype: torch.dtype) -> None:
        """Keep the parameters in this dtype; GLoRA's and OFT's, which act on the module's own weight, stay in fp32."""
        if self.algorithm not in ("glora", "diag-oft", "boft"):
            super().cast(dtype)

    def retarget(self, target: Target) -> None:
        """Adapt this module from now on."""
        super().retarget(target)
        self.kernel.org_module = [_Base(target)]

    def state_tensors(self) -> dict[str, Tensor]:
        """The kernel's parameters, a trained scalar apart."""
        return dict(self.kernel.named_parameters())

    def tensors_for_file(self) -> dict[str, Tensor]:
        """The kernel's parameters and alpha, a trained scalar multiplied in."""
        tensors = self.state_tensors()
        scalar = tensors.pop("scalar", None)
        if scalar is not None:
            tensors |= {name: tensors[name] * scalar for name in _FOLDED[self.algorithm] if name in tensors}
        return {"alpha": self.alpha, **tensors}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a file's tensors; a trained scalar is part of them, and goes on from 1."""
        for name, parameter in self.state_tensors().items():
            if name == "scalar":
                parameter.fill_(1.0)
            else:
                parameter.copy_(tensors[name].reshape(parameter.shape))
        if "alpha" in tensors:
            self.set_alpha(float(tensors["alpha"]))

    def set_alpha(self, alpha: float) -> None:
        """Take a file's alpha: the strength, or OFT's constraint."""
        if self.algorithm in ("diag-oft", "boft"):
            super().set_alpha(alpha)
            self.kernel.constraint = alpha * self.kernel.dim
        elif self.is_scaled_by_alpha:
            super().set_alpha(alpha)
            self.kernel.scale = alpha / self.rank

    @torch.no_grad()
    def delta_norm(self) -> Tensor:
        """‖ΔW‖ without DoRA's lengths; of OFT, the length of its blocks, as in LyCORIS."""
        kernel = self.kernel
        if self.algorithm in ("diag-oft", "boft"):
            norm: Tensor = kernel.oft_blocks.float().norm()
            return norm
        training, kernel.training = kernel.training, False
        try:
            delta = self._without_lengths()
        finally:
            kernel.training = training
        return delta.float().norm()

    def _without_lengths(self) -> Tensor:
        """ΔW before DoRA gives it other lengths."""
        kernel, device = self.kernel, _weight(self.target).device
        delta: Tensor
        if self.algorithm == "glora":
            delta = kernel.make_weight(device)
        elif self.algorithm == "lora":
            delta = kernel.make_weight(device) * kernel.scale
        else:
            delta = kernel.get_weight(kernel.shape) * kernel.scalar
        return delta

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Every factor by the same part of it: GLoRA is a sum of two products of two."""
        parameters = self.state_tensors()
        factors = [parameters[name] for name in _FACTORS[self.algorithm] if name in parameters]
        count = 2 if self.algorithm == "glora" else len(factors)
        for each in factors:
            each.mul_(ratio ** (1.0 / count))


class _Base:
    """The adapted module as a kernel sees it: its weight in fp32, without a gradient."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @property
    def weight(self) -> Tensor:
        return _weight(self._target).detach().float()


def make_kernel(target: Target, generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> Any:
    """The module of `lycoris_lora` for a target, drawn from the CPU `generator`; UserError where it cannot be had."""
    form = target.form
    stand_in = _stand_in(target.module, with_weight=bool(form.dora))
    kind = kernel_class(form)
    drops = 0.0 if form.algorithm in ("diag-oft", "boft") else dropout.rank
    with _drawing_from(generator), _quietly():
        try:
            kernel = kind(
                target.key, stand_in, 1.0, target.rank, float(target.alpha), rank_dropout=drops,
                rank_dropout_scale=dropout.scaled, **_arguments(form),
            )  # fmt: skip
        except ValueError as error:
            raise UserError(
                f"network_algorithm = {form.algorithm}: {target.key} has {stand_in.weight.shape[0]} outputs, which "
                f"cannot be divided with network_dim = {target.rank} ({error}); SD's layers can with 10 or 20, or "
                "leave this module out with network_exclude"
            ) from error
    kernel.org_module, kernel.org_forward = [_Base(target)], None
    return kernel


def kernel_class(form: AdapterForm) -> Any:
    """The class of `lycoris_lora` that has a form's algorithm; UserError where the package is missing."""
    package, name = _MODULES[form.algorithm]
    try:
        return getattr(import_module(f"lycoris.modules.{package}"), name)
    except Exception as error:  # the newest raises AttributeError where torch is too old for it
        raise UserError(
            f"network_algorithm = {form.algorithm} needs the package lycoris_lora ({error}): install it (3.4.0 for "
            "torch before 2.4, the newest for others), or choose lora without DoRA, Tucker and scalar"
        ) from error


def _arguments(form: AdapterForm) -> dict[str, Any]:
    arguments: dict[str, Any] = {"use_tucker": form.tucker, "use_scalar": form.scalar, "bypass_mode": False}
    if form.dora:
        arguments |= {"weight_decompose": True, "wd_on_out": form.dora == "out"}
    if form.algorithm == "lokr":
        arguments |= {
            "factor": form.factor, "decompose_both": form.decompose_both, "full_matrix": form.full_matrix,
            "unbalanced_factorization": form.unbalanced,
        }  # fmt: skip
    if form.algorithm in ("diag-oft", "boft"):
        arguments |= {"constraint": float(form.constraint), "rescaled": form.rescaled}
    return arguments


def _stand_in(module: nn.Module, with_weight: bool) -> Any:
    """A plain layer of the same shape: the kernel asks for the class, the sizes and, for some, the weight in fp32."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.Conv2d):
        options: dict[str, Any] = {
            name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")
        }
        layer: nn.Module = nn.Conv2d(module.in_channels, module.out_channels, bias=False, device="meta", **options)
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    if with_weight:
        layer.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
    return layer


def _weight(target: Target) -> Tensor:
    weight = target.module.weight
    assert isinstance(weight, Tensor)
    return weight


@contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let torch's own generator of the CPU begin with a seed from `generator`, and put its state back afterwards."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without `lycoris_lora`'s remarks on each module's sizes."""
    logger = logging.getLogger("LyCORIS")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
