"""Rendering a grid of one network's epochs and weights: every cell is what a single generation would give."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lora_ext.grid.axes import (
    Axis,
    AxisValue,
    EpochFiles,
    NetworkChoice,
    chosen,
    epoch_axis,
    kept_arguments,
    network_axis,
    network_file,
    prompt_with,
    tag_text,
    weight_axis,
)
from lora_ext.grid.drawing import draw_grid
from lora_ext.grid.png import infotext_chunk
from lora_ext.networks.library import Epoch
from lora_ext.protocols import GenerateRequest, ImageGenerator, Progress, UserError


@dataclass(frozen=True)
class GridCell:
    """One picture of a grid, with the request that gives it again on its own; `file` None is without a network."""

    column: str
    row: str
    choice: NetworkChoice
    file: Path | None
    request: GenerateRequest
    image: Image.Image
    infotext: str
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """`cells[row][column]`, and the labelled sheet of them."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[GridCell, ...], ...]
    image: Image.Image

    @property
    def messages(self) -> tuple[str, ...]:
        """What the cells had to tell, each once."""
        return tuple(dict.fromkeys(text for row in self.cells for cell in row for text in cell.messages))

    def save(self, path: Path) -> None:
        """Write the sheet as PNG; its text is the infotext of the cell at the lower right."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.image.save(path, pnginfo=infotext_chunk(self.cells[-1][-1].infotext))


@dataclass(frozen=True)
class _PlannedCell:
    column: AxisValue
    row: AxisValue
    choice: NetworkChoice
    file: Path | None
    request: GenerateRequest


def epoch_weight_grid(
    generator: ImageGenerator,
    request: GenerateRequest,
    name: str,
    epochs: Sequence[Epoch] | None,
    weights: Sequence[float],
    library: EpochFiles,
    include_none: bool = True,
    progress: Progress | None = None,
) -> Grid:
    """Epochs across, weights down, from the prompt of `request`; `epochs` None is every epoch there is.

    A tag of the network in the prompt is replaced in its place, and keeps what it has besides weights and epoch;
    otherwise one is added at the end. `progress` is called as progress(pictures done, pictures in all). Raises
    UserError before the first picture where a file is missing.
    """
    files = library.epochs_of(name)
    columns = _epoch_columns(name, epochs, files, library, include_none)
    if not weights:
        raise UserError("weights: none are given; one is needed at least, like 1 or 0.4-1.0 (+0.2)")
    own_names = {name, *(path.stem for _, path in files)}
    return render_grid(
        generator, request, columns, weight_axis(weights), NetworkChoice(name), own_names, library, progress
    )


def network_weight_grid(
    generator: ImageGenerator,
    request: GenerateRequest,
    names: Sequence[str],
    weights: Sequence[float],
    library: EpochFiles,
    include_none: bool = True,
    progress: Progress | None = None,
) -> Grid:
    """Networks across, weights down, as `epoch_weight_grid` does it with epochs: a file before and after a change."""
    columns = network_axis([*([None] if include_none else []), *names])
    return render_grid(
        generator, request, columns, weight_axis(weights), NetworkChoice(names[0]), set(names), library, progress
    )


def render_grid(
    generator: ImageGenerator,
    request: GenerateRequest,
    columns: Axis,
    rows: Axis,
    base: NetworkChoice,
    own_names: set[str],
    library: EpochFiles,
    progress: Progress | None = None,
) -> Grid:
    """Any two axes against each other; cells with the same prompt (those without a network) are rendered once."""
    seed = request.seed if request.seed >= 0 else random.SystemRandom().randrange(2**32)
    single = replace(request, seed=seed, batch_size=1)
    planned = list(_plan(single, columns, rows, base, own_names, library))
    total = len({cell.request.prompt for cell in planned})
    if progress is not None:
        progress(0, total)
    pictures: dict[str, GridCell] = {}
    cells: list[GridCell] = []
    for plan in planned:
        prompt = plan.request.prompt
        if prompt not in pictures:
            made = generator.generate(plan.request)[0]
            pictures[prompt] = GridCell(
                plan.column.label, plan.row.label, plan.choice, plan.file, plan.request,
                made.image, made.infotext, made.messages,
            )  # fmt: skip
            if progress is not None:
                progress(len(pictures), total)
        cells.append(replace(pictures[prompt], column=plan.column.label, row=plan.row.label, choice=plan.choice))
    width = len(columns.values)
    by_row = tuple(tuple(cells[start : start + width]) for start in range(0, len(cells), width))
    heading = f"{base.network}: “{prompt_with(request.prompt, own_names, None)}”"
    return _grid(by_row, columns, rows, single, heading)


def _plan(
    request: GenerateRequest, columns: Axis, rows: Axis, base: NetworkChoice, own_names: set[str], library: EpochFiles
) -> Iterator[_PlannedCell]:
    """Every cell row by row, its file looked up: nothing is rendered before all of them are known to be there."""
    arguments = kept_arguments(request.prompt, own_names)
    for row in rows.values:
        for column in columns.values:
            choice = chosen(base, ((columns, column), (rows, row)))
            file = network_file(choice, library)
            tag = tag_text(file.stem, choice, arguments) if file is not None else None
            prompt = prompt_with(request.prompt, own_names, tag)
            yield _PlannedCell(column, row, choice, file, replace(request, prompt=prompt))


def _grid(
    cells: tuple[tuple[GridCell, ...], ...], columns: Axis, rows: Axis, request: GenerateRequest, heading: str
) -> Grid:
    column_labels = tuple(value.label for value in columns.values)
    row_labels = tuple(value.label for value in rows.values)
    sheet = draw_grid(
        [[cell.image for cell in row] for row in cells],
        column_labels,
        row_labels,
        heading=heading,
        remark=f"seed {request.seed} · {request.steps} steps · {request.sampler} · CFG {request.cfg_scale:g} · "
        f"{request.width}×{request.height}",
    )
    return Grid(column_labels, row_labels, cells, sheet)


def _epoch_columns(
    name: str,
    epochs: Sequence[Epoch] | None,
    files: Sequence[tuple[int | None, Path]],
    library: EpochFiles,
    include_none: bool,
) -> Axis:
    """The columns, each epoch once and the last one last with its number; all missing epochs are named at once."""
    if not files:
        network_file(NetworkChoice(name, epoch="last"), library)  # raises, naming what there is
    last_epoch = files[-1][0]
    wanted: list[Epoch] = list(epochs) if epochs is not None else _every_epoch(files)
    missing = [epoch for epoch in wanted if epoch != "last" and all(epoch != number for number, _ in files)]
    if missing:
        there = ", ".join(str(number) for number, _ in files if number is not None) or "none with a number"
        raise UserError(
            f"{name} has no file of epoch {', '.join(str(epoch) for epoch in missing)}: there are {there}, and last"
        )
    merged: list[Epoch] = list(dict.fromkeys("last" if epoch == last_epoch else epoch for epoch in wanted))
    if "last" in merged:
        merged = [epoch for epoch in merged if epoch != "last"] + ["last"]
    numbered = "last" if last_epoch is None else f"epoch {last_epoch} (last)"
    labels = [numbered if epoch == "last" else f"epoch {epoch}" for epoch in merged]
    nothing: list[Epoch | None] = [None] if include_none else []
    return epoch_axis([*nothing, *merged], [*("none" for _ in nothing), *labels])


def _every_epoch(files: Sequence[tuple[int | None, Path]]) -> list[Epoch]:
    numbers: list[Epoch] = [number for number, _ in files[:-1] if number is not None]
    return [*numbers, "last"]
