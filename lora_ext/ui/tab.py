"""The training tab, for any host: pictures, settings, plan, start, the run that goes on, and past runs.

A run belongs to the runner's thread and the registry, not to this page: the page's script polls the status route,
so a page that was closed and opened again shows the run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_ext.config.toml_files import read_config
from lora_ext.config.train_config import TrainConfig, all_settings
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import Host, UserError
from lora_ext.ui import markup
from lora_ext.ui.forms import FOLDER_FIELD, MAIN_FIELDS, SettingsForm, folded_fields, make_field, make_group
from lora_ext.ui.pieces import CONTROLS, RUNS_PANEL, live_panel, step_heading, try_panel
from lora_ext.web.planning import PlanningDesk
from lora_ext.web.requests import problems_of

_NO_PICTURES = "Give the folder of your pictures and press Look."
_NO_PLAN = "Steps and files stand here as soon as there are pictures."


@dataclass(frozen=True)
class Panel:
    """A further tab of the page: its title, and what builds its content inside its gradio tab."""

    title: str
    build: Callable[[gr.Tab], None]


def make_tab(
    host: Host,
    runner: JobRunner,
    panels: Sequence[Panel] = (),
    desk: PlanningDesk | None = None,
    defaults: Mapping[str, Any] | None = None,
    program: str = "webui",
    page_key: str = "",
) -> gr.Blocks:
    """The tab as Blocks of its own, to be rendered inside a program's page.

    `panels` stand between training and past runs; `defaults` are settings that differ from the declared ones;
    `program` is the one that serves the page (webui, standalone), for what its script does outside this tab;
    `page_key` goes along with all that its script asks, where the program wants one.
    """
    actions = TrainingActions(host, runner, desk or PlanningDesk(host))
    with gr.Blocks(analytics_enabled=False, title="LoRA Workshop") as tab:
        gr.HTML(lambda: markup.status_bar(host.checkpoint_info()), elem_id="lw-status")
        with gr.Tabs(elem_id="lw-tabs"):
            with gr.Tab("Train", elem_id="lw-tab-train"):
                _training_page(actions, defaults or {}, program, page_key)
            for panel in panels:
                with gr.Tab(panel.title, elem_id=f"lw-tab-{panel.title.lower()}") as opened:
                    panel.build(opened)
            with gr.Tab("Runs", elem_id="lw-tab-runs"):
                gr.HTML(RUNS_PANEL, elem_id="lw-runs-panel")
    return tab


class TrainingActions:
    """What the training page's buttons do; each returns what its outputs show, and no error leaves it."""

    def __init__(self, host: Host, runner: JobRunner, desk: PlanningDesk) -> None:
        self.host = host
        self.runner = runner
        self.desk = desk

    def look(self, form: SettingsForm, values: Sequence[Any], asked: bool = True) -> tuple[str, str]:
        """(dataset report, plan), the folder read anew; an empty folder field is an error only where it was `asked`."""
        try:
            config = form.config(values)
            if not asked and not config.dataset.train_data_dir.strip():
                return markup.hint(_NO_PICTURES), markup.hint(_NO_PLAN)
            look, plan = self.desk.plan(config, fresh=True)
        except UserError as error:
            return markup.errors(problems_of(error)), markup.hint(_NO_PLAN)
        return markup.dataset_report(look), markup.plan_card(config, look, plan)

    def plan(self, form: SettingsForm, values: Sequence[Any]) -> str:
        """The plan of what stands in the fields; a page without a folder has none yet."""
        try:
            config = form.config(values)
            if not config.dataset.train_data_dir.strip():
                return markup.hint(_NO_PLAN)
            return markup.plan_card(config, *self.desk.plan(config))
        except UserError as error:
            return markup.errors(problems_of(error))

    def start(self, form: SettingsForm, values: Sequence[Any]) -> str:
        """Start or queue a run; what is wrong stands where the plan stood. The page's script shows the run."""
        try:
            config = form.config(values)
            self.desk.check_paths(config)
            self.runner.start(config)
        except UserError as error:
            return markup.errors(problems_of(error))
        return self.plan(form, values)

    def restore(self, form: SettingsForm, run_id: str) -> list[dict[str, Any]]:
        """The settings of a run, or of the present or latest one, for the fields; no change where there is none."""
        config = self._config_of(run_id.strip())
        return form.updates(config) if config is not None else [gr.update() for _ in form.fields]

    def _config_of(self, run_id: str) -> TrainConfig | None:
        try:
            if not run_id:
                current = self.runner.status().record
                latest = [current] if current is not None else self.runner.registry.records()[:1]
                if not latest:
                    return None
                run_id = latest[0].id
            return read_config(self.runner.registry.config_path(run_id))
        except UserError:  # a run of another version, or one that was deleted: the fields stay as they are
            return None


def _training_page(actions: TrainingActions, defaults: Mapping[str, Any], program: str, page_key: str) -> None:
    known = all_settings()
    fields: dict[str, gr.components.Component] = {}
    gr.HTML(step_heading(1, "Pictures"))
    with gr.Row(elem_id="lw-folder-row"):
        fields[FOLDER_FIELD] = make_field(known[FOLDER_FIELD], defaults, scale=8)
        look = gr.Button("Look", elem_id="lw-look", scale=0, min_width=110)
    report = gr.HTML(markup.hint(_NO_PICTURES), elem_id="lw-report")
    gr.HTML(step_heading(2, "Settings"))
    with gr.Row(elem_id="lw-main-fields", elem_classes=["lw-fields"]):
        for name in MAIN_FIELDS:
            fields[name] = make_field(known[name], defaults, min_width=150)
    with gr.Column(elem_id="lw-groups"):
        for group, names in folded_fields(fields).items():
            fields |= make_group(group, names, defaults)
    gr.HTML(step_heading(3, "Plan"))
    plan = gr.HTML(markup.hint(_NO_PLAN), elem_id="lw-plan")
    gr.HTML(step_heading(4, "Training"))
    with gr.Row(elem_id="lw-start-row"):
        start = gr.Button("Start", variant="primary", elem_id="lw-start", scale=0, min_width=140)
        gr.HTML(CONTROLS, elem_id="lw-controls")
    gr.HTML(live_panel(page_key), elem_id="lw-live-panel")
    gr.HTML(step_heading(5, "Try it"))
    gr.HTML(try_panel(program), elem_id="lw-try-panel")
    with gr.Row(elem_classes=["lw-hidden"]):
        run = gr.Textbox(label="run", elem_id="lw-restore-run")
        restore = gr.Button("restore", elem_id="lw-restore")
    form = SettingsForm(fields)
    _connect(actions, form, _Parts(look, report, plan, start, run, restore))


@dataclass(frozen=True)
class _Parts:
    """What of the training page takes part in events, besides the fields."""

    look: gr.Button
    report: gr.HTML
    plan: gr.HTML
    start: gr.Button
    run: gr.Textbox
    restore: gr.Button


def _connect(actions: TrainingActions, form: SettingsForm, parts: _Parts) -> None:
    """Every handler is short and goes around gradio's queue: a page is never blocked by a run."""
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

    def look(*values: Any) -> tuple[str, str]:
        return actions.look(form, values)

    def plan(*values: Any) -> str:
        return actions.plan(form, values)

    def start(*values: Any) -> str:
        return actions.start(form, values)

    def show(*values: Any) -> tuple[str, str]:
        return actions.look(form, values, asked=False)

    def restore(run_id: str) -> list[dict[str, Any]]:
        return actions.restore(form, run_id)

    shown = [parts.report, parts.plan]
    parts.look.click(look, form.inputs, shown, **quiet)
    form.fields[FOLDER_FIELD].submit(look, form.inputs, shown, **quiet)
    for name, field in form.fields.items():
        if isinstance(field, gr.Textbox):
            field.blur(plan, form.inputs, parts.plan, **quiet)
            if name != FOLDER_FIELD:
                field.submit(plan, form.inputs, parts.plan, **quiet)
        else:
            field.change(plan, form.inputs, parts.plan, **quiet)
    started = parts.start.click(start, form.inputs, parts.plan, **quiet)
    started.then(None, None, None, _js="() => { window.loraWorkshop.poll(); }")
    restored = parts.restore.click(restore, parts.run, form.inputs, **quiet)
    restored.then(show, form.inputs, shown, **quiet)
