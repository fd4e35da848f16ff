"""The standalone app's panel for an epoch × weight grid."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lora_ext.grid.axes import network_names
from lora_ext.grid.render import Grid, epoch_weight_grid, network_weight_grid
from lora_ext.grid.values import parse_epochs, parse_numbers
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import Cancelled, GenerateRequest, UserError
from lora_ext.ui.sampling_fields import SamplingFields, refuse_while_training, sampling_fields
from lora_ext.web import markup
from lora_ext.web.pictures import picture_url


class GridPanel:
    """Renders one grid at a time, and stops it on request."""

    def __init__(self, host: StandaloneHost, runner: JobRunner) -> None:
        self.host = host
        self.runner = runner
        self._stop = threading.Event()

    def build(self, tab: gr.Tab, start: GenerateRequest) -> None:
        """The panel in the present gradio context; the list of networks is renewed when its tab is opened."""
        with gr.Row(elem_classes=["lw-fields"]):
            network = gr.Dropdown(
                network_names(self.host.library), label="Network", elem_id="lw-grid-network",
                info="trained here, or put into the folder; several with commas stand side by side",
                elem_classes=["lw-field"], allow_custom_value=True,
            )  # fmt: skip
            epochs = _text("epochs", "Epochs", "all, 1-5, 2-10 (+2), last", "all")
            weights = _text("weights", "Weights", "0.8, 0.4-1.2 (+0.2), 0-1 [5]", "0.4-1.0 (+0.2)")
            nothing = gr.Checkbox(
                True, label="Column without the network", info="the picture of the checkpoint alone",
                elem_id="lw-grid-none", elem_classes=["lw-field"],
            )  # fmt: skip
        fields = sampling_fields(self.host, "grid", start, several=False)
        with gr.Row():
            button = gr.Button("Draw the grid", variant="primary", elem_id="lw-grid")
            stop = gr.Button("Stop", elem_id="lw-grid-stop", scale=0, min_width=100)
        result = gr.HTML(markup.hint("The grid appears here."), elem_id="lw-grid-result")
        inputs = [network, epochs, weights, nothing, *fields.inputs]

        def draw(*values: Any, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008 (gradio's way to inject it)
            return self.draw(fields, values, progress)

        def renew() -> dict[str, Any]:
            names = network_names(self.host.library)
            latest = self.runner.registry.records()[:1]
            chosen = {"value": latest[0].name} if latest and latest[0].name in names else {}
            return gr.update(choices=names, **chosen)

        button.click(draw, inputs, result)
        stop.click(self._stop.set, None, None, queue=False)
        tab.select(renew, None, network, queue=False, show_progress="hidden")

    def draw(self, fields: SamplingFields, values: Sequence[Any], progress: gr.Progress) -> str:
        """The grid as HTML, saved in the host's folder; what is wrong in red words."""
        name, epochs, weights, nothing = values[:4]
        done_so_far = [0, 0]

        def show(done: int, total: int) -> None:
            done_so_far[:] = done, total
            if self._stop.is_set() and done < total:
                raise Cancelled("stopped on request")
            progress((done, total), desc=f"picture {min(done + 1, total)} of {total}", unit="pictures")

        self._stop.clear()
        try:
            refuse_while_training(self.runner, "draw the grid")
            if not name:
                raise UserError("Network is empty: choose one; train one first if the list is empty")
            request, numbers = fields.request(values[4:]), parse_numbers(weights or "", "Weights")
            names = [part.strip() for part in name.split(",") if part.strip()]
            if len(names) > 1 and self.host.library.find(name) is None:
                grid = network_weight_grid(self.host, request, names, numbers, self.host.library, bool(nothing), show)
            else:
                chosen = parse_epochs(epochs or "", "Epochs")
                grid = epoch_weight_grid(
                    self.host, request, name, chosen, numbers, self.host.library, bool(nothing), show
                )
            path = self.host.folders().images / "grids" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.png"
            grid.save(path)
        except UserError as error:
            return markup.errors([str(error)])
        except Cancelled:
            return markup.hint(f"Stopped after {done_so_far[0]} of {done_so_far[1]} pictures.")
        return grid_html(grid, path)


def _text(name: str, label: str, info: str, value: str) -> gr.Textbox:
    return gr.Textbox(value, label=label, info=info, max_lines=1, elem_id=f"lw-grid-{name}", elem_classes=["lw-field"])


def grid_html(grid: Grid, path: Path) -> str:
    """The sheet, which opens in full size, and what its cells had to tell."""
    address = escape(picture_url(path))
    return (
        f'<div class="lw-grid-sheet"><a href="{address}" target="_blank" rel="noopener">'
        f'<img src="{address}" alt="epochs × weights"></a></div>{markup.warnings(grid.messages)}'
        f'<p class="lw-hint">saved as {escape(str(path))}</p>'
    )
