"""Routes of the page's form: what stands in it at first, the plan of what stands in it, and the start from there.

They answer with pieces of the page (HTML whose foreign text is escaped), and with the problems beside their fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from lora_ext.config.toml_files import read_config
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.jobs.runner import JobRunner
from lora_ext.protocols import UserError
from lora_ext.web import markup
from lora_ext.web.form_values import problems_by_field, problems_of, shown_values
from lora_ext.web.planning import NO_PICTURES, NO_PLAN, PlanningDesk


class FormBody(BaseModel):
    """What stands in the form. `look` reads the folder anew and gives its report too; `asked` is a press of Look."""

    settings: dict[str, Any]
    look: bool = False
    asked: bool = False


def add_form_routes(router: APIRouter, runner: JobRunner, desk: PlanningDesk) -> None:
    """The form's routes, among the others of `router`."""

    @router.get("/form")
    def form(response: Response, run: str = "") -> dict[str, Any]:
        """The fields of a run, or of the present or latest one; {} for a page that has had none yet."""
        response.headers["Cache-Control"] = "no-store"
        config = config_of_run(runner, run)
        return {"values": shown_values(config) if config is not None else {}}

    @router.post("/form/plan")
    def plan(body: FormBody) -> dict[str, Any]:
        """The plan of what stands in the fields, and with `look` the dataset's report."""
        return plan_pieces(desk, body)

    @router.post("/form/start")
    def start(body: FormBody) -> dict[str, Any]:
        """Start or queue a run; what is wrong stands where the plan stood, and there is no "run" then."""
        try:
            config = make_config(body.settings)
            desk.check_paths(config)
            run = runner.start(config)
        except UserError as error:
            return _problems(error, "plan")
        return {**plan_pieces(desk, body), "run": run.as_json()}


def plan_pieces(desk: PlanningDesk, body: FormBody) -> dict[str, Any]:
    """{"plan", "report": pieces of the page, "fields": problems by field}; a piece that stays as it is is left out.

    An empty folder is an error only where Look was pressed.
    """
    try:
        config = make_config(body.settings)
        if not names_pictures(body.settings) and not body.asked:
            return {"plan": markup.hint(NO_PLAN), "report": markup.hint(NO_PICTURES), "fields": {}}
        look, plan = desk.plan(config, fresh=body.look)
    except UserError as error:
        return {"plan": markup.hint(NO_PLAN), **_problems(error, "report" if body.look else "plan")}
    try:
        pieces = {"plan": markup.plan_card(config, look, plan), "fields": {}}
    except UserError as error:  # a schedule's class, say, that cannot be had; the pictures are as they are
        pieces = _problems(error, "plan")
    return {**pieces, "report": markup.dataset_report(look)} if body.look else pieces


def _problems(error: UserError, place: str) -> dict[str, Any]:
    """Problems in the piece of the page called `place`, and beside their fields."""
    problems = problems_of(error)
    return {place: markup.errors(problems), "fields": problems_by_field(problems)}


def names_pictures(settings: Mapping[str, Any]) -> bool:
    """Whether the fields say where pictures are."""
    return any(str(settings.get(name) or "").strip() for name in ("train_data_dir", "dataset_config"))


def config_of_run(runner: JobRunner, run_id: str) -> TrainConfig | None:
    """The settings of a run, or without an id of the present or latest one; None where there is none to be read.

    Those of a finished run do not go on from where it began: another start is a new training.
    """
    try:
        if not run_id:
            current = runner.status().record
            latest = [current] if current is not None else runner.registry.records()[:1]
            if not latest:
                return None
            run_id = latest[0].id
        config = read_config(runner.registry.config_path(run_id))
        finished = runner.registry.record(run_id).state == "finished"
        return make_config({"resume": "", "resume_anyway": False}, config) if finished else config
    except UserError:  # a run of another version, or one that was deleted: the fields stay as they are
        return None
