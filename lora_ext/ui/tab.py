"""The tab, for any host: training, further panels, network files, tools for files, and past runs.

A run belongs to the runner's thread and the registry, not to this page: the page's script polls the status route,
so a page that was closed and opened again shows the run as it is. The form goes through routes of its own
(web/form_routes.py), not through gradio's events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_ext.protocols import Host
from lora_ext.ui.files_page import files_page
from lora_ext.ui.networks_page import NETWORKS_PANEL
from lora_ext.ui.pieces import RUNS_PANEL
from lora_ext.ui.train_page import train_page
from lora_ext.web import markup


@dataclass(frozen=True)
class Panel:
    """A further tab of the page: its title, and what builds its content inside its gradio tab."""

    title: str
    build: Callable[[gr.Tab], None]


def make_tab(
    host: Host,
    panels: Sequence[Panel] = (),
    defaults: Mapping[str, Any] | None = None,
    program: str = "webui",
    page_key: str = "",
) -> gr.Blocks:
    """The tab as Blocks of its own, to be rendered inside a program's page.

    `panels` stand between training and past runs; `defaults` are settings that differ from the declared ones;
    `program` is the one that serves the page (webui, standalone), for what its script does outside this tab;
    `page_key` goes along with all that its script asks, where the program wants one.
    """
    with gr.Blocks(analytics_enabled=False, title="LoRA Workshop") as tab:
        gr.HTML(lambda: markup.status_bar(host.checkpoint_info()), elem_id="lw-status")
        with gr.Tabs(elem_id="lw-tabs"):
            with gr.Tab("Train", elem_id="lw-tab-train"):
                gr.HTML(train_page(defaults or {}, program, page_key), elem_id="lw-train-page")
            for panel in panels:
                with gr.Tab(panel.title, elem_id=f"lw-tab-{panel.title.lower()}") as opened:
                    panel.build(opened)
            with gr.Tab("Networks", elem_id="lw-tab-networks"):
                gr.HTML(NETWORKS_PANEL, elem_id="lw-networks-panel")
            with gr.Tab("Files", elem_id="lw-tab-files"):
                gr.HTML(files_page(), elem_id="lw-files-panel")
            with gr.Tab("Runs", elem_id="lw-tab-runs"):
                gr.HTML(RUNS_PANEL, elem_id="lw-runs-panel")
    return tab
