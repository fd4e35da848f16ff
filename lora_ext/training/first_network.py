"""The network file that a run trains on: which one, whether it fits, and what is taken over from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Architecture, Checkpoint
from lora_ext.config.given_path import given_path
from lora_ext.config.groups import NetworkSettings
from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.adapters.lycoris import kernel_class
from lora_ext.networks.blocks import block_index
from lora_ext.networks.file import NetworkFile, read_network
from lora_ext.networks.formats import canonical_modules
from lora_ext.networks.forms import AdapterForm, StoredForm, form_of_settings, stored_form
from lora_ext.networks.library import NetworkLibrary
from lora_ext.networks.network import Network, squeezed
from lora_ext.networks.targets import Target, candidates
from lora_ext.networks.weight_delta import module_deltas
from lora_ext.protocols import UserError

_TEXT = "lora_te"


def find_network(setting: str, name: str, folders: Sequence[Path]) -> Path:
    """The file that a setting means: a path, or a name in these folders; UserError where there is none."""
    path = given_path(name)
    if path.is_file():
        return path
    found = NetworkLibrary(folders).find(path.stem if path.suffix == ".safetensors" else name)
    if found is None:
        places = ", ".join(str(folder) for folder in folders)
        raise UserError(f"{setting} = {name}: there is no such file, and no network of this name in {places}")
    return found


def first_network(settings: NetworkSettings, folders: Sequence[Path], architecture: Architecture) -> NetworkFile | None:
    """The network that the training begins with, None where it begins anew; UserError where it cannot be trained on.

    Its tensors have sd-scripts' names for this kind of checkpoint, whatever names the file has them under.
    """
    name = settings.network_weights.strip()
    if not name:
        return None
    file = read_network(find_network("network_weights", name, folders))
    found = canonical_modules(file.tensors, file.metadata, architecture)
    if not found.modules:
        raise UserError(f"network_weights = {name}: none of its {len(file.tensors)} tensors is one of a network")
    for key, tensors in found.modules.items():
        stored_form(key, tensors)
    try:
        module_deltas(found.modules)
    except UserError as error:
        raise UserError(f"network_weights = {name}: {error}") from error
    named = {f"{key}.{suffix}": each for key, tensors in found.modules.items() for suffix, each in tensors.items()}
    return replace(file, tensors={**named, **{each: file.tensors[each] for each in found.unknown}})


def tensors_of(file: NetworkFile) -> dict[str, Tensor]:
    """A file's tensors by sd-scripts' names, without those that nobody understands."""
    return {f"{key}.{suffix}": each for key, tensors in file.modules.items() for suffix, each in tensors.items()}


def like_tensors(
    checkpoint: Checkpoint, settings: NetworkSettings, parts: Sequence[str], tensors: Mapping[str, Tensor]
) -> list[Target]:
    """Targets for the modules that a network has, with its algorithms, ranks and alphas; of these parts.

    `tensors` are those of a file or of a saved state. Raises UserError where it has others besides.
    """
    wanted = form_of_settings(settings)
    known = {each.key: each for each in candidates(checkpoint) if each.group in parts}
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, suffix = name.partition(".")
        modules.setdefault(key, {})[suffix] = tensor
    unknown = sorted(set(modules) - set(known))
    if unknown:
        raise UserError(
            f"network_weights: {counted(unknown)} of the file cannot be trained here ({', '.join(unknown[:3])}): it is "
            "for another kind of checkpoint, or for a part that is not trained"
        )
    targets = []
    for key in sorted(modules):
        candidate, stored = known[key], stored_form(key, modules[key])
        form, alpha = _form_like(stored, wanted, modules[key], candidate.module.weight)
        block = block_index(key, checkpoint.architecture) if candidate.group == "unet" else None
        targets.append(Target(key, candidate.module, stored.rank, alpha, candidate.group, block, form))
    return targets


def _form_like(
    stored: StoredForm, wanted: AdapterForm, tensors: Mapping[str, Tensor], weight: object
) -> tuple[AdapterForm, float]:
    """The form of a file's module, with what files do not tell from the settings; and its alpha there."""
    form, alpha = stored.form, stored.alpha
    if wanted.algorithm == "dylora" and form.is_plain:
        return wanted, alpha / wanted.unit  # its files are LoRA
    if form.algorithm == wanted.algorithm:
        form = replace(form, scalar=form.scalar or wanted.scalar, frozen_down=wanted.frozen_down)
    if form.algorithm == "lokr":
        assert isinstance(weight, Tensor)
        form = _with_factor(form, tensors, weight.shape)
    return form, alpha


def _with_factor(form: AdapterForm, tensors: Mapping[str, Tensor], shape: Sequence[int]) -> AdapterForm:
    """The form with the factor that gives LoKr's small factor the size that it has."""
    kernel_class(form)  # says so where the package is missing
    from lycoris.functional import factorization

    if "lokr_w1" in tensors:
        size = tuple(tensors["lokr_w1"].shape)
    else:
        size = (tensors["lokr_w1_a"].shape[0], tensors["lokr_w1_b"].shape[1])
    for factor in (-1, *range(1, max(size) + 1)):
        outputs, inputs = (factorization(width, factor) for width in shape[:2])
        for unbalanced in (False, True):
            if size == (outputs[unbalanced], inputs[0]):
                return replace(form, factor=factor, unbalanced=unbalanced)
    raise UserError(f"network_weights: a LoKr factor of {size} does not divide a weight of {tuple(shape)}")


def begin_with(network: Network, file: NetworkFile) -> list[str]:
    """Take over a file's weights; modules that it lacks stay as they are. Returns what a person should know.

    Raises UserError where it has modules that the network lacks, or of another algorithm or rank; nothing has changed
    then.
    """
    has_text = any(key.startswith(_TEXT) for key in network.adapters)
    has_unet = any(not key.startswith(_TEXT) for key in network.adapters)
    left_out = [key for key in file.modules if not (has_text if key.startswith(_TEXT) else has_unet)]
    modules = {key: tensors for key, tensors in file.modules.items() if key not in left_out}
    unknown = [key for key in modules if key not in network.adapters]
    others = [_difference(network.adapters[key], key, modules[key]) for key in modules if key not in unknown]
    if unknown or any(others):
        what = f"{counted(unknown)} that this run does not train" if unknown else next(filter(None, others))
        raise UserError(
            f"network_weights = {file.path.name}: the file has {what}; switch dim_from_weights on to take all over "
            "from the file, or set network_algorithm, network_dim and conv_dim as there"
        )
    alphas = {note for key, tensors in modules.items() for note in _take_over(network.adapters[key], key, tensors)}
    notes = []
    if left_out:
        notes.append(f"{counted(left_out)} of {file.path.name} are left out: their part is not trained")
    if alphas:
        notes.append(f"{file.path.name} has alphas of its own, which are kept ({', '.join(sorted(alphas))})")
    if missing := sorted(set(network.adapters) - set(file.modules)):
        notes.append(f"{file.path.name} has nothing for {counted(missing)}: these begin anew")
    return notes


def _difference(adapter: Adapter, key: str, tensors: Mapping[str, Tensor]) -> str:
    """Why a file's tensors are not an adapter's, in words; empty where they are."""
    wanted = {name: squeezed(each.shape) for name, each in adapter.tensors_for_file().items() if name != "alpha"}
    given = {name: squeezed(each.shape) for name, each in tensors.items() if name != "alpha"}
    if wanted == given:
        return ""
    stored, form = stored_form(key, tensors), adapter.target.form
    if wanted.keys() != given.keys():
        return f"{stored.form.algorithm} ({', '.join(sorted(given)[:3])}) instead of {form.algorithm} in {key}"
    if stored.rank != adapter.rank:
        return f"rank {stored.rank} instead of {adapter.rank}"
    name = next(name for name in wanted if wanted[name] != given[name])
    return f"{name} of {tuple(tensors[name].shape)} instead of {wanted[name]} in {key}"


def _take_over(adapter: Adapter, key: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Load a file's tensors, and say where they have another alpha than the settings give."""
    own, stored = adapter.tensors_for_file(), {name: tensor.float() for name, tensor in tensors.items()}
    if "alpha" not in own:
        adapter.load_tensors(stored)
        return []
    before, alpha = float(own["alpha"]), stored_form(key, tensors).alpha
    adapter.load_tensors({**stored, "alpha": torch.tensor(alpha)})
    after = float(adapter.tensors_for_file()["alpha"])
    return [f"{after:g} instead of {before:g}"] if after != before else []


def counted(keys: Sequence[str]) -> str:
    """How many modules, in words."""
    return f"{len(keys)} module{'s' if len(keys) != 1 else ''}"
