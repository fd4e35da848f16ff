"""How a module is adapted: the algorithm and its own settings, from a run's settings or from a file's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from lora_ext.config.algorithms import HAS_DORA, HAS_SCALAR, HAS_TUCKER
from lora_ext.config.groups import NetworkSettings
from lora_ext.networks.weight_delta.stored import MAX_RANK
from lora_ext.protocols import UserError

Algorithm = Literal["lora", "dylora", "loha", "lokr", "ia3", "full", "diag-oft", "boft", "glora", "tlora", "norm"]
"""LyCORIS' names; "norm" is what norm layers have, whatever the others have."""

DecomposedAxis = Literal["", "out", "in"]


@dataclass(frozen=True)
class AdapterForm:
    """The algorithm of one module, and what else decides which tensors it has.

    `tucker`: 3×3 kernels get a core of their own. `scalar`: a trained factor on the whole, from 0 on. `dora`: the axis
    whose lengths are trained apart (Liu et al. 2024, arXiv:2402.09353), "" for none. `unit` is DyLoRA's, `factor`,
    `decompose_both`, `full_matrix` and `unbalanced` LoKr's, `constraint` and `rescaled` OFT's, `on_input` (IA)³'s;
    `frozen_down` is LoRA-FA (Zhang et al. 2023, arXiv:2308.03303).
    """

    algorithm: Algorithm = "lora"
    tucker: bool = False
    scalar: bool = False
    dora: DecomposedAxis = ""
    unit: int = 4
    factor: int = -1
    decompose_both: bool = False
    full_matrix: bool = False
    unbalanced: bool = False
    constraint: float = 0.0
    rescaled: bool = False
    on_input: bool = False
    frozen_down: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is LoRA or LoCon as sd-scripts has it: two factors and nothing else."""
        return self.algorithm == "lora" and not (self.tucker or self.scalar or self.dora)


PLAIN = AdapterForm()


def form_of_settings(settings: NetworkSettings) -> AdapterForm:
    """What the settings want for modules that nothing else is said of."""
    return only_its_own(whole_form(settings))


def whole_form(settings: NetworkSettings) -> AdapterForm:
    """The same with what other algorithms know, which a preset of one's own may give to some modules."""
    algorithm: Any = settings.network_algorithm
    return AdapterForm(
        algorithm=algorithm,
        tucker=settings.use_tucker,
        scalar=settings.use_scalar,
        dora=("out" if settings.wd_on_output else "in") if settings.dora_wd else "",
        unit=settings.block_size,
        factor=settings.factor,
        decompose_both=settings.decompose_both,
        full_matrix=settings.full_matrix,
        unbalanced=settings.unbalanced_factorization,
        constraint=settings.constraint,
        rescaled=settings.rescaled,
        frozen_down=settings.lora_fa,
    )


_OWN: dict[str, frozenset[str]] = {
    "tucker": HAS_TUCKER,
    "scalar": HAS_SCALAR,
    "dora": HAS_DORA,
    "unit": frozenset({"dylora"}),
    "factor": frozenset({"lokr"}),
    "decompose_both": frozenset({"lokr"}),
    "full_matrix": frozenset({"lokr"}),
    "unbalanced": frozenset({"lokr"}),
    "constraint": frozenset({"diag-oft", "boft"}),
    "rescaled": frozenset({"diag-oft", "boft"}),
    "on_input": frozenset({"ia3"}),
    "frozen_down": frozenset({"lora"}),
}


def only_its_own(form: AdapterForm) -> AdapterForm:
    """The form without what its algorithm does not know: forms that train the same are equal."""
    changed = {name: getattr(PLAIN, name) for name, known in _OWN.items() if form.algorithm not in known}
    return replace(form, **changed)


def effective_alpha(alpha: float, rank: int, rank_stabilised: bool) -> float:
    """Alpha as files have it: 0 stands for the rank; rsLoRA (arXiv:2312.03732) divides by √rank, which goes into it."""
    alpha = alpha or float(rank)
    return alpha * math.sqrt(rank) if rank_stabilised else alpha


@dataclass(frozen=True)
class StoredForm:
    """What a file's tensors of one module are: form, rank, alpha."""

    form: AdapterForm
    rank: int
    alpha: float


def stored_form(key: str, tensors: Mapping[str, Tensor]) -> StoredForm:
    """Form, rank and alpha of the tensors of one module, by suffix.

    In a saved state they have the names that `state_tensors` of adapters gives. LoKr's factor is left open. Raises
    UserError where they are of no kind that is trained.
    """
    form, rank = _algorithm_and_rank(key, tensors)
    if "scalar" in tensors:
        form = replace(form, scalar=True)
    if "dora_scale" in tensors:
        form = replace(form, dora="out" if tensors["dora_scale"].shape[0] > 1 else "in")
    alpha = float(tensors["alpha"]) if "alpha" in tensors and not form.full_matrix else float(rank)
    if form.algorithm in ("diag-oft", "boft"):
        alpha = alpha if "alpha" in tensors else 0.0  # the constraint
        form = replace(form, constraint=alpha, rescaled="rescale" in tensors)
    if form.algorithm == "ia3":
        form = replace(form, on_input=bool(tensors["on_input"]))
    return StoredForm(form, rank, alpha)


def _algorithm_and_rank(key: str, tensors: Mapping[str, Tensor]) -> tuple[AdapterForm, int]:
    def size(name: str, axis: int) -> int:
        if name not in tensors or tensors[name].ndim <= axis:
            raise UserError(f"network_weights: {key} lacks {name}: the file is damaged")
        return int(tensors[name].shape[axis])

    if "lora_down.0" in tensors or "lambda_layer" in tensors:
        return _of_states(tensors)
    if "lora_up.weight" in tensors or "lora_down.weight" in tensors:
        size("lora_up.weight", 1)
        return AdapterForm(tucker="lora_mid.weight" in tensors), size("lora_down.weight", 0)
    if "hada_w1_b" in tensors:
        return AdapterForm("loha", tucker="hada_t1" in tensors), size("hada_w1_b", 0)
    if any(name.startswith("lokr_") for name in tensors):
        return _kronecker(tensors)
    if "oft_blocks" in tensors:
        three = tensors["oft_blocks"].ndim == 3
        return AdapterForm("diag-oft" if three else "boft"), size("oft_blocks", 1 if three else 2)
    if "a1.weight" in tensors:
        return AdapterForm("glora"), size("a2.weight", 0)
    if "diff" in tensors:
        return AdapterForm("full"), 1
    if "w_norm" in tensors:
        return AdapterForm("norm"), 1
    if "on_input" in tensors:
        size("weight", 0)
        return AdapterForm("ia3"), 1
    raise UserError(
        f"network_weights: {key} has {', '.join(sorted(tensors)[:3])}, which is no kind of network that can be trained "
        "on"
    )


def _of_states(tensors: Mapping[str, Tensor]) -> tuple[AdapterForm, int]:
    """Kinds whose tensors stand by themselves in saved states alone; files have them as LoRA."""
    if "lambda_layer" in tensors:
        return AdapterForm("tlora"), int(tensors["lambda_layer"].numel())
    unit = int(tensors["lora_down.0"].shape[0])
    return AdapterForm("dylora", unit=unit), unit * sum(name.startswith("lora_down.") for name in tensors)


def _kronecker(tensors: Mapping[str, Tensor]) -> tuple[AdapterForm, int]:
    form = AdapterForm("lokr", tucker="lokr_t2" in tensors, decompose_both="lokr_w1_a" in tensors)
    if "lokr_w1_a" in tensors:
        return form, int(tensors["lokr_w1_a"].shape[1])
    if "lokr_w2_a" in tensors:
        return form, int(tensors["lokr_w2_a"].shape[0 if form.tucker else 1])
    alpha = float(tensors.get("alpha", 1.0))  # files have the rank there, which does not matter: 10¹⁰ perhaps
    return replace(form, full_matrix=True), round(min(max(1.0, alpha), MAX_RANK))
