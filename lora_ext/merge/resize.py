"""Resizing networks: every module gets a lower rank, and what is lost is the least that is possible with it."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lora_ext.checkpoint.file_weights import CheckpointFile, open_checkpoint_file
from lora_ext.config.tools.resize import ResizeSettings
from lora_ext.merge.inputs import base_of
from lora_ext.merge.low_rank_out import Source, changed_metadata, kind_metadata, named_tensors, with_stored_alpha
from lora_ext.merge.memory import check_memory
from lora_ext.merge.module_spectra import NetworkSpectrum, multiplied, network_spectrum, resizable
from lora_ext.merge.ranks import parse_rank_rule
from lora_ext.merge.recipes import Recipe, Reference, parse_recipes
from lora_ext.merge.references import references_of
from lora_ext.merge.resize_report import Resized, report_of
from lora_ext.merge.resized_ranks import Ranks, Selection, selected_by_rank, selected_by_recipe
from lora_ext.merge.side_by_side import side_by_side
from lora_ext.merge.tools import Tool
from lora_ext.merge.work import OutputFile, ToolReport, Work, all_or_none, check_output, precision_of, write_result
from lora_ext.networks.file import NetworkFile, Precision, network_size
from lora_ext.networks.formats import NetworkModules, canonical_modules
from lora_ext.networks.matching import match
from lora_ext.networks.weight_delta import ModuleDelta
from lora_ext.protocols import UserError

_SLACK = 256_000_000  # bytes: batches of factors in fp64
_PARTS = 1000  # of the progress


@dataclass(frozen=True)
class _Order:
    """A network to resize, and the file that each recipe makes of it; None stands for ranks without a recipe."""

    path: Path
    outputs: Sequence[tuple[Recipe | None, Path]]


@dataclass(frozen=True)
class _Opened:
    """A network that was read, with what its modules do and those of them that the checkpoint has."""

    file: NetworkFile
    network: NetworkModules
    deltas: dict[str, ModuleDelta]
    missing: list[str]


def run(settings: ResizeSettings, work: Work) -> ToolReport:
    """Write the resized networks, all or none: a stop takes away what it has written, but for what was replaced."""
    return _resized(settings, work, writes=True)


def preview(settings: ResizeSettings, work: Work) -> ToolReport:
    """The ranks, what is kept, and the files' sizes, with all singular values of a single result; writes nothing."""
    return _resized(settings, work, writes=False)


def _resized(settings: ResizeSettings, work: Work, writes: bool) -> ToolReport:
    ranks, recipes = _chosen(settings)
    checkpoint = _checkpoint(settings, recipes, work)
    orders = _orders(settings, recipes, work, [checkpoint.file.path] if checkpoint else [])
    results: list[Resized] = []
    with all_or_none(out for order in orders for _, out in order.outputs) if writes else contextlib.nullcontext():
        for number, order in enumerate(orders):
            results += _one(settings, work, order, ranks, checkpoint, writes, _portion(work, number, len(orders)))
        work.step(_PARTS, _PARTS)
    return report_of(results, with_values=not writes)


def _chosen(settings: ResizeSettings) -> tuple[Ranks, list[Recipe]]:
    """How ranks are chosen; UserError where nothing says it, or more than one thing does."""
    recipes = parse_recipes(settings.recipe)
    rule = parse_rank_rule(settings.dynamic, settings.kohya_rank) if settings.dynamic.strip() else None
    if recipes and (rule or settings.rank or settings.conv_rank):
        raise UserError("a recipe chooses the ranks: leave out rank, conv_rank and dynamic, or the recipe")
    if not recipes and rule is None and settings.rank is None:
        raise UserError(
            "nothing says how far to resize: give a rank (--rank 32), a rule (--dynamic sv_fro=0.9) or a recipe "
            "(--recipe fro_ckpt=1,thr=-3.55 --checkpoint FILE)"
        )
    return Ranks(rule, settings.rank, settings.conv_rank or settings.rank), recipes


def _checkpoint(settings: ResizeSettings, recipes: Sequence[Recipe], work: Work) -> CheckpointFile | None:
    needing = next((recipe for recipe in recipes if recipe.needs_checkpoint), None)
    if not settings.checkpoint.strip():
        if needing is not None:
            raise UserError(
                f"recipe = {needing.text!r} compares with a checkpoint: name the one that the network was trained on"
            )
        return None
    return open_checkpoint_file(work.checkpoint(settings.checkpoint))


def _orders(settings: ResizeSettings, recipes: Sequence[Recipe], work: Work, also_read: Sequence[Path]) -> list[_Order]:
    """Which file becomes which; UserError where an output may not be written, before any work."""
    paths = [work.network(line) for line in settings.files.splitlines() if line.strip()]
    if not paths:
        raise UserError("no network is given: name the file, or the files, to resize")
    if not settings.out.strip():
        raise UserError("no output is given: name the file to write (--out), or a folder for several")
    out = Path(settings.out.strip())
    if len(paths) * max(len(recipes), 1) == 1:
        orders = [_Order(paths[0], [(recipes[0] if recipes else None, out)])]
    elif out.suffix.lower() == ".safetensors":
        raise UserError(f"{out} is the name of one file, and there are several to write: give a folder")
    else:
        orders = [_Order(path, _named(out, path, recipes)) for path in paths]
    outputs = [output for order in orders for _, output in order.outputs]
    twice = [str(path) for path, count in Counter(outputs).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} would be written twice: resize networks of one name, or like recipes, one by one")
    needed = sum(order.path.stat().st_size * len(order.outputs) for order in orders)
    for output in outputs:
        check_output(output, [*paths, *also_read], settings.overwrite, needed)
    return orders


def _named(folder: Path, path: Path, recipes: Sequence[Recipe]) -> list[tuple[Recipe | None, Path]]:
    if len(recipes) < 2:
        return [(recipes[0] if recipes else None, folder / f"{path.stem}.safetensors")]
    return [(recipe, folder / f"{path.stem}_{recipe.slug}.safetensors") for recipe in recipes]


def _one(
    settings: ResizeSettings,
    work: Work,
    order: _Order,
    ranks: Ranks,
    checkpoint: CheckpointFile | None,
    writes: bool,
    portion: Callable[[float, float], Callable[[int, int], None]],
) -> list[Resized]:
    """Resize one network in every way that was asked for."""
    check_memory(3 * order.path.stat().st_size + _SLACK, f"resizing {order.path.name}")
    opened = _open(order.path, checkpoint, work)
    recipes = [recipe for recipe, _ in order.outputs if recipe is not None]
    shapes = {key: view.shape for key, view in checkpoint.weights.items()} if checkpoint else {}
    fixed = None if recipes or ranks.rule else ranks.limit_of
    present = {key: delta for key, delta in opened.deltas.items() if key not in opened.missing}
    spectrum = network_spectrum(
        opened.network, opened.file.tensors, present, work.device, portion(0, 0.7), fixed, shapes,
        base_of(opened.deltas, opened.file.metadata),
        ranks.suffices if writes and not recipes else None,
    )  # fmt: skip
    references: dict[str, Reference] = {}
    if checkpoint is not None and any(recipe.needs_checkpoint for recipe in recipes):
        references = references_of(spectrum.modules, checkpoint, recipes, work.device, portion(0.7, 0.9))
    precision = precision_of(settings.precision, opened.file.tensors)
    results = []
    for recipe, out in order.outputs:
        selection = (
            selected_by_rank(spectrum.modules, ranks)
            if recipe is None
            else selected_by_recipe(spectrum.modules, recipe, references, 4 if precision == "float" else 2)
        )
        step = portion(0.9, 1.0) if writes else None
        written = _write(opened, spectrum, selection, out, precision, work, step)
        results.append(Resized(opened.file, spectrum, selection, opened.missing, written))
    return results


def _open(path: Path, checkpoint: CheckpointFile | None, work: Work) -> _Opened:
    """A network with what its modules do; UserError where there is nothing to resize, or the checkpoint is another."""
    file = work.read_network(path)
    try:
        network = canonical_modules(file.tensors, file.metadata, checkpoint.architecture if checkpoint else None)
        deltas = resizable(network)
        if not deltas:
            raise UserError("has no modules that have a rank: there is nothing to resize")
        unmatched: Sequence[str] = match(deltas, checkpoint.weights, checkpoint).unmatched if checkpoint else ()
        missing = [key for key in unmatched if key in deltas]
        if checkpoint is not None and len(missing) == len(deltas):
            raise UserError(f"{checkpoint.name} has none of its modules: choose the checkpoint that it was trained on")
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error
    return _Opened(file, network, deltas, missing)


def _write(
    opened: _Opened,
    spectrum: NetworkSpectrum,
    selection: Selection,
    out: Path,
    precision: Precision,
    work: Work,
    step: Callable[[int, int], None] | None,
) -> OutputFile:
    """Write the chosen singular values; with no `step` only tell how large the file would be."""
    kept = {key: multiplied(key, tensors, selection.rescale) for key, tensors in spectrum.kept.items()}
    chosen = {module.key: module for module in spectrum.modules if module.key in selection.places}
    outlines = {
        key: with_stored_alpha(module.outline(len(selection.places[key])), precision) for key, module in chosen.items()
    }
    modules = kept | outlines
    if not modules:
        raise UserError(
            f"{opened.file.path.name}: nothing in it reaches the recipe's threshold, so that the file would be empty: "
            "give a lower thr, or a larger size"
        )
    said = kind_metadata(opened.file.metadata, modules)
    metadata = changed_metadata(said, modules, selection.what, [Source.of(opened.file)], out)
    tensors = spectrum.others | named_tensors(modules)
    if step is None:
        return OutputFile(out, network_size(tensors, metadata, precision))

    def made(key: str) -> Mapping[str, Tensor]:
        return with_stored_alpha(chosen[key].tensors(selection.places[key], selection.rescale), precision)

    def content(names: Sequence[str]) -> Iterator[Tensor]:
        """Modules are made when their turn comes, factors a few ahead of it; dense ones would fill the memory so."""
        key_of = {name: key for key, module in outlines.items() for name in named_tensors({key: module})}
        order = list(dict.fromkeys(key_of[name] for name in names if name in key_of))
        ahead = side_by_side(made, [key for key in order if chosen[key].factored], work.device)
        ready: dict[str, Tensor] = {}
        done = itertools.count()
        for name in names:
            key = key_of.get(name)
            if key is not None and name not in ready:
                step(next(done), len(order))
                ready |= named_tensors({key: next(ahead) if chosen[key].factored else made(key)})
            yield tensors[name] if key is None else ready.pop(name)

    return write_result(out, tensors, metadata, precision, work, content)


def _portion(work: Work, number: int, count: int) -> Callable[[float, float], Callable[[int, int], None]]:
    """Progress from one share to another of the work on one network of several."""

    def between(start: float, end: float) -> Callable[[int, int], None]:
        def step(done: int, total: int) -> None:
            share = start + (end - start) * done / max(total, 1)
            work.step(int((number + share) / count * _PARTS), _PARTS)

        return step

    return between


TOOL = Tool(
    "resize",
    "Resize",
    "Bring networks to a lower rank: smaller files that do nearly the same.",
    ResizeSettings,
    run,
    preview,
)
