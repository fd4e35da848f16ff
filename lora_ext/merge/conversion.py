"""A network's tensors in another program's words: its names, its layout, and where it keeps the strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_ext.merge.layer_shapes import layer_shape
from lora_ext.merge.low_rank_out import lengths_column
from lora_ext.networks.formats import EMBEDDING, NetworkModules
from lora_ext.networks.formats.diffusers_words import diffusers_path
from lora_ext.networks.formats.names import PEFT_LENGTHS
from lora_ext.networks.matching import first_names
from lora_ext.networks.weight_delta import ModuleDelta, module_delta, module_deltas
from lora_ext.networks.weight_delta.decomposed import SUFFIX as LENGTHS
from lora_ext.networks.weight_delta.low_rank import BIAS_SUFFIX
from lora_ext.networks.weight_delta.products import unused
from lora_ext.protocols import UserError

_WITH_ALPHA = ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")


@dataclass
class Converted:
    """Tensors by their new names; how many modules half precision would round once more, how many got more ranks."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    rounded: int = 0
    filled: int = 0


def as_stored(tensors: Mapping[str, Tensor], network: NetworkModules) -> Converted:
    """The tensors by the names that they have."""
    places = network.places
    return Converted(
        {
            name: _meaningful(places[name][1], tensor, network.modules[places[name][0]]) if name in places else tensor
            for name, tensor in tensors.items()
        }
    )


def to_sd_scripts(network: NetworkModules) -> Converted:
    """sd-scripts' names for plain networks and LyCORIS' for all others; every network gets its alpha.

    Raises UserError for what has no name there.
    """
    _refuse_unknown(network)
    deltas = module_deltas(network.modules)
    biased = [key for key, tensors in network.modules.items() if BIAS_SUFFIX in tensors]
    if biased:
        raise _without_words("sd-scripts", "biases of lora_B", biased, "train or save the network without them")
    converted = Converted()
    for key, tensors in network.modules.items():
        for suffix, tensor in tensors.items():
            axes = tensors.get("lora_down.weight", tensors.get("diff", torch.empty(1, 1))).ndim
            meant = lengths_column(tensor, axes) if suffix == LENGTHS else _meaningful(suffix, tensor, tensors)
            converted.tensors[f"{key}.{suffix}"] = meant
        rank = deltas[key].rank
        if "alpha" not in tensors and rank is not None and any(name in tensors for name in _WITH_ALPHA):
            dtype = next(iter(tensors.values())).dtype
            converted.tensors[f"{key}.alpha"] = torch.tensor(float(rank), dtype=dtype)
    for name, parts in network.embeddings.items():
        converted.tensors |= {f"{EMBEDDING}{name}.{part}": tensor for part, tensor in parts.items()}
    return converted


def to_diffusers(network: NetworkModules, base: str) -> Converted:
    """`unet.….lora_A.weight` and `lora_B.weight`, DoRA's lengths by output, the strength multiplied into lora_B.

    diffusers knows one alpha for the U-Net and one for each text encoder, and takes the first module's rank for it:
    all get the largest rank of their part, with zeros. Layers are matrices where the base's are. Raises UserError for
    kinds of networks and modules that diffusers and peft do not have.
    """
    _refuse_unknown(network)
    if network.embeddings:
        names = ", ".join(sorted(network.embeddings))
        raise UserError(f"the embeddings in the file ({names}) have no place in diffusers' files: take them out first")
    deltas = module_deltas(network.modules)
    _refuse_other_kinds(network.modules, deltas)
    paths = {key: str(diffusers_path(key)) for key in network.modules}
    ranks: dict[str, int] = {}
    for key, path in paths.items():
        part = path.partition(".")[0]
        ranks[part] = max(ranks.get(part, 0), deltas[key].rank or 0)
    converted = Converted()
    for key, tensors in network.modules.items():
        path = paths[key]
        up, down, is_exact = _unscaled(key, tensors, base)
        missing = ranks[path.partition(".")[0]] - len(down)
        converted.filled += missing > 0
        up = torch.cat([up, up.new_zeros(len(up), missing, *up.shape[2:])], 1)
        down = torch.cat([down, down.new_zeros(missing, *down.shape[1:])])
        converted.tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        if LENGTHS in tensors:
            lengths = tensors[LENGTHS].reshape(-1)
            converted.tensors[f"{path}.{PEFT_LENGTHS}"] = lengths.reshape(1, -1, 1, 1) if down.ndim == 4 else lengths
        bias = deltas[key].bias
        if bias is not None:
            converted.tensors[f"{path}.lora_B.bias"] = bias
        converted.rounded += not is_exact
    return converted


def _unscaled(key: str, tensors: Mapping[str, Tensor], base: str) -> tuple[Tensor, Tensor, bool]:
    """(up, down, whether both are exact) with scale 1, in the shapes of the layer's factors; fp32 where not exact."""
    factors = module_delta({name: tensor for name, tensor in tensors.items() if name != LENGTHS}).low_rank
    assert factors is not None
    shape = layer_shape(key, factors.shape, base)
    scaled = factors.up.float() * factors.scale
    dtype = tensors["lora_up.weight"].dtype
    is_exact = torch.equal(scaled.to(dtype).float(), scaled) and factors.down.dtype == dtype
    up = scaled.to(dtype) if is_exact else scaled
    rank, kernel = factors.up.shape[1], shape[2:]
    down = factors.down if is_exact else factors.down.float()
    return up.reshape(shape[0], rank, *[1] * len(kernel)), down.reshape(rank, *shape[1:]), is_exact


def _meaningful(suffix: str, tensor: Tensor, module: Mapping[str, Tensor]) -> Tensor:
    """A tensor as it is; the alpha that means nothing, which no half precision may hold, becomes 1."""
    return torch.ones_like(tensor) if suffix in unused(module) else tensor


def _refuse_unknown(network: NetworkModules) -> None:
    if network.unknown:
        raise UserError(
            f"{len(network.unknown)} tensors are of no known network and cannot be converted "
            f"({first_names(network.unknown)}): take them out, or change the precision alone (--to 'as stored')"
        )


def _refuse_other_kinds(modules: Mapping[str, Mapping[str, Tensor]], deltas: Mapping[str, ModuleDelta]) -> None:
    """UserError where a module is no LoRA, or none of diffusers'."""
    others = [key for key, tensors in modules.items() if "lora_down.weight" not in tensors or "bias_values" in tensors]
    if others:
        kinds = ", ".join(sorted({deltas[key].algorithm for key in others}))
        raise _without_words("diffusers", kinds, others, "make a LoRA of it first (resize)")
    nameless = [key for key in modules if diffusers_path(key) is None]
    if nameless:
        raise _without_words("diffusers", "these modules", nameless, "leave the file in sd-scripts' words")
    by_input = [key for key, tensors in modules.items() if LENGTHS in tensors and not _is_by_output(tensors)]
    if by_input:
        raise _without_words("diffusers", "DoRA with a length an input", by_input, "peft knows lengths by output alone")


def _is_by_output(tensors: Mapping[str, Tensor]) -> bool:
    lengths, outputs = tensors[LENGTHS], tensors["lora_up.weight"].shape[0]
    return lengths.numel() == outputs and lengths.shape[0] == outputs


def _without_words(program: str, what: str, keys: Sequence[str], remedy: str) -> UserError:
    return UserError(f"{program} has no words for {what}: {len(keys)} modules ({first_names(keys)}); {remedy}")
